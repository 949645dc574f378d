"""The exact windowed self-join: our blocked join against FAISS's IndexFlatIP, CPU-seconds, the same pairs.

    python -m benchmarks.mine [--n 100000] [--vectors clustered|scenes] [--low 0.8] [--high 0.96] [--neighbours K]
    [--folder .run/benchmarks] python -m benchmarks.mine --n 1000000 --faiss-queries 2048
    python -m benchmarks.mine --rows clustered:100000,scenes:100000,clustered:300000
    python -m benchmarks.mine --device cuda --n 1000000 --dims 768          on a GPU, against its own matrix rate (benchmarks/mine_device.py)

Every pair of rows with low <= cosine < high, decided on the float64 product of the stored float16 rows; with
--neighbours the K nearest of each row alone. One thread each. FAISS runs at the best of the settings tried on 1,024 of
the rows: search for 32, 64, 100 or K neighbours, or range_search, and three sizes of its database block. Environment
variables that slow it (and numpy) down - OPENBLAS_CORETYPE, OPENBLAS_L2_SIZE - are removed first. FAISS's answers are
float32; those that lie within rounding of the window's ends are decided in float64 outside its clock, and where a
search left a row unsettled it is asked again, inside it. With --faiss-queries FAISS answers for so many of the rows
alone, drawn at random (a flat index spends the same on each), those answers are
compared, and faiss_cpu_s is what all rows would take: is_extrapolated says so, faiss_measured_cpu_s is what was
measured. Ours is always whole.

The last line is JSON: n, dims, ours_cpu_s, faiss_cpu_s, ratio, pairs, is_equal, rss_mib (peak of ours, vectors
included), and beside them vectors, neighbours, faiss_rss_mib, faiss_setting (way, k, database block), faiss_queries,
faiss_measured_cpu_s, is_extrapolated. --rows measures each corpus in a process of its own, one line of JSON each, the
last with all of them as `rows`; scenes are asked in the window that params.yaml gives the semantic encoder, unless
--low and --high are given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import fair_environment, peak_mib


def ours(vectors: np.ndarray, low: float, high: float, neighbours: int | None) -> tuple[float, tuple[np.ndarray, ...]]:
    """CPU-seconds, and (query, target, similarity, rank)."""
    import torch  # noqa: F401 - its import is on nobody's clock, as FAISS's is not

    from tasks.knn.search import join_in_window

    n = len(vectors)
    start = time.process_time()
    found = join_in_window(vectors, np.ones(n, bool), np.arange(n), low=low, high=high, neighbours=neighbours or n)
    return time.process_time() - start, found


def in_order(
    query: np.ndarray, target: np.ndarray, similarity: np.ndarray, neighbours: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs by query, falling similarity, target; the first `neighbours` of each query."""
    order = np.lexsort((target, -similarity, query))
    query, target = query[order], target[order]
    if neighbours is not None:
        first = np.arange(len(query)) - np.searchsorted(query, query) < neighbours
        query, target = query[first], target[first]
    return query, target


class Faiss:
    """IndexFlatIP over the rows, and the ways to ask it for all pairs of the window."""

    def __init__(self, vectors: np.ndarray, low: float, high: float, neighbours: int | None) -> None:
        import faiss

        self.faiss, self.vectors, self.low, self.high, self.neighbours = faiss, vectors, low, high, neighbours
        faiss.omp_set_num_threads(1)
        start = time.process_time()
        self.rows = np.ascontiguousarray(vectors, dtype=np.float32)
        self.index = faiss.IndexFlatIP(self.rows.shape[1])
        self.index.add(self.rows)
        self.build_s = time.process_time() - start
        self.slack = (self.rows.shape[1] + 8) * 2.0**-23

    def settings(self) -> list[tuple[str, int, int]]:
        """(way, k, rows of a database block)."""
        ks = sorted({32, 64, 100} | ({self.neighbours + 16} if self.neighbours else set()))
        return [
            ("range", 0, 1024),
            ("range", 0, 4096),
            *(("search", min(k, len(self.rows)), b) for k in ks for b in (512, 1024, 4096)),
        ]

    def ask(self, setting: tuple[str, int, int], asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, target, float32 score) of all pairs of some rows that may lie in the window, the row itself left out."""
        way, k, block = setting
        self.faiss.cvar.distance_compute_blas_database_bs = block
        parts = []
        for start in range(0, len(asked), 4096):
            rows = asked[start : start + 4096]
            if way == "range":
                limits, scores, hits = self.index.range_search(self.rows[rows], self.low - self.slack)
                parts.append((np.repeat(rows, np.diff(limits.astype(np.int64))), hits, scores))
                continue
            todo, wanted = rows, k
            while len(todo):
                scores, hits = self.index.search(self.rows[todo], wanted)
                enough = (
                    (scores < self.high - self.slack).sum(axis=1) > self.neighbours + 1
                    if self.neighbours
                    else np.zeros(len(todo), bool)
                )
                done = (scores[:, -1] < self.low - self.slack) | enough | (wanted == len(self.rows))
                parts.append((np.repeat(todo[done], wanted), hits[done].ravel(), scores[done].ravel()))
                todo, wanted = todo[~done], min(len(self.rows), wanted * 4)
        query, target, score = (np.concatenate(c) for c in zip(*parts, strict=True))
        near = (score >= self.low - self.slack) & (score < self.high + self.slack) & (query != target)
        return query[near], target[near], score[near]

    def best(self, count: int = 1024) -> tuple[str, int, int]:
        """The setting that is fastest on `count` of the rows."""
        asked = np.sort(np.random.default_rng(1).permutation(len(self.rows))[:count])
        took = {}
        for setting in self.settings():
            start = time.process_time()
            self.ask(setting, asked)
            took[setting] = time.process_time() - start
            print(f"FAISS {setting}: {len(asked) / took[setting]:.0f} rows/s", flush=True)
        return min(took, key=lambda s: took[s])

    def decided(self, query: np.ndarray, target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that the float64 product puts in the window, in order (not on FAISS's clock)."""
        similarity = np.empty(len(query))
        for start in range(0, len(query), 2048):
            s = slice(start, start + 2048)
            similarity[s] = np.einsum(
                "md,md->m", self.vectors[query[s]].astype(np.float64), self.vectors[target[s]].astype(np.float64)
            )
        inside = (similarity >= self.low) & (similarity < self.high)
        return in_order(query[inside], target[inside], similarity[inside], self.neighbours)


def window_of(vectors: str) -> tuple[float, float]:
    """The window that a kind of vectors is asked in, unless another is given."""
    if vectors != "scenes":
        return 0.8, 0.96
    from tasks.config import load_params

    window = load_params().mine.windows["semantic"]
    return window.low, window.high


def rows_of(text: str) -> list[tuple[str, int]]:
    """'clustered:100000,scenes:1000' as pairs.

    Raises:
        argparse.ArgumentTypeError: of another form.
    """
    rows = [part.partition(":") for part in text.split(",")]
    if not all(kind in ("clustered", "scenes") and n.isdigit() and int(n) > 1 for kind, _, n in rows):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected vectors:n[,vectors:n ...], vectors one of clustered, scenes"
        )
    return [(kind, int(n)) for kind, _, n in rows]


def measured_rows(rows: Sequence[tuple[str, int]], more: Sequence[str]) -> dict[str, object]:
    """Each corpus in a process of its own, so that its peak memory is its own.

    Args:
        rows: vectors and n of each.
        more: further arguments of each.
    """
    found = []
    for kind, n in rows:
        command = [sys.executable, "-m", "benchmarks.mine", "--vectors", kind, "--n", str(n), *more]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = ""
            for last in process.stdout:
                print(last, end="", flush=True)
        if not last.startswith("{"):
            raise SystemExit(f"{' '.join(command)}: ended with {process.returncode} and no figures")
        found.append(json.loads(last))
    figures: dict[str, object] = {**found[0], "is_equal": all(f["is_equal"] for f in found), "rows": found}
    print(json.dumps(figures), flush=True)
    return figures


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--vectors", choices=("clustered", "scenes"), default="clustered")
    parser.add_argument("--low", type=float, help="of the window (default: 0.8; of scenes that in params.yaml)")
    parser.add_argument("--high", type=float, help="of the window (default: 0.96; of scenes that in params.yaml)")
    parser.add_argument("--rows", type=rows_of, help="several corpora, vectors:n[,vectors:n ...]")
    parser.add_argument(
        "--device",
        help="of torch: measure the join there, against the device's own matrix rate, instead of against FAISS",
    )
    parser.add_argument("--dims", type=int, default=768, help="width of the rows with --device")
    parser.add_argument("--faiss-queries", type=int, help="rows that FAISS answers for, a count (default: all)")
    parser.add_argument(
        "--neighbours", type=int, help="nearest of each row alone; all pairs of the window when left out"
    )
    parser.add_argument("--folder", type=Path, default=Path(".run/benchmarks"), help="where the vectors are kept")
    args = parser.parse_args(argv)
    if args.device:
        from benchmarks.mine_device import measure

        low, high = 0.8 if args.low is None else args.low, 0.96 if args.high is None else args.high
        return measure(args.device, args.n, args.dims, args.neighbours or 12, low, high)
    if args.rows:
        more = [
            x
            for name in ("low", "high", "neighbours", "folder", "faiss_queries")
            if (value := getattr(args, name)) is not None
            for x in (f"--{name.replace('_', '-')}", str(value))
        ]
        return measured_rows(args.rows, more)
    from benchmarks.vectors import stored

    low, high = window_of(args.vectors)
    args.low, args.high = low if args.low is None else args.low, high if args.high is None else args.high
    vectors = np.asarray(stored(args.vectors, args.n, args.folder))
    print(
        f"{args.vectors}: {vectors.shape[0]} x {vectors.shape[1]}, window [{args.low}, {args.high}), neighbours {args.neighbours or 'all'}",
        flush=True,
    )
    ours_s, (query, target, _, _) = ours(vectors, args.low, args.high, args.neighbours)
    ours_rss = peak_mib()
    print(f"ours: {ours_s:.2f} CPU-seconds, {len(query)} ordered pairs, peak {ours_rss} MiB", flush=True)
    faiss = Faiss(vectors, args.low, args.high, args.neighbours)
    n = len(vectors)
    count = min(args.faiss_queries or n, n)
    setting = faiss.best(1024 if count == n else 256)
    asked = np.sort(np.random.default_rng(3).permutation(n)[:count])
    start = time.process_time()
    proposed = faiss.ask(setting, asked)
    search_s = time.process_time() - start
    faiss_s = search_s * n / count + faiss.build_s
    peer = faiss.decided(*proposed)
    pairs, compared = len(query), np.isin(query, asked)
    query, target = query[compared], target[compared]
    figures: dict[str, object] = {
        "n": len(vectors),
        "dims": vectors.shape[1],
        "vectors": args.vectors,
        "neighbours": args.neighbours,
        "ours_cpu_s": round(ours_s, 3),
        "faiss_cpu_s": round(faiss_s, 3),
        "ratio": round(faiss_s / ours_s, 2),
        "pairs": pairs,
        "is_equal": bool(np.array_equal(query, peer[0]) and np.array_equal(target, peer[1])),
        "rss_mib": ours_rss,
        "faiss_rss_mib": peak_mib(),
        "faiss_setting": list(setting),
        "faiss_queries": count,
        "faiss_measured_cpu_s": round(search_s + faiss.build_s, 3),
        "is_extrapolated": count < n,
    }
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("mine")
    sys.exit(0 if main()["is_equal"] else 1)
