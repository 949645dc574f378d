"""Exact similarities in float64, the order of neighbours, and recall."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # query rows, target rows, similarity, rank

BLOCK_COORDINATES = 1 << 18  # coordinates at a time when pairs are scored: they stay in a processor's cache
ORDERED_AT_ONCE = 1 << 16  # candidates whose sorting numbers are made together
LEAST_LEVEL_BITS = 12  # of a similarity in a sort's key


def exact_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of paired rows, (m,) float64, exact for float16 unit rows.

    Args:
        a: (m, d) float16.
        b: (m, d) float16.
    """
    rows = np.arange(len(a))
    return exact_of_rows(a, b, rows, rows)


def exact_of_rows(queries: Rows, targets: Rows, query_rows: np.ndarray, target_rows: np.ndarray) -> np.ndarray:
    """`exact_similarity` of queries[query_rows] and targets[target_rows], (m,) float64, gathered a little at a time.

    Args:
        queries, targets: (n, d) float16 each.
        query_rows, target_rows: (m,) int64.
    """
    out = np.empty(len(query_rows), np.float64)
    step = max(1, BLOCK_COORDINATES // max(1, queries.shape[1]))
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        products = widened(queries.take(query_rows[some], axis=0), is_own=True)
        products *= widened(targets.take(target_rows[some], axis=0), is_own=True)  # 22 bits of float32's 24: exact
        out[some] = products.sum(axis=1, dtype=np.float64)
    return out


def recall_of(found: Found, exact: Found) -> float:
    """Share of the exact (query, target) pairs that were found; 1 where there are none.

    Args:
        found, exact: rows for the same queries.
    """
    wanted = set(zip(exact[0].tolist(), exact[1].tolist(), strict=True))
    return len(wanted & set(zip(found[0].tolist(), found[1].tolist(), strict=True))) / len(wanted) if wanted else 1.0


def _empty() -> Found:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int32)


def _in_order(parts: Sequence[Found]) -> Found:
    """Results of different queries as one, by query."""
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return columns[0][order], columns[1][order], columns[2][order], columns[3][order]


def order_of(
    rows: np.ndarray, similarities: np.ndarray, targets: np.ndarray, place: np.ndarray | None = None
) -> np.ndarray:
    """The order of candidates by row, falling similarity, place of the target.

    One sort of 64-bit numbers: the row, then the similarity cut to the bits that are left - which keeps its order -,
    then which candidate it is. What is equal but for the last is looked at closely. Eight million take 0.6 s so, 4.6 by
    three keys.

    Args:
        rows: (p,) whole numbers from 0.
        similarities: (p,) float64.
        targets: (p,) whole numbers, places in `place`.
        place: int64, order of the targets' ids; the targets' own when absent.
    Returns:
        (p,) int64.
    """
    count = len(rows)
    own_bits = max(count - 1, 0).bit_length()
    bits = min(63 - int(rows.max(initial=0)).bit_length() - own_bits, 40)
    if bits < LEAST_LEVEL_BITS or not count:
        return np.lexsort((targets if place is None else place[targets], -similarities, rows))
    most = similarities.max()
    scale = (2.0**bits - 1) / ((most - similarities.min()) or 1.0)
    keys = np.empty(count, np.int64)
    for start in range(0, count, ORDERED_AT_ONCE):  # a little at a time: what lies between stays in a processor's cache
        some = slice(start, start + ORDERED_AT_ONCE)
        part = rows[some].astype(np.int64)
        part <<= bits
        part |= ((most - similarities[some]) * scale).astype(np.int64)  # 0 the nearest
        part <<= own_bits
        part |= np.arange(start, start + len(part))
        keys[some] = part
    keys.sort()
    order = keys & (1 << own_bits) - 1
    keys >>= own_bits
    same = keys[1:] == keys[:-1]
    if same.any():
        close = np.zeros(count, bool)
        close[1:] |= same
        close[:-1] |= same
        at = np.flatnonzero(close)
        which = order[at]
        tied = targets[which] if place is None else place[targets[which]]
        order[at] = which[np.lexsort((tied, -similarities[which], keys[at]))]
    return order


def widened(rows: np.ndarray, is_own: bool = False) -> np.ndarray:
    """float16 as float32: by torch where it is loaded (0.07 us for 512 numbers), else by numpy (0.87). `is_own`: a
    copy, in order, that may be written.
    """
    torch = sys.modules.get("torch")
    if torch is None or rows.dtype != np.float16:
        return rows.astype(np.float32)
    return torch.from_numpy(rows if is_own else np.require(rows, requirements=["C", "W"])).float().numpy()


class Rows(Protocol):
    """(n, d) float16: a numpy array, or rows that are mapped from files where they are asked for (`store.MappedRows`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def take(self, indices: np.ndarray, axis: Any = 0) -> np.ndarray: ...
    def __getitem__(self, rows: Any) -> np.ndarray: ...


def in_memory(rows: Rows) -> np.ndarray:
    """(n, d) float16, all of the rows."""
    return rows if isinstance(rows, np.ndarray) else rows[np.arange(len(rows))]
