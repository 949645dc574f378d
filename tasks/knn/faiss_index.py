"""FAISS backends of the neighbour search: flat (exact), IVF and HNSW (approximate)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from tasks.knn.exact import Found, Rows, _empty, exact_of_rows

Backend = Literal["blocked", "torch", "faiss-flat", "faiss-ivf", "faiss-hnsw"]
APPROXIMATE = ("faiss-ivf", "faiss-hnsw")

FAISS_SCORES = 1 << 22  # (query, proposal) scores in memory at a time
FAISS_COORDINATES = 1 << 24
IVF_PROBED = 16  # one list in so many is looked at, at least 8
# links of a row; rows kept while building and searching, at least twice the proposals
HNSW_LINKS, HNSW_BREADTH = 32, 128


def _faiss_part(
    vectors: Rows,
    place: np.ndarray,
    query_rows: np.ndarray,
    target_rows: np.ndarray,
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int,
    backend: Backend,
) -> Found:
    """`_faiss` on some rows of one matrix."""
    own = np.searchsorted(target_rows, query_rows)
    own[(own == len(target_rows)) | (target_rows[np.minimum(own, len(target_rows) - 1)] != query_rows)] = -1
    found = _faiss(
        vectors[query_rows],
        vectors[target_rows],
        own,
        place[target_rows],
        low=low,
        high=high,
        neighbours=neighbours,
        threads=threads,
        backend=backend,
    )
    return query_rows[found[0]], target_rows[found[1]], found[2], found[3]


def _faiss_index(targets: np.ndarray, backend: Backend, proposals: int) -> Any:
    """The index of a backend over (n, d) float16 rows. One thread at a time builds it the same way every time."""
    import faiss

    n, d = targets.shape
    rows = np.ascontiguousarray(targets, dtype=np.float32)
    lists = min(int(4 * np.sqrt(n)), n // 39)  # k-means wants 39 rows a list
    if backend == "faiss-ivf" and lists > 1:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.nprobe = min(lists, max(8, lists // IVF_PROBED))
    elif backend == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(d, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BREADTH
        index.hnsw.efSearch = max(HNSW_BREADTH, 2 * proposals)
    else:
        index = faiss.IndexFlatIP(d)
    index.add(rows)
    return index


def _faiss(
    queries: np.ndarray,
    targets: np.ndarray,
    own: np.ndarray,
    place: np.ndarray,
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int,
    backend: Backend = "faiss-flat",
) -> Found:
    """`neighbours_in_window` by FAISS: own (m,) the target row that a query is or -1, place (n,) the order of the
    targets' ids.

    An approximate index is asked once: it has no bound on what it did not propose.
    """
    import faiss

    m, n, d = len(queries), len(targets), queries.shape[1]
    if m == 0 or n == 0:
        return _empty()
    slack = (d + 8) * 2.0**-23  # bound of a float32 inner product's error
    faiss.omp_set_num_threads(threads)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    todo, proposals = np.arange(m), min(n, 2 * neighbours + 8)
    is_exact = backend not in APPROXIMATE
    index = _faiss_index(targets, backend, proposals)
    while len(todo):
        again = []
        step = max(1, min(FAISS_SCORES // proposals, FAISS_COORDINATES // (proposals * d)))
        for start in range(0, len(todo), step):
            rows = todo[start : start + step]
            # (b, proposals)
            scores, hits = index.search(np.ascontiguousarray(queries[rows], dtype=np.float32), proposals)
            exact = exact_of_rows(queries, targets, np.repeat(rows, proposals), np.maximum(hits, 0).ravel()).reshape(
                hits.shape
            )
            for row, hit, similarity, last in zip(rows, hits, exact, scores[:, -1], strict=True):
                # -1: nothing more was found
                inside = (similarity >= low) & (similarity < high) & (hit != own[row]) & (hit >= 0)
                hit, similarity = hit[inside], similarity[inside]
                by_rank = np.lexsort((place[hit], -similarity))[:neighbours]
                hit, similarity = hit[by_rank], similarity[by_rank]
                unseen = float(last) + slack  # nothing that was not proposed is nearer than this
                if (
                    not is_exact
                    or proposals == n
                    or unseen < low
                    or (len(hit) == neighbours and similarity[-1] > unseen)
                ):
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
