"""The distribution of a corpus' cosine similarities under one encoder, and the similarity window proposed from it.

Pure: arrays in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tasks.config import Window
from tasks.errors import DataError

RANDOM_PAIRS = 200_000
QUERIES = 2_000  # images whose neighbours are searched
NEIGHBOURS = 10
PAIRS_AT_ONCE, ROWS_AT_ONCE = 20_000, 65_536  # in memory at a time, as float32
SHOWN_QUANTILES = (0.01, 0.5, 0.9, 0.99, 0.995, 0.999)


@dataclass(frozen=True)
class Quantiles:
    """Where a window's bounds lie: low among random pairs, high among nearest neighbours, both 0..1."""

    low: float = 0.99
    high: float = 0.995


@dataclass(frozen=True)
class Distribution:
    """Cosines of a corpus under one encoder, float32, each array sorted.

    Attributes:
        random: of pairs drawn at random.
        nearest: of images and their nearest neighbour.
        tenth: of images and their tenth nearest neighbour.
        copies: of images and near-copies made of them; empty where none were made.
    """

    random: np.ndarray
    nearest: np.ndarray
    tenth: np.ndarray
    copies: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def by_name(self) -> dict[str, np.ndarray]:
        """The arrays by the names that plots and tables give them."""
        return {
            "random pairs": self.random,
            "nearest": self.nearest,
            "10th nearest": self.tenth,
            "near-copies": self.copies,
        }

    def nearest_inside(self, window: Window) -> float:
        """Share of the images whose nearest neighbour lies in the window, 0..1."""
        return float(np.mean((self.nearest >= window.low) & (self.nearest < window.high)))


def random_pair_cosines(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cosines of RANDOM_PAIRS pairs of different rows, (RANDOM_PAIRS,) float32, as drawn."""
    n = len(vectors)
    a = rng.integers(0, n, RANDOM_PAIRS)
    b = (a + rng.integers(1, n, RANDOM_PAIRS)) % n  # never the row itself
    cosines = []
    for start in range(0, RANDOM_PAIRS, PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        cosines.append(np.einsum("md,md->m", vectors[a[some]].astype(np.float32), vectors[b[some]].astype(np.float32)))
    return np.concatenate(cosines)


def neighbour_cosines(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cosines of a sample of the rows to their nearest other rows, (queries, neighbours) float32, falling."""
    n = len(vectors)
    query_rows = np.sort(rng.permutation(n)[:QUERIES])
    queries = vectors[query_rows].astype(np.float32)  # (queries, d)
    top_k = min(NEIGHBOURS, n - 1)
    best = np.full((len(query_rows), top_k), -2.0, np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE].astype(np.float32)  # (block, d)
        scores = queries @ block.T  # (queries, block)
        in_block = np.flatnonzero((query_rows >= start) & (query_rows < start + len(block)))
        scores[in_block, query_rows[in_block] - start] = -2.0  # not the row itself
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :top_k]
    return best


def sample_distribution(vectors: np.ndarray, seed: int = 0) -> Distribution:
    """Sample the cosines of a corpus; without near-copies.

    Args:
        vectors: (n, d) float16, rows of unit length.
        seed: of the sample.
    Raises:
        DataError: fewer than three rows.
    """
    if len(vectors) < 3:
        raise DataError(f"calibrate: {len(vectors)} vectors; at least 3 are needed to see a distribution")
    rng = np.random.default_rng(seed)
    random = random_pair_cosines(vectors, rng)
    neighbours = neighbour_cosines(vectors, rng)
    return Distribution(np.sort(random), np.sort(neighbours[:, 0]), np.sort(neighbours[:, -1]))


def propose_window(distribution: Distribution, quantiles: Quantiles) -> Window:
    """The window, rounded to 4 decimals; tasks/calibrate/command.py says how it is chosen."""
    high = min(float(np.quantile(distribution.nearest, quantiles.high)), 1.0)
    low = float(np.quantile(distribution.random, quantiles.low))
    if low >= min(high, float(np.median(distribution.nearest))):
        low = float(np.median(distribution.tenth))
    low = min(low, high - 0.0002)
    return Window(low=round(low, 4), high=round(high, 4))
