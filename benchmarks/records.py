"""Streaming a dataset of MegaPairs' size: records a second, what a process holds, how soon the first batch is there.

    python -m benchmarks.records [--records 1000000] [--simulate 26000000] [--batches 2000] [--folder DIR]

Writes --records records in MegaPairs' format (about 650 bytes each, five hard negatives, three texts), and opens them
as training does: the index of the lines is written, and --batches batches of 64 are planned (tasks/train/stream.py,
tasks/train/batches.py). With --simulate the same file stands in the folder under as many names
as give that number of records: the index and the order are of that size, the bytes on the disk are not. Images are
neither looked for nor decoded: `python -m benchmarks.loader` measures that. Each size runs in a process of its own,
without torch; its peak memory is that process's, libraries included.

The last line is JSON: records, records_per_s (a wall second, one thread), records_per_cpu_s, rss_mib (peak), start_s
(from nothing to the first batch, the index included), start_cpu_s (the CPU-seconds of that), index_mib, held_mib
(rss_mib without what the process held before it opened the dataset), of the larger size; and the same of the smaller
one under `small`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure import fair_environment, parse_arguments, peak_mib

BATCH = 64
CHUNK = 20_000  # records written at once


def write_records(path: Path, count: int) -> None:
    """Write records in MegaPairs' format, with paths and texts of its lengths."""
    rng = random.Random(0)
    images = [f"images/{n % 1000:04d}/{rng.getrandbits(128):032x}.jpg" for n in range(50_000)]
    words = [f"{rng.getrandbits(30):x}" for _ in range(2_000)]
    with open(path, "w") as file:
        for start in range(0, count, CHUNK):
            lines = []
            for _ in range(start, min(start + CHUNK, count)):
                query, target, *hard = rng.sample(images, 6)
                texts = [" ".join(rng.choices(words, k=9)) for _ in range(3)]
                lines.append(json.dumps({"q_img": query, "q_text": texts, "t_img": target, "hns": [query, *hard]}))
            file.write("\n".join(lines) + "\n")


def measure(folder: Path, index: Path, batches: int) -> dict[str, Any]:
    """Figures of one size, in this process."""
    from tasks.config import MixedDatasetConfig, load_params
    from tasks.train.batches import WeightedDataset, plan_steps
    from tasks.train.record_files import open_records
    from tasks.train.stream import RecordStream

    config = load_params("params.yaml").train.model_copy(update={"batch_triplets": BATCH})
    before_mib = peak_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    dataset = MixedDatasetConfig.model_validate(
        {"name": "mega", "format": "megapairs", "path": str(folder), "images": str(folder)}
    )
    stream = RecordStream(dataset, open_records(dataset, index))
    plans = plan_steps([WeightedDataset(stream, 1.0)], config, random.Random(0))
    next(plans)
    start_s, start_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    wall, cpu = time.perf_counter(), time.process_time()
    records = sum(len(plan.texts) for plan in islice(plans, batches))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "records": len(stream),
        "records_per_s": round(records / wall, 1),
        "records_per_cpu_s": round(records / cpu, 1),
        "rss_mib": peak_mib(),
        "held_mib": round(peak_mib() - before_mib, 1),
        "start_s": round(start_s, 2),
        "start_cpu_s": round(start_cpu_s, 2),
        "index_mib": round(sum(f.stat().st_size for f in index.glob("*.arrow")) / 2**20, 1),
    }


def measure_apart(folder: Path, batches: int) -> dict[str, Any]:
    """Figures of one size, in a process of its own."""
    line = [sys.executable, "-m", "benchmarks.records", "--measure", str(folder), "--batches", str(batches)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--simulate", type=int, default=26_000_000, help="0: not at all")
    parser.add_argument("--batches", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="where the records are written; a temporary one where absent")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parse_arguments(parser, argv, {"records": 20_000, "simulate": 100_000, "batches": 20})
    if args.measure is not None:
        with tempfile.TemporaryDirectory(dir=args.measure.parent) as index:
            figures = measure(args.measure, Path(index), args.batches)
        print(json.dumps(figures), flush=True)
        return figures
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        one = Path(work) / "one"
        one.mkdir()
        write_records(one / "0000.jsonl", args.records)
        small = measure_apart(one, args.batches)
        figures = small
        if args.simulate:
            many = Path(work) / "many"
            many.mkdir()
            for n in range(round(args.simulate / args.records)):
                os.link(one / "0000.jsonl", many / f"{n:04d}.jsonl")
            figures = measure_apart(many, args.batches) | {"small": small}
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("records")
    main()
