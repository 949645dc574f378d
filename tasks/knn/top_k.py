"""The k nearest rows of a few queries, exactly: float32 products propose, float64 decides (as tasks/knn/search.py).

For interactive search, where a query must be answered at once and no window bounds the similarity.

The rows are read from memory once for all queries: a block that stays in a processor's cache is multiplied by one query
after the other. One matrix product of few queries costs four times as much, because BLAS copies the rows into its own
layout first (docs/decisions/0135-composed-search.md).
"""

from __future__ import annotations

import numpy as np

from tasks.errors import DataError
from tasks.knn.exact import exact_similarity_at, to_float32

BLOCK_COORDINATES = 1 << 16  # of the rows that are compared at a time: 256 KiB of float32
MARGIN = 1e-3  # float32 sums of d products of float16 unit rows stray by less, up to d = 8,192


def nearest_rows(queries: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top_k` rows of the highest inner product with each query; of equal ones the earlier row.

    Args:
        queries: (m, d) float16, unit rows.
        rows: (n, d) float16, unit rows. A (n, d) float32 array that holds float16 values saves the conversion.
        top_k: a count of at least 1; no more than n are returned.
    Returns:
        (m, k) int64 rows and (m, k) float64 similarities, the highest first; k = min(top_k, n).
    Raises:
        DataError: the widths differ.
    """
    if queries.shape[1] != rows.shape[1]:
        raise DataError(f"knn: queries have {queries.shape[1]} dimensions, rows {rows.shape[1]}; encode both alike")
    count = min(top_k, len(rows))
    if not count:
        return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
    scores = _similarities(to_float32(queries), rows)
    places = np.empty((len(queries), count), np.int64)
    similarities = np.empty((len(queries), count), np.float64)
    for n, row in enumerate(scores):
        threshold = np.partition(row, -count)[-count] - MARGIN
        candidates = np.nonzero(row >= threshold)[0]
        exact = exact_similarity_at(queries, rows, np.full(len(candidates), n), candidates)
        order = np.lexsort((candidates, -exact))[:count]
        places[n], similarities[n] = candidates[order], exact[order]
    return places, similarities


def _similarities(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(m, n) float32 inner products of (m, d) float32 queries and (n, d) float16 or float32 rows."""
    scores = np.empty((len(queries), len(rows)), np.float32)
    step = max(1, BLOCK_COORDINATES // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        wide = block if block.dtype == np.float32 else to_float32(block)
        for query, line in zip(queries, scores, strict=True):
            np.dot(wide, query, out=line[start : start + step])
    return scores
