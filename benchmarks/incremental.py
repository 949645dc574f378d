"""What a week costs: mine and select of 1% more images against the build of all, CPU-seconds, through the stages
themselves.

    python -m benchmarks.incremental [--n 300000] [--share 0.01] [--vectors clustered|scenes] [--neighbours 12]
    [--folder .run/benchmarks] [--keep FOLDER]

One encoder, one thread, a store in a temporary folder: the first batch brings n images, the second `share` x n more.
With --keep the store lies in
FOLDER, with the seconds of each finished stage beside it: a run that is cut off goes on with the stage that it was in,
from that stage's start. Quotas are the benchmark's own (two pairs a query, three a target), so that its figures do not
move with params.yaml. Checked: of 2,000 images, old and new, the k nearest over both batches' tables are those of a
search from scratch, and the first batch's files are as they were.

The last line is JSON: n, dims, full_cpu_s, increment_cpu_s, share (increment / full), is_equal, and the parts mine and
select of both, rss_mib.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from benchmarks.measure import fair_environment, parse_arguments, peak_mib
from benchmarks.weeks import BATCHES, fill, params_of
from tasks.config import Params
from tasks.records import StageReport
from tasks.store import Store


def measured(params: Params, store: Store, known: dict[str, float]) -> dict[str, float]:
    """CPU-seconds of mine and select; those of `known` are not run again, what an unfinished one left behind goes
    first.
    """
    from tasks.mine import stage as mine
    from tasks.select import stage as select

    batch = str(params.open_run.batch)
    stages: dict[str, tuple[str, Callable[[], StageReport]]] = {
        "mine": (f"data/neighbours/semantic/{batch}-*.parquet", lambda: mine.run(params, store, "semantic")),
        "select": (f"data/pairs/{batch}.parquet", lambda: select.run(params, store)),
    }
    for name, (made, run) in stages.items():
        if name in known:
            continue
        for path in store.root.glob(made):
            path.unlink()
        start = time.process_time()
        report = run()
        known[name] = round(time.process_time() - start, 3)
        print(f"batch {batch}: {name} {known[name]} CPU-seconds, {report.new} new, peak {peak_mib()} MiB", flush=True)
        store.write_bytes(store.root / f"seconds-{batch}.json", json.dumps(known).encode())
    return known


def is_equal(store: Store, old: int, neighbours: int, low: float, high: float) -> bool:
    """Whether the batches' tables together hold what a search from scratch finds, for 2,000 images, half of them of the
    first `old`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.config import Window
    from tasks.knn.search import neighbours_in_window
    from tasks.knn.spec import SearchSpec

    ids, vectors, _ = store.read_embeddings("semantic")
    rng = np.random.default_rng(2)
    asked = np.concatenate([rng.permutation(old)[:1000], old + rng.permutation(len(ids) - old)[:1000]])
    keys = [ids[i] for i in asked]
    query, target, _, _ = neighbours_in_window(
        vectors[asked], vectors, keys, ids, SearchSpec(Window(low=low, high=high), neighbours)
    )
    wanted = {(keys[q], ids[t]) for q, t in zip(query.tolist(), target.tolist(), strict=True)}
    held = set()
    for path in sorted(store.folder("data", "neighbours", "semantic").glob("*.parquet")):
        table = store.read(path, "neighbours", ["query_image_id", "target_image_id"])
        rows = table.filter(pc.is_in(table.column("query_image_id"), value_set=pa.array(keys))).to_pydict()
        held |= set(zip(rows["query_image_id"], rows["target_image_id"], strict=True))
    return bool(wanted) and wanted <= held


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.incremental",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=300_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--vectors", choices=("clustered", "scenes"), default="clustered")
    parser.add_argument("--low", type=float, default=0.8)
    parser.add_argument("--high", type=float, default=0.96)
    parser.add_argument("--neighbours", type=int, default=12)
    parser.add_argument(
        "--keep", type=Path, help="where the store lies, and stays: a run that is cut off goes on there"
    )
    parser.add_argument("--folder", type=Path, default=Path(".run/benchmarks"), help="where the vectors are kept")
    args = parse_arguments(parser, argv, {"n": 900, "share": 0.1, "neighbours": 4})
    import torch  # noqa: F401 - an import is no part of the work

    from benchmarks.vectors import stored

    more = max(1, round(args.n * args.share))
    vectors = stored(args.vectors, args.n + more, args.folder)
    with tempfile.TemporaryDirectory() if args.keep is None else nullcontext(str(args.keep)) as folder:
        store = Store(folder)
        took: list[dict[str, float]] = []
        before: dict[Path, tuple[int, float]] = {}
        settings = [params_of(batch, args.neighbours, args.low, args.high) for batch in BATCHES]
        for params, batch, rows in zip(settings, BATCHES, (slice(0, args.n), slice(args.n, None)), strict=True):
            if not store.table_path("images", batch).exists():
                fill(store, batch, vectors[rows], rows.start)
            seconds = store.root / f"seconds-{batch}.json"
            took.append(measured(params, store, json.loads(seconds.read_text()) if seconds.exists() else {}))
            if batch == BATCHES[0]:
                before = {
                    p: (p.stat().st_size, p.stat().st_mtime)
                    for p in Path(folder).rglob("*.parquet")
                    if BATCHES[1] not in p.name
                }
        untouched = all((p.stat().st_size, p.stat().st_mtime) == was for p, was in before.items())
        equal = untouched and is_equal(store, args.n, args.neighbours, args.low, args.high)
    full, increment = (sum(t.values()) for t in took)
    figures: dict[str, object] = {
        "n": args.n,
        "dims": vectors.shape[1],
        "new": more,
        "full_cpu_s": round(full, 3),
        "increment_cpu_s": round(increment, 3),
        "share": round(increment / full, 4),
        "is_equal": equal,
        "full": took[0],
        "increment": took[1],
        "rss_mib": peak_mib(),
    }
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("incremental")
    sys.exit(0 if main()["is_equal"] else 1)
