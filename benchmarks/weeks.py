"""Weeks of drawn rows in a store: what benchmarks of mine and select run the stages on, and a table of 500 weeks.

    python -m benchmarks.weeks [--weeks 500] [--chunks 79] [--rows 40] [--folder FOLDER] [--quick]

Writes table `triplets` of so many weeks as the stages leave it, --chunks files a week of --rows triplets each, and
loads it with `datasets.load_dataset` as the card does; then merges each week's chunks as `version` does, and loads it
again. The default is a week of profile `production`: 20,000 pairs in chunks of 256. Each loading is a process of its
own with a cache of its own, so that nothing is kept from the other.

The last line is JSON: weeks, rows, files_before, files_after, load_before_s, load_after_s (wall), read_before_s,
read_after_s (the table by pyarrow alone), merge_s (all weeks together), is_equal (the same rows in the same order).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import parse_arguments
from tasks.config import Params, load_params
from tasks.publish.merge import merge_chunks
from tasks.store import Store

BATCHES = ("2026.01.04", "2026.01.11")
SHARD = 10_000  # images


def params_of(batch: str, neighbours: int, low: float, high: float) -> Params:
    """params.yaml's defaults with one encoder, no limit a run."""
    params = load_params()
    window = params.mine.windows["semantic"].model_copy(update={"low": low, "high": high})
    changes = {
        "open_run": params.open_run.model_copy(update={"batch": batch, "threads": 1}),
        "embed": params.embed.model_copy(update={"encoders": {"semantic": params.embed.encoders["semantic"]}}),
        "mine": params.mine.model_copy(
            update={"neighbours": neighbours, "windows": {"semantic": window}, "backend": "blocked"}
        ),
        "select": params.select.model_copy(
            update={"pairs_per_batch": None, "pairs_per_query": 2, "pairs_per_target": 3, "nearest_share": 1.0}
        ),
    }
    return params.model_copy(update=changes)


def fill(store: Store, batch: str, vectors: np.ndarray, first: int) -> None:
    """A batch's table of images and its vectors; ids look like the factory's, in no order."""
    ids = [hashlib.blake2b(str(first + i).encode(), digest_size=12).hexdigest() for i in range(len(vectors))]
    shards = [f"{batch}-{i // SHARD:05d}.tar" for i in range(len(ids))]
    rows = [
        {"image_id": i, "batch": batch, "shard": s, "source_uri": "s", "license_code": "x"}
        for i, s in zip(ids, shards, strict=True)
    ]
    store.write(store.table_path("images", batch), rows, "images")
    for start in range(0, len(ids), SHARD):
        store.write_embeddings(
            "semantic", shards[start], "r1", ids[start : start + SHARD], vectors[start : start + SHARD]
        )


# --- a table of many weeks -------------------------------------------------------------------------------------------

LOAD = """
import sys, time
import datasets
start = time.monotonic()
table = datasets.load_dataset("parquet", data_files=sys.argv[1] + "/*.parquet", split="train", cache_dir=sys.argv[2])
print(time.monotonic() - start, len(table))
"""


def triplet(batch: str, number: int) -> dict[str, Any]:
    """A triplet as wide as a real one: seven negatives, six texts."""
    ids = [hashlib.sha256(f"{batch} {number} {n}".encode()).hexdigest() for n in range(9)]
    texts = [f"make image {number} of {batch} like the other one, in style {n}" for n in range(6)]
    return {
        "triplet_id": ids[0][:32],
        "pair_id": ids[1][:32],
        "batch": batch,
        "query_image_id": ids[0],
        "target_image_id": ids[1],
        "instructions": texts,
        "styles": ["short"] * 6,
        "negative_image_ids": [ids[0], *ids[2:]],
        "judge_target": [0.9] * 6,
        "judge_negative": [0.1] * 8,
        "mined_by": ["semantic", "caption"],
        "description": texts[0] * 4,
        "tokens": 900,
    }


def write_weeks(store: Store, weeks: int, chunks: int, rows: int) -> list[str]:
    """Table `triplets` as the stages leave it; returns the names of its batches."""
    batches = [f"{2000 + n // 50}.{n % 50 // 4 + 1:02d}.{n % 50 % 4 * 7 + 1:02d}" for n in range(weeks)]
    for batch in batches:
        for chunk in range(chunks):
            found = [triplet(batch, chunk * rows + n) for n in range(rows)]
            store.write(store.table_path("triplets", batch, chunk), found, "triplets")
    return batches


def load_seconds(folder: Path) -> float:
    """Wall time of `load_dataset` over a folder, in a new process with an empty cache, s."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", LOAD, str(folder), cache]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(ended.stdout.split()[0])


def read_rows(store: Store) -> tuple[float, list[str]]:
    """Wall time of reading the whole table by pyarrow, s, and its ids in order."""
    start = time.monotonic()
    ids = store.read_table("triplets").column("triplet_id").to_pylist()
    return time.monotonic() - start, ids


def measure(root: Path, weeks: int, chunks: int, rows: int) -> dict[str, Any]:
    """Load, merge, load again; the figures of the module's docstring."""
    store = Store(root)
    folder = root / "data" / "triplets"
    batches = write_weeks(store, weeks, chunks, rows)
    files_before, load_before_s = len(store.table_files("triplets")), load_seconds(folder)
    read_before_s, ids = read_rows(store)
    merge_s = 0.0
    for batch in batches:
        run = Store(root / "runs" / batch)  # a run merges its own week: each has a worktree of its own
        (run.root / "data").parent.mkdir(parents=True)
        (run.root / "data").symlink_to(root / "data")
        start = time.monotonic()
        merge_chunks(run, batch)
        merge_s += time.monotonic() - start
    read_after_s, after = read_rows(store)
    return {
        "weeks": weeks,
        "rows": len(ids),
        "files_before": files_before,
        "files_after": len(store.table_files("triplets")),
        "load_before_s": round(load_before_s, 2),
        "load_after_s": round(load_seconds(folder), 2),
        "read_before_s": round(read_before_s, 2),
        "read_after_s": round(read_after_s, 2),
        "merge_s": round(merge_s, 2),
        "is_equal": ids == after,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; its last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=500)
    parser.add_argument("--chunks", type=int, default=79, help="files of a week before they are merged")
    parser.add_argument("--rows", type=int, default=40, help="triplets in a chunk")
    parser.add_argument("--folder", type=Path, help="where the table is written; a temporary folder by default")
    arguments = parse_arguments(parser, argv, {"weeks": 3, "chunks": 4, "rows": 5})
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        figures = measure(Path(root), arguments.weeks, arguments.chunks, arguments.rows)
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
