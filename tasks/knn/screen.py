"""The prefilter's interface and its float32 implementation."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tasks.knn.exact import Rows, widened

# rows of one product; with TARGET_ROWS others its result (3 MiB) stays in a processor's cache: 0.7 ns a pair, 1.05 with
# 8,192
QUERY_ROWS = 1024
TARGET_ROWS, GPU_TARGET_ROWS = 3072, 65_536
FLOAT_TARGET_ROWS = 2048  # of a float32 product: its result is four times as wide


class Screen(Protocol):
    """Blocks of rows in, pairs that may reach their floor out."""

    target_rows: int

    def queries(self, rows: np.ndarray) -> Any:
        """Prepare some rows of the query side."""
        ...

    def targets(self, rows: np.ndarray) -> Any:
        """Prepare some rows of the target side; kept as long as a join runs."""
        ...

    def hits(
        self, queries: Any, targets: Any, query_floors: np.ndarray, target_floors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (k,) of every pair whose similarity may be at least the lower of its two floors.

        Args:
            queries: (m rows) of `queries`.
            targets: (n rows) of `targets`.
            query_floors: (m,) float64; inf where the query collects nothing.
            target_floors: (n,) float64; inf where the target collects nothing.
        """
        ...


def _which_sides(query_floors: np.ndarray, target_floors: np.ndarray) -> tuple[bool, bool]:
    """Whether a query's floor, and whether a target's floor, may be the lower one."""
    low_query, low_target = float(query_floors.min()), float(target_floors.min())
    return low_query <= float(target_floors.max()) and low_query < np.inf, low_target < float(query_floors.max())


def _flat(queries: np.ndarray | None, targets: np.ndarray | None) -> np.ndarray:
    if queries is None or targets is None:
        only = queries if targets is None else targets
        return np.flatnonzero(only) if only is not None else np.zeros(0, np.int64)
    return np.flatnonzero(np.logical_or(queries, targets, out=queries))


def rows_and_columns(places: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat places in a matrix as rows and columns; np.divmod is several times as slow."""
    rows = places // width
    return rows, places - rows * width


class FloatScreen:
    """A float32 product: over d terms it errs by at most (d + 8) 2^-23 for rows of length at most 1.005."""

    def __init__(self, queries: Rows, targets: Rows) -> None:
        """`queries` (m, d) and `targets` (n, d) float16."""
        self.query_vectors, self.target_vectors = queries, targets
        self.slack = (queries.shape[1] + 8) * 2.0**-23
        self.target_rows = FLOAT_TARGET_ROWS

    def queries(self, rows: np.ndarray) -> np.ndarray:
        return widened(self.query_vectors[rows])

    def targets(self, rows: np.ndarray) -> np.ndarray:
        return rows  # widened when it is their turn: float32 rows of a whole corpus would not fit

    def hits(
        self, queries: np.ndarray, targets: np.ndarray, query_floors: np.ndarray, target_floors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ widened(self.target_vectors[targets]).T  # (m, n)
        by_query, by_target = _which_sides(query_floors, target_floors)
        places = _flat(
            scores >= (query_floors - self.slack - 1e-7).astype(np.float32)[:, None] if by_query else None,
            scores >= (target_floors - self.slack - 1e-7).astype(np.float32)[None, :] if by_target else None,
        )
        return rows_and_columns(places, scores.shape[1])
