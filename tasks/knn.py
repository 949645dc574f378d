"""Exact nearest neighbours inside a window of cosine similarity, by rank.

Pure functions over float16 unit rows. FAISS (IndexFlatIP, float32) proposes; what decides - window, rank, ties - is the inner
product in float64, which for float16 rows is exact: a product of two float16 numbers of at most 1 is a multiple of 2^-48,
so sums below 16 fit a float64's 53 bits whatever the order of summation. So every backend and block size gives the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.errors import DataError

BLOCK_SCORES = 1 << 22  # (query, proposal) scores in memory at a time
BLOCK_COORDINATES = 1 << 24  # float64 coordinates in memory at a time when proposals are scored again: 128 MiB


def exact_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of paired rows, (m,) float64, exact for float16 unit rows.

    Args:
        a: (m, d) float16.
        b: (m, d) float16.
    """
    out = np.empty(len(a), np.float64)
    step = max(1, BLOCK_COORDINATES // max(1, a.shape[1]))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        out[rows] = np.einsum("md,md->m", a[rows].astype(np.float64), b[rows].astype(np.float64))
    return out


def _check(vectors: np.ndarray, what: str) -> None:
    if len(vectors) == 0:
        return
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    if not np.all(np.abs(lengths - 1) < 5e-3):
        row = int(np.argmax(~(np.abs(lengths - 1) < 5e-3)))
        raise DataError(f"knn: {what} row {row} has length {lengths[row]:.4f}, expected 1; embed that shard again")


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
    Returns:
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then rank.
    Raises:
        DataError: a row is not of unit length, or widths differ.
    """
    import faiss

    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int32))
    m, n = len(queries), len(targets)
    if m == 0 or n == 0:
        return empty
    if queries.shape[1] != targets.shape[1]:
        raise DataError(f"knn: queries are {queries.shape[1]} wide, targets {targets.shape[1]}; vectors of two models in one index")
    _check(queries, "query")
    _check(targets, "target")
    d = queries.shape[1]
    slack = (d + 8) * 2.0**-23  # bound of a float32 inner product's error
    order = np.argsort(np.asarray(target_keys, dtype=object), kind="stable")
    key_place = np.empty(n, np.int64)
    key_place[order] = np.arange(n)
    itself = dict(zip(target_keys, range(n), strict=True))
    own = np.array([itself.get(k, -1) for k in query_keys], np.int64)
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(d)
    index.add(np.ascontiguousarray(targets, dtype=np.float32))

    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    todo, proposals = np.arange(m), min(n, 2 * neighbours + 8)
    while len(todo):
        again = []
        step = max(1, min(BLOCK_SCORES // proposals, BLOCK_COORDINATES // (proposals * d)))
        for start in range(0, len(todo), step):
            rows = todo[start : start + step]
            scores, hits = index.search(np.ascontiguousarray(queries[rows], dtype=np.float32), proposals)  # (b, proposals)
            flat = hits.ravel()
            exact = exact_similarity(np.repeat(queries[rows], proposals, axis=0), targets[flat]).reshape(hits.shape)
            for row, hit, similarity, last in zip(rows, hits, exact, scores[:, -1], strict=True):
                inside = (similarity >= low) & (similarity < high) & (hit != own[row])
                hit, similarity = hit[inside], similarity[inside]
                by_rank = np.lexsort((key_place[hit], -similarity))[:neighbours]
                hit, similarity = hit[by_rank], similarity[by_rank]
                unseen = float(last) + slack  # nothing that was not proposed is nearer than this
                if proposals == n or unseen < low or (len(hit) == neighbours and similarity[-1] > unseen):
                    found[int(row)] = (hit, similarity)
                else:
                    again.append(row)
        todo, proposals = np.array(again, np.int64), min(n, proposals * 4)
    counts = [len(found[row][0]) for row in range(m)]
    return (
        np.repeat(np.arange(m), counts),
        np.concatenate([found[row][0] for row in range(m)]).astype(np.int64),
        np.concatenate([found[row][1] for row in range(m)]),
        np.concatenate([np.arange(c, dtype=np.int32) for c in counts]),
    )
