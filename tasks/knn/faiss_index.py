"""FAISS backends of the neighbour search: flat (exact), IVF and HNSW (approximate).

An index proposes; what it proposes is scored exactly. The flat index is asked again, for four times as many, until
nothing that it left out can be among the k nearest. An approximate index is asked once: it has no bound on what it did
not propose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.knn.exact import Rows, exact_similarity_at, to_array
from tasks.knn.join_input import JoinSides
from tasks.knn.neighbours import Neighbours
from tasks.knn.spec import APPROXIMATE_BACKENDS, Backend, SearchSpec, in_window

BLOCK_SCORES = 1 << 22  # (query, proposal) scores in memory at a time
BLOCK_COORDINATES = 1 << 24
IVF_PROBE_SHARE = 16  # one list in so many is searched, at least IVF_MIN_PROBES
IVF_MIN_PROBES = 8
IVF_ROWS_PER_LIST = 39  # k-means asks for so many
# links of a row; rows kept while building and searching, at least twice the proposals
HNSW_LINKS, HNSW_BREADTH = 32, 128

_Row = tuple[np.ndarray, np.ndarray]  # a query's targets and their similarities, by rank


def faiss_search_rows(
    vectors: Rows, tie_rank: np.ndarray, query_rows: np.ndarray, target_rows: np.ndarray, spec: SearchSpec
) -> Neighbours:
    """`faiss_search` between some rows of one matrix; the result has the matrix's row numbers.

    Args:
        vectors: (n, d) float16.
        tie_rank: (n,) int64, rank of the rows' ids.
        query_rows, target_rows: (a,) and (b,) int64, rising.
        spec: window, k, backend and threads.
    """
    self_index = np.searchsorted(target_rows, query_rows)
    at = np.minimum(self_index, len(target_rows) - 1)
    self_index[(self_index == len(target_rows)) | (target_rows[at] != query_rows)] = -1
    sides = JoinSides(vectors[query_rows], vectors[target_rows], tie_rank[target_rows], self_index)
    result = faiss_search(sides, spec)
    return result._replace(query_rows=query_rows[result.query_rows], target_rows=target_rows[result.target_rows])


def _build_index(targets: np.ndarray, backend: Backend, proposals: int) -> Any:
    """The index of a backend over (n, d) float16 rows. One thread at a time builds it the same way every time."""
    import faiss

    n, d = targets.shape
    rows = np.ascontiguousarray(targets, dtype=np.float32)
    lists = min(int(4 * np.sqrt(n)), n // IVF_ROWS_PER_LIST)
    if backend == "faiss-ivf" and lists > 1:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.nprobe = min(lists, max(IVF_MIN_PROBES, lists // IVF_PROBE_SHARE))
    elif backend == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(d, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BREADTH
        index.hnsw.efSearch = max(HNSW_BREADTH, 2 * proposals)
    else:
        index = faiss.IndexFlatIP(d)
    index.add(rows)
    return index


def _rank_proposals(
    sides: JoinSides, spec: SearchSpec, rows: np.ndarray, scores: np.ndarray, hits: np.ndarray
) -> tuple[dict[int, _Row], list[int]]:
    """The exact neighbours of some queries from what an index proposed, and the queries that it must be asked again.

    Args:
        rows: (b,) int64, the queries.
        scores, hits: (b, proposals) float32 and int64, as FAISS gives them; a hit is -1 where it found no more.
    """
    proposals, n = hits.shape[1], len(sides.targets)
    error_bound = (sides.queries.shape[1] + 8) * 2.0**-23  # of a float32 inner product
    assert sides.self_index is not None
    exact = exact_similarity_at(
        sides.queries, sides.targets, np.repeat(rows, proposals), np.maximum(hits, 0).ravel()
    ).reshape(hits.shape)
    ranked: dict[int, _Row] = {}
    again: list[int] = []
    for row, hit, similarity, last_score in zip(rows.tolist(), hits, exact, scores[:, -1], strict=True):
        inside = in_window(similarity, spec.window) & (hit != sides.self_index[row]) & (hit >= 0)
        hit, similarity = hit[inside], similarity[inside]
        by_rank = np.lexsort((sides.tie_rank[hit], -similarity))[: spec.top_k]
        hit, similarity = hit[by_rank], similarity[by_rank]
        unseen = float(last_score) + error_bound  # nothing that was not proposed is nearer than this
        is_complete = proposals == n or unseen < spec.window.low
        is_settled = len(hit) == spec.top_k and similarity[-1] > unseen
        if spec.backend in APPROXIMATE_BACKENDS or is_complete or is_settled:
            ranked[row] = (hit, similarity)
        else:
            again.append(row)
    return ranked, again


def faiss_search(sides: JoinSides, spec: SearchSpec) -> Neighbours:
    """The neighbours of all queries by an index over the targets.

    Args:
        sides: both in memory, with `self_index`.
        spec: window, k, backend and threads.
    """
    import faiss

    queries, targets = to_array(sides.queries), to_array(sides.targets)
    m, n, d = len(queries), len(targets), queries.shape[1]
    if m == 0 or n == 0:
        return Neighbours.none()
    faiss.omp_set_num_threads(spec.threads)
    ranked: dict[int, _Row] = {}
    todo, proposals = np.arange(m), min(n, 2 * spec.top_k + 8)
    index = _build_index(targets, spec.backend, proposals)
    while len(todo):
        again: list[int] = []
        step = max(1, min(BLOCK_SCORES // proposals, BLOCK_COORDINATES // (proposals * d)))
        for start in range(0, len(todo), step):
            rows = todo[start : start + step]
            scores, hits = index.search(np.ascontiguousarray(queries[rows], dtype=np.float32), proposals)
            settled, unsettled = _rank_proposals(sides, spec, rows, scores, hits)
            ranked.update(settled)
            again += unsettled
        todo, proposals = np.array(again, np.int64), min(n, proposals * 4)
    counts = [len(ranked[row][0]) for row in range(m)]
    return Neighbours(
        np.repeat(np.arange(m), counts),
        np.concatenate([ranked[row][0] for row in range(m)]).astype(np.int64),
        np.concatenate([ranked[row][1] for row in range(m)]),
        np.concatenate([np.arange(c, dtype=np.int32) for c in counts]),
    )
