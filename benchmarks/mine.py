"""The exact windowed self-join: our blocked join against FAISS and against torch, CPU-seconds, the same pairs.

    python -m benchmarks.mine [--n 100000] [--vectors clustered|scenes] [--low 0.8] [--high 0.96] [--neighbours K]
    python -m benchmarks.mine --n 1000000 --peer-queries 2048
    python -m benchmarks.mine --rows clustered:100000,scenes:100000,clustered:300000
    python -m benchmarks.mine --device cuda --n 1000000 --dims 768     on a GPU, against its own matrix rate
    python -m benchmarks.mine --quick                                  seconds: does it run, are the pairs equal

Every pair of rows with low <= cosine < high, decided on the float64 product of the stored float16 rows; with
--neighbours the K nearest of each row alone. One thread each.

The peers: FAISS's IndexFlatIP, and a blocked float32 product by torch with top-k. On some processors the BLAS inside
the FAISS wheel reaches a third of torch's rate, so the ratio is taken against the faster of the two. Each runs at the
best of its settings, tried on 1,024 of the rows: search for a number of neighbours or for all scores above the window's
low end, and several sizes of block. Environment variables that slow FAISS and numpy down (OPENBLAS_CORETYPE,
OPENBLAS_L2_SIZE) are removed first. The peers' scores are float32: pairs within rounding of the window's ends are
decided in float64 outside the peer's clock, and where a search left a row unsettled it is asked again, inside it.
With --peer-queries the peers answer for so many rows alone, drawn at random (a flat search spends the same on each):
these answers are compared, and <peer>_cpu_s is what all rows would take. is_extrapolated says so, and
<peer>_measured_cpu_s is what was measured. Ours is always whole.

The last line is JSON: n, dims, vectors, neighbours, ours_cpu_s, peer (the faster one), ratio (peer / ours), pairs,
is_equal, rss_mib (peak of ours, vectors included), peer_queries, is_extrapolated, and of each peer, faiss and torch:
<peer>_cpu_s, <peer>_measured_cpu_s, <peer>_setting (way, k, block), <peer>_rss_mib (peak of the process so far),
ratio_<peer>. --rows measures each corpus in a process of its own, one line of JSON each, the last with all of them as
`rows`; scenes are searched in the window that params.yaml gives the semantic encoder, unless --low and --high are
given.
With --device the figures are those of benchmarks/mine_device.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import fair_environment, parse_arguments, peak_mib


def ours(vectors: np.ndarray, low: float, high: float, neighbours: int | None) -> tuple[float, tuple[np.ndarray, ...]]:
    """CPU-seconds, and (query, target, similarity, rank)."""
    import torch  # noqa: F401 - its import is on nobody's clock, as FAISS's is not

    from tasks.config import Window
    from tasks.knn.search import join_in_window
    from tasks.knn.spec import SearchSpec

    n = len(vectors)
    start = time.process_time()
    spec = SearchSpec(Window(low=low, high=high), neighbours or n)
    found = join_in_window(vectors, np.ones(n, bool), np.arange(n), spec)
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


class Peer:
    """All pairs of the window by a plain float32 search; a subclass says how it searches.

    Attributes:
        rows: (n, d) float32.
        slack: a bound on the rounding of a float32 product of two unit rows.
        build_s: CPU time of the construction, s.
    """

    name = ""

    def __init__(self, vectors: np.ndarray, low: float, high: float, neighbours: int | None) -> None:
        self.vectors, self.low, self.high, self.neighbours = vectors, low, high, neighbours
        start = time.process_time()
        self.rows = np.ascontiguousarray(vectors, dtype=np.float32)
        self.slack = (self.rows.shape[1] + 8) * 2.0**-23
        self.build()
        self.build_s = time.process_time() - start

    def build(self) -> None:
        """Make what the search needs beside the rows."""

    def settings(self) -> list[tuple[str, int, int]]:
        """(way, k, block) of each setting that is tried; way is 'range' or 'search'."""
        raise NotImplementedError

    def search(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (m, k) and row numbers (m, k) of the k nearest of some rows, by falling score."""
        raise NotImplementedError

    def in_range(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, target, score) of all pairs of some rows that reach the window's low end, less the slack."""
        raise NotImplementedError

    def ask(self, setting: tuple[str, int, int], queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, target, float32 score) of all pairs of some rows that may lie in the window; no row with itself."""
        way, k, self.block = setting
        parts = []
        for start in range(0, len(queries), 4096):
            rows = queries[start : start + 4096]
            if way == "range":
                parts.append(self.in_range(rows))
                continue
            todo, wanted = rows, k
            while len(todo):
                scores, hits = self.search(todo, wanted)
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

    def best(self, count: int) -> tuple[str, int, int]:
        """The setting that is fastest on `count` of the rows."""
        queries = np.sort(np.random.default_rng(1).permutation(len(self.rows))[:count])
        seconds = {}
        for setting in self.settings():
            start = time.process_time()
            self.ask(setting, queries)
            seconds[setting] = time.process_time() - start
            print(f"{self.name} {setting}: {len(queries) / seconds[setting]:.0f} rows/s", flush=True)
        return min(seconds, key=lambda s: seconds[s])

    def decided(self, query: np.ndarray, target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that the float64 product puts in the window, in order (not on the peer's clock)."""
        similarity = np.empty(len(query))
        for start in range(0, len(query), 2048):
            s = slice(start, start + 2048)
            similarity[s] = np.einsum(
                "md,md->m", self.vectors[query[s]].astype(np.float64), self.vectors[target[s]].astype(np.float64)
            )
        inside = (similarity >= self.low) & (similarity < self.high)
        return in_order(query[inside], target[inside], similarity[inside], self.neighbours)

    def measure(self, count: int) -> tuple[dict[str, object], tuple[np.ndarray, np.ndarray]]:
        """Figures of the best setting over `count` rows drawn at random, and the pairs of these rows."""
        n = len(self.rows)
        setting = self.best(1024 if count == n else 256)
        start = time.process_time()
        proposed = self.ask(setting, drawn_rows(n, count))
        search_s = time.process_time() - start
        figures: dict[str, object] = {
            f"{self.name}_cpu_s": round(search_s * n / count + self.build_s, 3),
            f"{self.name}_measured_cpu_s": round(search_s + self.build_s, 3),
            f"{self.name}_setting": list(setting),
            f"{self.name}_rss_mib": peak_mib(),
        }
        return figures, self.decided(*proposed)


class Faiss(Peer):
    """IndexFlatIP over the rows."""

    name = "faiss"

    def build(self) -> None:
        """The index."""
        import faiss

        faiss.omp_set_num_threads(1)
        self.faiss = faiss
        self.index = faiss.IndexFlatIP(self.rows.shape[1])
        self.index.add(self.rows)

    def settings(self) -> list[tuple[str, int, int]]:
        """(way, k, rows of a database block)."""
        ks = sorted({32, 64, 100} | ({self.neighbours + 16} if self.neighbours else set()))
        return [
            ("range", 0, 1024),
            ("range", 0, 4096),
            *(("search", min(k, len(self.rows)), b) for k in ks for b in (512, 1024, 4096)),
        ]

    def search(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As Peer.search."""
        self.faiss.cvar.distance_compute_blas_database_bs = self.block
        scores, hits = self.index.search(self.rows[rows], k)
        return scores, hits

    def in_range(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Peer.in_range."""
        self.faiss.cvar.distance_compute_blas_database_bs = self.block
        limits, scores, hits = self.index.range_search(self.rows[rows], self.low - self.slack)
        return np.repeat(rows, np.diff(limits.astype(np.int64))), hits, scores


class Torch(Peer):
    """A blocked float32 product by torch, then top-k or all scores above the window's low end."""

    name = "torch"

    def build(self) -> None:
        """The rows as a tensor."""
        import torch

        self.torch = torch
        self.tensor = torch.from_numpy(self.rows)

    def settings(self) -> list[tuple[str, int, int]]:
        """(way, k, scores held at once)."""
        ks = sorted({64} | ({self.neighbours + 16} if self.neighbours else set()))
        return [
            ("range", 0, 1 << 24),
            ("range", 0, 1 << 26),
            *(("search", min(k, len(self.rows)), b) for k in ks for b in (1 << 24, 1 << 26)),
        ]

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Some of the rows, and their scores with all rows, at most `block` scores at once."""
        step = max(1, self.block // len(self.rows))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield part, self.tensor[self.torch.from_numpy(part)] @ self.tensor.T

    def search(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As Peer.search."""
        best = [scores.topk(k, dim=1) for _, scores in self.blocks(rows)]
        return tuple(np.concatenate([getattr(b, part).numpy() for b in best]) for part in ("values", "indices"))  # type: ignore[return-value]

    def in_range(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Peer.in_range."""
        parts = []
        for part, scores in self.blocks(rows):
            query, target = self.torch.nonzero(scores >= self.low - self.slack, as_tuple=True)
            parts.append((part[query.numpy()], target.numpy(), scores[query, target].numpy()))
        return tuple(np.concatenate(c) for c in zip(*parts, strict=True))  # type: ignore[return-value]


def drawn_rows(n: int, count: int) -> np.ndarray:
    """`count` of n row numbers, drawn at random, rising."""
    return np.sort(np.random.default_rng(3).permutation(n)[:count])


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
    parser.add_argument(
        "--peer-queries", "--faiss-queries", type=int, help="rows that the peers answer for, a count (default: all)"
    )
    parser.add_argument(
        "--neighbours", type=int, help="nearest of each row alone; all pairs of the window when left out"
    )
    parser.add_argument("--folder", type=Path, default=Path(".run/benchmarks"), help="where the vectors are kept")
    args = parse_arguments(parser, argv, {"n": 2000})
    if args.device:
        from benchmarks.mine_device import measure

        low, high = 0.8 if args.low is None else args.low, 0.96 if args.high is None else args.high
        return measure(args.device, args.n, args.dims, args.neighbours or 12, low, high)
    if args.rows:
        more = [
            x
            for name in ("low", "high", "neighbours", "folder", "peer_queries")
            if (value := getattr(args, name)) is not None
            for x in (f"--{name.replace('_', '-')}", str(value))
        ]
        return measured_rows(args.rows, more)
    from benchmarks.vectors import stored

    low, high = window_of(args.vectors)
    args.low, args.high = low if args.low is None else args.low, high if args.high is None else args.high
    vectors = np.asarray(stored(args.vectors, args.n, args.folder))
    print(
        f"{args.vectors}: {vectors.shape[0]} x {vectors.shape[1]}, window [{args.low}, {args.high}), "
        f"neighbours {args.neighbours or 'all'}",
        flush=True,
    )
    ours_s, (query, target, _, _) = ours(vectors, args.low, args.high, args.neighbours)
    ours_rss = peak_mib()
    print(f"ours: {ours_s:.2f} CPU-seconds, {len(query)} ordered pairs, peak {ours_rss} MiB", flush=True)
    n = len(vectors)
    count = min(args.peer_queries or n, n)
    compared = np.isin(query, drawn_rows(n, count))
    pairs, query, target = len(query), query[compared], target[compared]
    figures: dict[str, object] = {"is_equal": True}
    seconds: dict[str, float] = {}
    for kind in (Faiss, Torch):
        found, (peer_query, peer_target) = kind(vectors, args.low, args.high, args.neighbours).measure(count)
        is_equal = bool(np.array_equal(query, peer_query) and np.array_equal(target, peer_target))
        seconds[kind.name] = float(str(found[f"{kind.name}_cpu_s"]))
        figures |= {**found, f"ratio_{kind.name}": round(seconds[kind.name] / ours_s, 2)}
        figures["is_equal"] = bool(figures["is_equal"]) and is_equal
    fastest = min(seconds, key=lambda name: seconds[name])
    figures |= {
        "n": n,
        "dims": vectors.shape[1],
        "vectors": args.vectors,
        "neighbours": args.neighbours,
        "ours_cpu_s": round(ours_s, 3),
        "peer": fastest,
        "ratio": round(seconds[fastest] / ours_s, 2),
        "pairs": pairs,
        "rss_mib": ours_rss,
        "faiss_queries": count,
        "peer_queries": count,
        "is_extrapolated": count < n,
    }
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("mine")
    sys.exit(0 if main()["is_equal"] else 1)
