"""Exact nearest neighbours inside a window of cosine similarity, by rank.

Pure functions over float16 unit rows. What decides - window, rank, ties - is the inner product in float64, which for
float16
rows is exact: a product of two float16 numbers of at most 1 is a multiple of 2^-48, so sums below 16 fit a float64's 53
bits whatever the order of summation. So every backend, screen, block size and number of parts gives the same rows.

Exact backends propose. `blocked`, the default, looks at every pair of rows once and offers it to both ends, in blocks,
behind a screen with a proven bound (tasks/knn/int8_screen.py); a row that has its k neighbours raises its own floor, so
that a wide window costs little. `faiss-flat` asks FAISS's IndexFlatIP (float32) for more than k and asks again where
that does not settle it. `faiss-ivf` and `faiss-hnsw` are approximate: what they propose is scored exactly, what they
miss is missed; mine measures how much and keeps the recall with the run's figures. No backend holds n x n, and
`memory_mib` bounds what a join needs beside its vectors, codes and result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.errors import DataError
from tasks.knn.blocked_join import _blocked, _Collector, _Job
from tasks.knn.choose_screen import load_for
from tasks.knn.codes import Coded
from tasks.knn.exact import Found, Rows, _empty, _in_order, in_memory, widened
from tasks.knn.faiss_index import Backend, _faiss, _faiss_part
from tasks.knn.torch_join import Limits, join_on_device


def _check(vectors: Rows, what: str) -> None:
    for start in range(0, len(vectors), 1024):
        block = widened(vectors[start : start + 1024])
        good = np.abs(np.sqrt(np.einsum("nd,nd->n", block, block)) - 1) < 5e-3
        if not good.all():
            row = int(np.argmin(good))
            raise DataError(
                f"knn: {what} row {start + row} has length {np.linalg.norm(block[row]):.4f}, expected 1; embed that shard again"
            )


def neighbours_in_window(
    queries: np.ndarray,
    targets: np.ndarray,
    query_keys: Sequence[str],
    target_keys: Sequence[str],
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int = 1,
    backend: Backend = "blocked",
    memory_mib: int = 1024,
    screen: str = "auto",
) -> Found:
    """The nearest targets of each query among those inside the window.

    Args:
        queries: (m, d) float16, rows of unit length.
        targets: (n, d) float16, rows of unit length.
        query_keys: (m) ids; a target of the same id is the query itself and no neighbour.
        target_keys: (n) ids, each once; equal similarities are ordered by them.
        low: lowest cosine similarity, low <= s < high.
        high: similarities from here on are copies: passed over, they take no rank.
        neighbours: most neighbours of a query, a count.
        threads: CPU threads of the search, a count.
        backend: blocked, torch, faiss-flat, with the same rows from all; or faiss-ivf, faiss-hnsw, which may miss some.
        memory_mib: what the blocked join may take beside vectors, codes and result, MiB.
        screen: auto, int8 or float32 (tasks/knn/int8_screen.py); the same rows from all. `torch:<device>` says where
            backend torch works.
    Returns:
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then
        rank.
    Raises:
        DataError: a row is not of unit length, or widths differ.
    """
    m, n = len(queries), len(targets)
    if m == 0 or n == 0:
        return _empty()
    if queries.shape[1] != targets.shape[1]:
        raise DataError(
            f"knn: queries are {queries.shape[1]} wide, targets {targets.shape[1]}; vectors of two models in one index"
        )
    load_for(m * n, queries.shape[1])
    _check(queries, "query")
    if targets is not queries:
        _check(targets, "target")
    order = np.argsort(np.asarray(target_keys, dtype=object), kind="stable")
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    itself = dict(zip(target_keys, range(n), strict=True))
    own = np.array([itself.get(k, -1) for k in query_keys], np.int64)
    if backend.startswith("faiss"):
        return _faiss(
            queries, targets, own, place, low=low, high=high, neighbours=neighbours, threads=threads, backend=backend
        )
    both_ways = queries is targets and np.array_equal(own, np.arange(n))
    floors = np.full(m, low, np.float64)
    rows = np.arange(m)
    job = _Job(rows, rows, is_self=True) if both_ways else _Job(rows, np.arange(n))
    if backend == "torch":
        limits = Limits(low, high, neighbours, memory_mib)
        return join_on_device(
            queries, targets, [job], floors, place, own, limits, both_ways=both_ways, device=device_of(screen)
        )
    collector = _Collector(floors, place, neighbours, memory_mib)
    target_floors = floors if both_ways else np.full(n, np.inf)
    _blocked(
        queries,
        targets,
        [job],
        collector,
        target_floors,
        own,
        low=low,
        high=high,
        threads=threads,
        memory_mib=memory_mib,
        screen=screen,
    )
    return collector.result()


def join_in_window(
    vectors: Rows,
    is_new: np.ndarray,
    asked: np.ndarray,
    place: np.ndarray | None = None,
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int = 1,
    backend: Backend = "blocked",
    memory_mib: int = 1024,
    screen: str = "auto",
    coded: Coded | None = None,
) -> Found:
    """The weekly join: for each new row asked for its nearest among all rows, for each old one its nearest among the
    new.

    The work is new x all: a pair of two old rows is never looked at, any other pair once for both its ends (the full
    build is the case where every row is new, and costs half a product). Where only some rows are asked for, pairs with
    the others serve one end.

    Args:
        vectors: (n, d) float16, rows of unit length.
        is_new: (n,) bool.
        asked: (m,) int64, rows whose neighbours are wanted, each once.
        place: (n,) int64, order of the rows' ids, which decides ties; the rows' own order when absent.
        low, high, neighbours, threads, backend, memory_mib, screen: as for `neighbours_in_window`.
        coded: the rows' codes, where they are stored; of another corpus they would cost pairs.
    Returns:
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then
        rank.
    Raises:
        DataError: a row is not of unit length.
    """
    n = len(vectors)
    asked = np.sort(asked)
    place = np.arange(n) if place is None else place
    if len(asked) == 0 or not is_new.any():
        return _empty()
    load_for(len(asked) * int(is_new.sum()), vectors.shape[1])
    if coded is None:
        _check(vectors, "stored")
    elif len(coded.codes.norm2) != n or bool((np.abs(np.sqrt(coded.codes.norm2) - 1) >= 5e-3).any()):
        raise DataError(
            f"knn: codes of {len(coded.codes.norm2)} rows for {n}, or of rows that are no unit vectors; remove the codes and mine again"
        )
    asked_new, asked_old = asked[is_new[asked]], asked[~is_new[asked]]
    if backend.startswith("faiss"):
        sides = ((asked_new, np.arange(n)), (asked_old, np.flatnonzero(is_new)))
        return _in_order(
            [
                _faiss_part(
                    vectors, place, q, t, low=low, high=high, neighbours=neighbours, threads=threads, backend=backend
                )
                for q, t in sides
            ]
        )
    floors = np.full(n, np.inf)
    floors[asked] = low
    rest = np.ones(n, bool)
    rest[asked] = False
    jobs = [
        _Job(asked_new, asked_new, is_self=True),
        _Job(asked_old, asked_new),
        _Job(np.flatnonzero(rest), asked_new),
        _Job(asked_old, np.flatnonzero(rest & is_new)),
    ]
    if backend == "torch":
        limits = Limits(low, high, neighbours, memory_mib)
        return join_on_device(
            whole := in_memory(vectors),
            whole,
            jobs,
            floors,
            place,
            None,
            limits,
            both_ways=True,
            device=device_of(screen),
        )
    collector = _Collector(floors, place, neighbours, memory_mib)
    _blocked(
        vectors,
        vectors,
        jobs,
        collector,
        floors,
        None,
        low=low,
        high=high,
        threads=threads,
        memory_mib=memory_mib,
        screen=screen,
        coded=coded,
    )
    return collector.result()


def device_of(screen: str) -> str | None:
    """The torch device that a screen's name asks for: 'torch:cuda:1' -> 'cuda:1'; None where it names none."""
    return screen.partition(":")[2] or None if screen.startswith("torch") else None


# --- blocked ----------------------------------------------------------------------------------------------------------


# --- FAISS ------------------------------------------------------------------------------------------------------------
