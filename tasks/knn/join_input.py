"""What a join compares: two matrices, and blocks of pairs of their rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.knn.exact import Rows


@dataclass(frozen=True)
class JoinSides:
    """The two sides of a join.

    Attributes:
        queries: (m, d) float16 unit rows.
        targets: (n, d) float16 unit rows; the same object as `queries` in a self-join.
        tie_rank: (n,) int64, the rank of each target's id: among equal similarities the lower one comes first.
        self_index: (m,) int64, the target row that holds the query itself, -1 where there is none; None where no pair
            block compares a row with itself.
        is_symmetric: a self-join in which a pair counts for both its rows.
    """

    queries: Rows
    targets: Rows
    tie_rank: np.ndarray
    self_index: np.ndarray | None = None
    is_symmetric: bool = False


@dataclass(frozen=True)
class PairBlock:
    """All pairs of some query rows and some target rows.

    Attributes:
        queries: (a,) int64, rows of the query side.
        targets: (b,) int64, rows of the target side.
        is_self: both are the same rows, and each unordered pair counts once.
    """

    queries: np.ndarray
    targets: np.ndarray
    is_self: bool = False

    @property
    def pairs(self) -> int:
        """Pairs in the block, a count."""
        return len(self.queries) * len(self.targets) // (2 if self.is_self else 1)
