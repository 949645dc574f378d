"""The result of a neighbour search: its columns, the order of its rows, and recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SORT_BLOCK = 1 << 16  # candidates whose sort keys are made at a time: what lies between stays in a processor's cache
MIN_SIMILARITY_BITS = 12  # of a sort key; with fewer, three keys are sorted instead of one


class Neighbours(NamedTuple):
    """Neighbours of query rows, by query row, then rank.

    Attributes:
        query_rows: (p,) int64.
        target_rows: (p,) int64.
        similarity: (p,) float64, cosine.
        rank: (p,) int32, from 0, the nearest.
    """

    query_rows: np.ndarray
    target_rows: np.ndarray
    similarity: np.ndarray
    rank: np.ndarray

    @classmethod
    def none(cls) -> Neighbours:
        """No neighbours of any query."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int32))

    @classmethod
    def concatenated(cls, parts: Sequence[Neighbours]) -> Neighbours:
        """The neighbours of disjoint sets of queries as one result."""
        columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return cls(*(column[order] for column in columns))


def recall(approximate: Neighbours, exact: Neighbours) -> float:
    """Share of the exact (query, target) pairs that the approximate result holds; 1 where there are none.

    Args:
        approximate, exact: results for the same queries.
    """
    wanted = set(zip(exact.query_rows.tolist(), exact.target_rows.tolist(), strict=True))
    got = set(zip(approximate.query_rows.tolist(), approximate.target_rows.tolist(), strict=True))
    return len(wanted & got) / len(wanted) if wanted else 1.0


def rank_order(
    rows: np.ndarray, similarities: np.ndarray, targets: np.ndarray, tie_rank: np.ndarray | None = None
) -> np.ndarray:
    """The order of candidates by row, then falling similarity, then the target's tie rank.

    One sort of 64-bit integers: the row in the high bits, then the similarity cut to the bits that are left (which
    keeps its order), then the candidate's index. Candidates that are equal up to the index are then compared exactly.
    Eight million take 0.6 s this way, 4.6 s by three keys.

    Args:
        rows: (p,) integers from 0.
        similarities: (p,) float64.
        targets: (p,) integers, indices into `tie_rank`.
        tie_rank: int64, the rank of each target's id; the targets themselves when absent.
    Returns:
        (p,) int64.
    """
    count = len(rows)
    index_bits = max(count - 1, 0).bit_length()
    bits = min(63 - int(rows.max(initial=0)).bit_length() - index_bits, 40)
    if bits < MIN_SIMILARITY_BITS or not count:
        return np.lexsort((targets if tie_rank is None else tie_rank[targets], -similarities, rows))
    highest = similarities.max()
    scale = (2.0**bits - 1) / ((highest - similarities.min()) or 1.0)
    keys = np.empty(count, np.int64)
    for start in range(0, count, SORT_BLOCK):
        block = slice(start, start + SORT_BLOCK)
        key = rows[block].astype(np.int64)
        key <<= bits
        key |= ((highest - similarities[block]) * scale).astype(np.int64)  # 0 is the nearest
        key <<= index_bits
        key |= np.arange(start, start + len(key))
        keys[block] = key
    keys.sort()
    order = keys & (1 << index_bits) - 1
    keys >>= index_bits
    equals_next = keys[1:] == keys[:-1]
    if equals_next.any():
        is_tied = np.zeros(count, bool)
        is_tied[1:] |= equals_next
        is_tied[:-1] |= equals_next
        at = np.flatnonzero(is_tied)
        tied = order[at]
        ties = targets[tied] if tie_rank is None else tie_rank[targets[tied]]
        order[at] = tied[np.lexsort((ties, -similarities[tied], keys[at]))]
    return order
