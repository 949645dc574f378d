"""Exact nearest neighbours inside a window of cosine similarity, by rank.

Pure functions over float16 unit rows. Window, rank and ties are decided by the inner product in float64, which for
float16 rows is exact: a product of two float16 numbers of at most 1 is a multiple of 2^-48, so sums below 16 fit a
float64's 53 bits in any order of summation. So every backend, prefilter, block size and number of parts gives the same
rows.

Backends (`SearchSpec.backend`) propose pairs, and the proposals are scored exactly:

    blocked               the default: compares every pair of rows once, for both ends, in blocks, behind a prefilter
                          with a proven bound (tasks/knn/int8_prefilter.py). Once a row has top_k neighbours, its
                          threshold rises to the k-th similarity, so a wide window costs little.
    torch                 the same join on a GPU (tasks/knn/torch_join.py).
    faiss-flat            asks FAISS's IndexFlatIP (float32) for more than k, and again where that does not settle it.
    faiss-ivf, faiss-hnsw approximate: what they miss is missed; mine measures the recall and keeps it with the run's
                          figures.

No backend holds an n x n matrix, and `memory_mib` bounds what a join needs beside its vectors, codes and result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.errors import DataError
from tasks.knn.blocked_join import blocked_join
from tasks.knn.choose_prefilter import load_torch_if_large
from tasks.knn.codes import CodedRows
from tasks.knn.exact import Rows, to_float32
from tasks.knn.faiss_index import faiss_search, faiss_search_rows
from tasks.knn.join_input import JoinSides, PairBlock
from tasks.knn.neighbours import Neighbours
from tasks.knn.spec import SearchSpec
from tasks.knn.torch_join import torch_join
from tasks.knn.unit_rows import UNIT_TOLERANCE

CHECK_ROWS = 1024  # rows whose lengths are checked at a time


def _require_unit_rows(vectors: Rows, side: str) -> None:
    for start in range(0, len(vectors), CHECK_ROWS):
        block = to_float32(vectors[start : start + CHECK_ROWS])
        is_unit = np.abs(np.sqrt(np.einsum("nd,nd->n", block, block)) - 1) < UNIT_TOLERANCE
        if not is_unit.all():
            row = int(np.argmin(is_unit))
            raise DataError(
                f"knn: {side} row {start + row} has length {np.linalg.norm(block[row]):.4f}, expected 1; "
                "embed that shard again"
            )


def neighbours_in_window(
    queries: np.ndarray,
    targets: np.ndarray,
    query_keys: Sequence[str],
    target_keys: Sequence[str],
    spec: SearchSpec,
) -> Neighbours:
    """The nearest targets of each query among those inside the window.

    Args:
        queries: (m, d) float16, rows of unit length.
        targets: (n, d) float16, rows of unit length.
        query_keys: (m) ids; a target of the same id is the query itself and no neighbour.
        target_keys: (n) distinct ids; equal similarities are ordered by them.
        spec: window, k, backend, threads, memory and prefilter.
    Returns:
        The neighbours by query, then rank.
    Raises:
        DataError: a row is not of unit length, or widths differ.

    With unit vectors at 0, 30 and 90 degrees as rows of `vectors` and `Window(low=0.8, high=0.96)`:

        spec = SearchSpec(Window(low=0.8, high=0.96), top_k=3)
        neighbours_in_window(vectors, vectors, ["a", "b", "c"], ["a", "b", "c"], spec)
        # query_rows [0, 1], target_rows [1, 0], similarity [0.866, 0.866], rank [0, 0]
    """
    m, n = len(queries), len(targets)
    if m == 0 or n == 0:
        return Neighbours.none()
    if queries.shape[1] != targets.shape[1]:
        raise DataError(
            f"knn: queries are {queries.shape[1]} wide, targets {targets.shape[1]}: vectors of two models; "
            "expected one width; embed both with one model"
        )
    load_torch_if_large(m * n, queries.shape[1])
    _require_unit_rows(queries, "query")
    if targets is not queries:
        _require_unit_rows(targets, "target")
    tie_rank = np.empty(n, np.int64)
    tie_rank[np.argsort(np.asarray(target_keys, dtype=object), kind="stable")] = np.arange(n)
    index_of_key = dict(zip(target_keys, range(n), strict=True))
    self_index = np.array([index_of_key.get(k, -1) for k in query_keys], np.int64)
    is_symmetric = queries is targets and np.array_equal(self_index, np.arange(n))
    sides = JoinSides(queries, targets, tie_rank, self_index, is_symmetric)
    if spec.backend.startswith("faiss"):
        return faiss_search(sides, spec)
    rows = np.arange(m)
    blocks = [PairBlock(rows, rows, is_self=True) if is_symmetric else PairBlock(rows, np.arange(n))]
    join = torch_join if spec.backend == "torch" else blocked_join
    return join(sides, blocks, np.full(m, spec.window.low, np.float64), spec)


def join_in_window(
    vectors: Rows,
    is_new: np.ndarray,
    query_rows: np.ndarray,
    spec: SearchSpec,
    *,
    tie_rank: np.ndarray | None = None,
    coded: CodedRows | None = None,
) -> Neighbours:
    """The incremental self-join: for each new query its nearest among all rows, for each old one its nearest among the
    new rows.

    The work is new x all: a pair of two old rows is never compared, any other pair once for both its ends (the full
    build is the case where every row is new, and costs half a product). Where only some rows are queries, pairs with
    the others count for one end.

    Args:
        vectors: (n, d) float16, rows of unit length.
        is_new: (n,) bool.
        query_rows: (m,) int64, distinct rows whose neighbours are wanted.
        spec: window, k, backend, threads, memory and prefilter.
        tie_rank: (n,) int64, rank of the rows' ids, which orders equal similarities; the rows' own order when absent.
        coded: the rows' codes, where they are stored; codes of another corpus would lose pairs.
    Returns:
        The neighbours by query, then rank.
    Raises:
        DataError: a row is not of unit length.
    """
    n = len(vectors)
    query_rows = np.sort(query_rows)
    tie_rank = np.arange(n) if tie_rank is None else tie_rank
    if len(query_rows) == 0 or not is_new.any():
        return Neighbours.none()
    load_torch_if_large(len(query_rows) * int(is_new.sum()), vectors.shape[1])
    if coded is None:
        _require_unit_rows(vectors, "stored")
    else:
        _require_codes(coded, n)
    new_queries, old_queries = query_rows[is_new[query_rows]], query_rows[~is_new[query_rows]]
    if spec.backend.startswith("faiss"):
        return Neighbours.concatenated(
            [
                faiss_search_rows(vectors, tie_rank, new_queries, np.arange(n), spec),
                faiss_search_rows(vectors, tie_rank, old_queries, np.flatnonzero(is_new), spec),
            ]
        )
    thresholds = np.full(n, np.inf)
    thresholds[query_rows] = spec.window.low
    is_other = np.ones(n, bool)
    is_other[query_rows] = False
    blocks = [
        PairBlock(new_queries, new_queries, is_self=True),
        PairBlock(old_queries, new_queries),
        PairBlock(np.flatnonzero(is_other), new_queries),
        PairBlock(old_queries, np.flatnonzero(is_other & is_new)),
    ]
    sides = JoinSides(vectors, vectors, tie_rank, is_symmetric=True)
    if spec.backend == "torch":
        return torch_join(sides, blocks, thresholds, spec)
    return blocked_join(sides, blocks, thresholds, spec, coded)


def join_block(
    vectors: Rows,
    rows: np.ndarray,
    others: np.ndarray | None,
    thresholds: np.ndarray,
    spec: SearchSpec,
    *,
    tie_rank: np.ndarray,
    coded: CodedRows | None = None,
) -> Neighbours:
    """One block of the self-join: the nearest of each of some rows among some others, and of these among them.

    The nearest of all blocks together are those of the whole join: a row's k nearest are among its k nearest of each
    block. Only these rows are read.

    Args:
        vectors: (n, d) float16, rows of unit length.
        rows: (a,) int64, distinct.
        others: (b,) int64, distinct and none of `rows`; None for the pairs inside `rows`, each compared once.
        thresholds: (n,) float64, the least similarity of a row's neighbour. Once a row has top_k neighbours in this
            block, its threshold rises to the k-th similarity, in place, which saves work in its next blocks.
        spec: window, k, an exact backend other than faiss-flat, threads, memory and prefilter.
        tie_rank: (n,) int64, rank of the rows' ids, which orders equal similarities.
        coded: the rows' codes, where they are stored.
    Returns:
        The neighbours by row of `vectors`, then rank within the block.
    Raises:
        DataError: a row is not of unit length.
    """
    both = rows if others is None else np.concatenate([rows, others])
    local = vectors.take(both, axis=0)
    load_torch_if_large(len(rows) * len(rows if others is None else others), local.shape[1])
    _require_unit_rows(local, "stored")
    first = np.arange(len(rows))
    second = first if others is None else np.arange(len(rows), len(both))
    blocks = [PairBlock(first, second, is_self=others is None)]
    sides = JoinSides(local, local, tie_rank[both], is_symmetric=True)
    local_thresholds = thresholds[both]
    if spec.backend == "torch":
        found = torch_join(sides, blocks, local_thresholds, spec)
    else:
        local_codes = None if coded is None else CodedRows(coded.axes, coded.codes.take(both))
        found = blocked_join(sides, blocks, local_thresholds, spec, local_codes)
        thresholds[both] = local_thresholds
    return found._replace(query_rows=both[found.query_rows], target_rows=both[found.target_rows])


def _require_codes(coded: CodedRows, count: int) -> None:
    """Refuse codes that cannot be of a corpus of `count` unit rows."""
    lengths = np.sqrt(coded.codes.norm2)
    if len(lengths) != count or bool((np.abs(lengths - 1) >= UNIT_TOLERANCE).any()):
        raise DataError(
            f"knn: codes of {len(lengths)} rows, or of rows that are not of unit length; expected {count} unit rows; "
            "remove data/neighbours/<encoder>/codes and mine again"
        )
