"""Rows of unit length: how vectors are normalised, and how a stored one is recognised.

Every similarity in this project is the inner product of unit rows, so all encoders and retrievers normalise here.
"""

from __future__ import annotations

import numpy as np

UNIT_TOLERANCE = 5e-3  # of a stored row's length; rounding a unit row to float16 moves its length by up to 1e-3


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, computed in float64.

    Args:
        vectors: (n, d), any float type.
    Returns:
        (n, d) float32; rows that are zero or not finite are returned unchanged, so that the caller can drop them.
    """
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    return np.where(usable, vectors / np.where(usable, lengths, 1), vectors).astype(np.float32)


def are_unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Which rows are finite and of unit length up to `UNIT_TOLERANCE`.

    Args:
        vectors: (n, d), any float type.
    Returns:
        (n,) bool.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)
        return np.isfinite(lengths) & (np.abs(lengths - 1) < UNIT_TOLERANCE)
