"""The prefilter's interface and its float32 implementation.

A prefilter computes approximate products of two blocks of rows, and returns the pairs that may reach a threshold. Its
error has a proven bound, so it may let through a pair that is too far, but never drops one that is near enough. The
bound of the 8-bit prefilter: tasks/knn/int8_prefilter.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tasks.knn.exact import Rows, to_float32

# rows of one product; with TARGET_ROWS others its result (3 MiB) stays in a processor's cache: 0.7 ns a pair, 1.05 with
# 8,192
QUERY_ROWS = 1024
TARGET_ROWS, GPU_TARGET_ROWS = 3072, 65_536
FLOAT_TARGET_ROWS = 2048  # of a float32 product: its result is four times as wide


class Prefilter(Protocol):
    """Two blocks of rows in, the pairs that may reach a threshold out."""

    target_rows: int

    def prepare_queries(self, rows: np.ndarray) -> Any:
        """Prepare some rows of the query side."""
        ...

    def prepare_targets(self, rows: np.ndarray) -> Any:
        """Prepare some rows of the target side; kept for the whole join."""
        ...

    def candidates(
        self, queries: Any, targets: Any, query_thresholds: np.ndarray, target_thresholds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, (k,) each, of every pair whose similarity may reach the lower of its two thresholds.

        Args:
            queries: m rows, of `prepare_queries`.
            targets: n rows, of `prepare_targets`.
            query_thresholds: (m,) float64; inf where the query collects no neighbours.
            target_thresholds: (n,) float64; inf where the target collects no neighbours.
        """
        ...


def deciding_sides(query_thresholds: np.ndarray, target_thresholds: np.ndarray) -> tuple[bool, bool]:
    """Whether a query's threshold, and whether a target's threshold, may be the lower one of a pair."""
    low_query, low_target = float(query_thresholds.min()), float(target_thresholds.min())
    return low_query <= float(target_thresholds.max()) and low_query < np.inf, low_target < float(
        query_thresholds.max()
    )


def flat_positions(by_query: np.ndarray | None, by_target: np.ndarray | None) -> np.ndarray:
    """Flat positions that are set in one of two bool matrices; None is a matrix of False. `by_query` is overwritten."""
    if by_query is None or by_target is None:
        only = by_query if by_target is None else by_target
        return np.flatnonzero(only) if only is not None else np.zeros(0, np.int64)
    return np.flatnonzero(np.logical_or(by_query, by_target, out=by_query))


def rows_and_columns(positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions in a matrix as rows and columns; np.divmod is several times as slow."""
    rows = positions // width
    return rows, positions - rows * width


class Float32Prefilter:
    """A float32 product: over d terms it errs by at most (d + 8) 2^-23 for rows of length at most 1.005."""

    def __init__(self, queries: Rows, targets: Rows) -> None:
        """`queries` (m, d) and `targets` (n, d) float16."""
        self.query_vectors, self.target_vectors = queries, targets
        self.error_bound = (queries.shape[1] + 8) * 2.0**-23
        self.target_rows = FLOAT_TARGET_ROWS

    def prepare_queries(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) float32."""
        return to_float32(self.query_vectors[rows])

    def prepare_targets(self, rows: np.ndarray) -> np.ndarray:
        """The rows' numbers: float32 rows of a whole corpus would not fit, so they are converted block by block."""
        return rows

    def candidates(
        self, queries: np.ndarray, targets: np.ndarray, query_thresholds: np.ndarray, target_thresholds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Prefilter.candidates`."""
        scores = queries @ to_float32(self.target_vectors[targets]).T  # (m, n)
        by_query, by_target = deciding_sides(query_thresholds, target_thresholds)
        margin = self.error_bound
        positions = flat_positions(
            scores >= (query_thresholds - margin - 1e-7).astype(np.float32)[:, None] if by_query else None,
            scores >= (target_thresholds - margin - 1e-7).astype(np.float32)[None, :] if by_target else None,
        )
        return rows_and_columns(positions, scores.shape[1])
