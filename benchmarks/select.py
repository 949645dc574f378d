"""Memory and time of `select` at a number of candidates that does not fit the memory.

    python -m benchmarks.select [--images 1000000] [--candidates 50] [--dims 64] [--memory-mib 1024]
    [--folder .run/benchmarks/select]

Draws a store: images in groups of about twice `candidates`, near each other under each of three encoders; vectors of
`dims` numbers, in shards of 10,000, and the table of neighbours as `mine` writes it (each image with `candidates`
neighbours of its group under every encoder, in files of 50,000 queries). Similarities in that table are drawn, not
computed: `select` takes them as they are. Then `python -m tasks select` runs on it in a process of its own. Quotas are
the benchmark's (two pairs a query, three a target, no limit a run), as in benchmarks.incremental. The folder is removed
at the end.

The last line is JSON: images, candidates_per_image (under each encoder), dims, memory_mib (`select.memory_mib`), rows
(of neighbours), candidates (merged), pairs, peak_mib (of the process that selects), cpu_s and wall_s (of the same),
spill_mib (most disk taken by its own files).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.measure import parse_arguments
from tasks.config import ENCODER_ROLES, load_params
from tasks.store import Store
from tasks.store.id_order import id_order

BATCH = "2026.01.04"
SHARD_IMAGES = 10_000
FILE_QUERIES = 50_000


def drawn_ids(count: int) -> pa.Array:
    """(n) strings, ids that look like the factory's, sorted."""
    ids = pa.array([hashlib.blake2b(str(n).encode(), digest_size=12).hexdigest() for n in range(count)])
    return ids.take(pa.array(id_order(ids)))


def write_images(store: Store, ids: pa.Array, group_of: np.ndarray, dims: int, seed: int) -> None:
    """The table of images, and three encoders' vectors, drawn around their groups' centres."""
    rng = np.random.default_rng(seed)
    shards = [f"{BATCH}-{n // SHARD_IMAGES:05d}.tar" for n in range(len(ids))]
    text = pa.repeat(pa.scalar("s:x"), len(ids))
    columns = {"image_id": ids, "batch": pa.repeat(pa.scalar(BATCH), len(ids)), "shard": pa.array(shards)}
    schema = store.read([], "images").schema
    empty = {f.name: pa.nulls(len(ids), f.type) for f in schema if f.name not in columns}
    store.write(store.table_path("images", BATCH), pa.table({**empty, **columns, "source_uri": text}), "images")
    for encoder in ENCODER_ROLES:
        centres = rng.standard_normal((int(group_of.max()) + 1, dims), dtype=np.float32)
        for start in range(0, len(ids), SHARD_IMAGES):
            groups = group_of[start : start + SHARD_IMAGES]
            rows = centres[groups] + 0.5 * rng.standard_normal((len(groups), dims), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            part = ids.slice(start, len(groups)).to_pylist()
            store.write_embeddings(encoder, shards[start], "drawn", part, rows.astype(np.float16))


def write_neighbours(store: Store, ids: pa.Array, members: np.ndarray, position: np.ndarray, top_k: int) -> int:
    """Each image's neighbours under three encoders: distinct others of its group, in an order of the encoder's own.

    Args:
        members: (n,) images, group after group, all groups of one size.
        position: (n,) the index of each image in `members`.
    Returns:
        Rows written.
    """
    size, rows = 2 * top_k, 0
    for number, encoder in enumerate(ENCODER_ROLES):
        for start in range(0, len(ids), FILE_QUERIES):
            queries = np.arange(start, min(start + FILE_QUERIES, len(ids)))
            rng = np.random.default_rng([number, start])
            first = np.minimum(position[queries] // size * size, len(ids) - size)  # the last group is never short
            steps = 1 + (rng.integers(0, size, len(queries))[:, None] + np.arange(top_k)) % (size - 1)
            targets = members[first[:, None] + ((position[queries] - first)[:, None] + steps) % size]
            similarity = np.sort(rng.uniform(0.8, 0.96, steps.shape).astype(np.float32), axis=1)[:, ::-1]
            table = pa.table(
                {
                    "query_image_id": ids.take(pa.array(np.repeat(queries, top_k))),
                    "target_image_id": ids.take(pa.array(targets.ravel())),
                    "similarity": similarity.ravel(),
                    "rank": np.tile(np.arange(top_k, dtype=np.int32), len(queries)),
                }
            )
            path = store.folder("data", "neighbours", encoder, f"{BATCH}-{start // FILE_QUERIES:05d}.parquet")
            rows += store.write(path, table, "neighbours")
    return rows


def write_params(folder: Path, top_k: int, memory_mib: int) -> None:
    """The store's params.yaml: the defaults with three encoders' windows and the benchmark's quotas."""
    params = load_params().model_dump(mode="json", by_alias=True)
    params["open_run"] |= {"batch": BATCH, "threads": 1}
    params["mine"] |= {"neighbours": top_k, "windows": {e: {"low": 0.8, "high": 0.999} for e in ENCODER_ROLES}}
    params["select"] |= {
        "pairs_per_batch": None,
        "pairs_per_query": 2,
        "pairs_per_target": 3,
        "nearest_share": 1.0,
        "memory_mib": memory_mib,
        # the demo's estimate belongs to its encoders; profiles of real models select by agreement until one is fitted
        "differences": None,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


class DiskWatch:
    """The most bytes that the files below a folder took, looked at once a second until `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._end = folder, threading.Event()
        self.most_bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(1):
            total = 0
            for path in self._folder.rglob("*"):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:  # deleted since it was listed
                    continue
            self.most_bytes = max(self.most_bytes, total)

    def stop(self) -> int:
        """End, and return the most bytes."""
        self._end.set()
        self._thread.join()
        return self.most_bytes


def run_select(folder: Path) -> dict[str, Any]:
    """`python -m tasks select` in a process of its own: its report, peak memory, seconds, and disk."""
    code = Path(__file__).resolve().parents[1]
    watch, start = DiskWatch(folder / ".run" / "select"), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(code)}
    with open(folder / "report.json", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks", "select"], cwd=folder, env=environment, stdout=output
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    spilled = watch.stop()
    if process.returncode:
        raise SystemExit(f"benchmarks.select: `python -m tasks select` ended with {process.returncode}; see above")
    report = json.loads((folder / "report.json").read_text().splitlines()[-1])
    return {
        "candidates": report["read"],
        "pairs": report["new"],
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(time.monotonic() - start, 1),
        "spill_mib": round(spilled / 2**20),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Draw, measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.select", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=50, help="neighbours of an image under each encoder")
    parser.add_argument(
        "--dims", type=int, default=64, help="width of the vectors; the disk holds 6 bytes x dims an image"
    )
    parser.add_argument("--memory-mib", type=int, default=1024, help="select.memory_mib")
    parser.add_argument("--folder", type=Path, default=Path(".run/benchmarks/select"))
    parser.add_argument("--seed", type=int, default=0)
    args = parse_arguments(parser, argv, {"images": 1200, "candidates": 6, "dims": 8, "memory_mib": 1})
    if args.images <= 2 * args.candidates:
        parser.error("--images must be more than twice --candidates, which is the size of a group")
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    try:
        store, ids = Store(args.folder), drawn_ids(args.images)
        members = np.random.default_rng(args.seed).permutation(args.images)
        position = np.empty_like(members)
        position[members] = np.arange(args.images)
        write_images(store, ids, position // (2 * args.candidates), args.dims, args.seed)
        rows = write_neighbours(store, ids, members, position, args.candidates)
        write_params(args.folder, args.candidates, args.memory_mib)
        print(f"drawn: {rows} rows of neighbours", flush=True)
        figures = {
            "images": args.images,
            "candidates_per_image": args.candidates,
            "dims": args.dims,
            "memory_mib": args.memory_mib,
            "rows": rows,
            **run_select(args.folder),
        }
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    main()
