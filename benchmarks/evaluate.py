"""Encoding a benchmark's gallery: `python -m tasks evaluate` against the released evaluation script, one run.

    python -m benchmarks.evaluate [--images 20000] [--photos ../shared/photos] [--model tasks/sample/checkpoints/clip]
                                  [--long-side 640] [--peer .venv-old-transformers/bin/python]

The gallery: photographs (scenes of the sample world where the folder is not there) of COCO's size, JPEG at quality 95,
`--distinct` different ones under as many names as `--images` says, as hard links. Each is read, decoded, prepared and
encoded by both.

The peer is the loop of VectorSpaceLab/MegaPairs' eval/flag_mmret.py with its defaults (benchmarks/evaluate_peer.py): in
transformers 4.45.2, which the released models recommend, where `make old-transformers` has installed it, else in this
environment's version. Ours is the encoder of `evaluate` with float32, vectors written to disk. CPU-seconds are those of
one thread a process, workers and children counted, imports and the loading of the model left out. Then ours runs again
on the kept vectors.

The last line is JSON: images, ours_images_per_cpu_s, peer_images_per_cpu_s, ratio, max_vector_difference (of the unit
rows), preprocess, peer_transformers, again_s (wall clock, all vectors kept), rss_mib of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import fair_environment, parse_arguments, peak_mib
from benchmarks.stored_images import stored_photographs, stored_scenes

BATCH = 128


def make_gallery(folder: Path, args: argparse.Namespace) -> list[Path]:
    """`args.images` files of `args.distinct` images."""
    count = min(args.distinct, args.images)
    if args.photos.is_dir():
        contents = stored_photographs(args.photos, count, args.long_side, enlarge=True)
    else:
        contents = stored_scenes(count, args.long_side)
    paths = [folder / f"{n:012d}.jpg" for n in range(args.images)]
    for n, path in enumerate(paths):
        if n < len(contents):
            path.write_bytes(contents[n])
        else:
            os.link(paths[n % len(contents)], path)
    return paths


def run_peer(gallery: Path, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What the peer prints; its rows lie in `out`."""
    peer = args.peer if args.peer.exists() else Path(sys.executable)
    # -P: modules of this folder have names of the standard library
    words = [str(peer), "-P", "benchmarks/evaluate_peer.py", str(gallery), args.model, str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"the peer failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_ours(paths: Sequence[Path], model: str, kept: Path, is_fast: bool) -> tuple[np.ndarray, float, float]:
    """(unit rows, CPU-seconds, wall-clock seconds) of `evaluate`'s encoder."""
    from tasks.evaluate.encode import EncodeSettings, ModelScorer, image_ids
    from tasks.evaluate.protocols import Benchmark, Task
    from tasks.evaluate.protocols.base import image_reader
    from tasks.models.retrievers.kept_rows import EncodeOptions
    from tasks.models.retrievers.load import load_retriever

    files = {path.stem: path for path in paths}
    benchmark = Benchmark("b", "circo", "all", {}, [Task("", [], list(files))], image_reader(files), files=files)
    settings = EncodeSettings(BATCH, vectors=kept, is_fast=is_fast)
    scorer = ModelScorer(load_retriever(model, device="cpu", threads=1), settings, model)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    options = EncodeOptions(scorer.kept, image_ids(benchmark), is_fast=is_fast)
    encoder = scorer.retriever.content_encoder(benchmark.read_image, BATCH, options=options)
    rows = encoder.encode([(key, "") for key in files], "candidate")
    return rows, time.process_time() - cpu_s, time.monotonic() - wall_s


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--distinct", type=int, default=500, help="different images among them")
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--long-side", type=int, default=640, help="px")
    parser.add_argument("--model", default="tasks/sample/checkpoints/clip")
    parser.add_argument("--preprocess", default="fast", choices=("fast", "stock"), help="ours, as of `evaluate`")
    parser.add_argument("--peer", type=Path, default=Path(".venv-old-transformers/bin/python"))
    parser.add_argument("--folder", type=Path, help="where the gallery is made; default: a temporary folder")
    args = parse_arguments(parser, argv, {"images": 300, "distinct": 60})
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        work = Path(temporary)
        (work / "gallery").mkdir()
        paths = make_gallery(work / "gallery", args)
        print(f"{len(paths):,} images, {sum(p.stat().st_size for p in paths) / len(paths) / 1024:.0f} KiB each")
        model = opened_by_both(args.model, work / "model")
        ours, cpu_s, _ = run_ours(paths, model, work / "vectors", args.preprocess == "fast")
        rss_mib = peak_mib()
        args.model = model
        peer = run_peer(work / "gallery", args, work / "peer.npy")
        _, _, again_s = run_ours(paths, model, work / "vectors", args.preprocess == "fast")
        difference = float(np.abs(np.load(work / "peer.npy") - ours).max())
    figures = {
        "images": len(paths),
        "ours_images_per_cpu_s": round(len(paths) / cpu_s, 1),
        "peer_images_per_cpu_s": round(peer["images"] / peer["cpu_s"], 1),
        "ratio": round(peer["cpu_s"] / cpu_s, 2),
        "max_vector_difference": difference,
        "preprocess": args.preprocess,
        "peer_transformers": peer["transformers"],
        "again_s": round(again_s, 2),
        "rss_mib": rss_mib,
    }
    print(json.dumps(figures))
    return figures


def opened_by_both(model: str, folder: Path) -> str:
    """The model, saved in the layout that old and new transformers read, where it is a folder."""
    if not Path(model).is_dir():
        return model
    from tasks.models.retrievers.load import load_retriever

    load_retriever(model, device="cpu", threads=1).save(folder)
    return str(folder)


if __name__ == "__main__":
    fair_environment("evaluate")
    main()
