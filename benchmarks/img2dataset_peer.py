"""img2dataset's own Resizer and WebDataset writer over images in memory; run by benchmarks/ingest.py with the Python of
.venv-peers.

    .venv-peers/bin/python benchmarks/img2dataset_peer.py FOLDER OUT [--repeats N]

Reads FOLDER/*.jpg into memory, writes OUT/00000.tar and .parquet as `img2dataset --image_size 512 --resize_mode
keep_ratio_largest --resize_only_if_bigger true --encode_quality 95 --output_format webdataset` does, once for each
repeat, and prints one JSON object: images, cpu_s (of the fastest repeat, reading left out), rss_mib, version. Imports
nothing of this project: it runs in another environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import shutil
import time
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    images = [(path.stem, path.read_bytes()) for path in sorted(args.folder.glob("*.jpg"))]
    schema = pa.schema([("key", pa.string()), ("url", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
    times = []
    for _ in range(args.repeats):
        shutil.rmtree(args.out, ignore_errors=True)
        args.out.mkdir(parents=True)
        start = time.process_time()
        # all else at its default
        resize = Resizer(image_size=512, resize_mode="keep_ratio_largest", resize_only_if_bigger=True)
        writer = WebDatasetSampleWriter(0, str(args.out), True, 5, schema, "jpg")
        for key, content in images:
            stored, width, height, _, _, error = resize(io.BytesIO(content))
            if error is not None:
                raise SystemExit(f"img2dataset: {key}: {error}")
            writer.write(stored, key, "a photograph", {"key": key, "url": key, "width": width, "height": height})
        writer.close()
        times.append(time.process_time() - start)
    status = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the parent's peak too
    peak_mib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    print(
        json.dumps(
            {
                "images": len(images),
                "cpu_s": min(times),
                "rss_mib": round(peak_mib, 1),
                "version": importlib.metadata.version("img2dataset"),
            }
        )
    )


if __name__ == "__main__":
    main()
