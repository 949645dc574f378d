"""Matrices of float16 unit rows, and their exact similarities in float64."""

from __future__ import annotations

import sys
from typing import Any, Protocol

import numpy as np

BLOCK_COORDINATES = 1 << 18  # coordinates at a time when pairs are scored: they stay in a processor's cache


class Rows(Protocol):
    """A matrix (n, d) float16: a numpy array, or one that reads rows from files on demand (`store.MappedRows`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray, axis: Any = 0) -> np.ndarray:
        """Rows by index, (m, d) float16."""
        ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def to_array(rows: Rows) -> np.ndarray:
    """All rows in memory, (n, d) float16."""
    return rows if isinstance(rows, np.ndarray) else rows[np.arange(len(rows))]


def to_float32(rows: np.ndarray, is_writable_copy: bool = False) -> np.ndarray:
    """float16 as float32: by torch where it is loaded (0.07 us for 512 numbers), else by numpy (0.87 us).

    Args:
        rows: float16 (other types are converted by numpy).
        is_writable_copy: `rows` is contiguous and used by no other code, so torch needs no copy of it.
    """
    torch = sys.modules.get("torch")
    if torch is None or rows.dtype != np.float16:
        return rows.astype(np.float32)
    return torch.from_numpy(rows if is_writable_copy else np.require(rows, requirements=["C", "W"])).float().numpy()


def exact_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of row i of `a` and row i of `b`, (m,) float64; exact for float16 unit rows.

    Args:
        a: (m, d) float16.
        b: (m, d) float16.
    """
    rows = np.arange(len(a))
    return exact_similarity_at(a, b, rows, rows)


def exact_similarity_at(queries: Rows, targets: Rows, query_rows: np.ndarray, target_rows: np.ndarray) -> np.ndarray:
    """`exact_similarity` of queries[query_rows] and targets[target_rows], (m,) float64, read a block at a time.

    Args:
        queries, targets: (n, d) float16 each.
        query_rows, target_rows: (m,) int64.
    """
    result = np.empty(len(query_rows), np.float64)
    step = max(1, BLOCK_COORDINATES // max(1, queries.shape[1]))
    for start in range(0, len(result), step):
        block = slice(start, start + step)
        products = to_float32(queries.take(query_rows[block], axis=0), is_writable_copy=True)
        # a product of two float16 numbers has 22 bits, float32 holds 24: exact
        products *= to_float32(targets.take(target_rows[block], axis=0), is_writable_copy=True)
        result[block] = products.sum(axis=1, dtype=np.float64)
    return result
