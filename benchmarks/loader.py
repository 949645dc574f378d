"""The loader alone against webdataset: triplets a CPU-second, of triplets that share images.

    python -m benchmarks.loader [--dataset CLONE] [--side 224] [--batch 64] [--negatives 3] [--batches 6] [--turns 3]

Both deliver the same triplets, in training order, with query, target and --negatives mined images: decoded to RGB, and
also prepared for the tower by the same stock processor at --side px.
Ours: the trainer's own plans and tasks/train/loader.py: the distinct images of a batch, one pread each at its offset in
the version's tars, decoded and prepared once.
webdataset: a tar in which every triplet is a sample with its images inside, which is how webdataset reads
(sequentially, no image by its name); written in the very order in which it is read, no shuffle,
`WebDataset(...).decode("pil")`, the query image stored once though it is a negative too.
One process and one thread each, without webdataset's worker processes and their queues: workers multiply either rate.
Best of the turns; sides alternate.

The last line is JSON: batch, triplets, ours, webdataset, ratio (triplets a CPU-second, decoded to RGB), prepared_ours,
prepared_webdataset, prepared_ratio (decoded and prepared: mostly the processor's arithmetic, so nearly the ratio of the
images), images_ours, images_webdataset (decoded, all batches), ours_bytes, webdataset_bytes (of the images, of the
tar), is_equal (the same pixels, triplet by triplet).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.loader_comparison import SIDE_PX, compare
from benchmarks.measure import fair_environment, parse_arguments


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, return the last line's object."""
    from benchmarks.triplets import drawn_version

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, help="a version; drawn triplets where absent")
    parser.add_argument("--side", type=int, default=SIDE_PX, help="of the tower's input, px")
    parser.add_argument("--batch", type=int, default=64, help="triplets")
    parser.add_argument("--negatives", type=int, default=3, help="mined ones, beside the query image")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    args = parse_arguments(parser, argv, {"batch": 6, "batches": 2, "turns": 1, "side": 64})
    with tempfile.TemporaryDirectory() as work:
        dataset = args.dataset or drawn_version(Path(work) / "drawn", max(8, args.batch))
        figures = compare(
            dataset, args.side, batch=args.batch, negatives=args.negatives, batches=args.batches, turns=args.turns
        )
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("loader")
    sys.exit(0 if main()["is_equal"] else 1)
