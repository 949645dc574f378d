"""A window comes from the corpus' own similarities."""

import numpy as np
import pytest

from tasks.calibrate.distribution import Distribution, Quantiles, propose_window, sample_distribution
from tasks.config import Window
from tasks.errors import DataError
from tests.calibrate.families import families


def test_the_window_holds_families_and_leaves_strangers_out():
    vectors = families(60, 5, 0.3).astype(np.float64)
    window = propose_window(sample_distribution(vectors.astype(np.float16)), Quantiles(0.98, 0.995))
    similar = vectors @ vectors.T
    same = np.equal.outer(np.arange(300) // 5, np.arange(300) // 5) & ~np.eye(300, dtype=bool)
    inside = (similar >= window.low) & (similar < window.high)
    assert inside[same].mean() > 0.9
    assert inside[~same & ~np.eye(300, dtype=bool)].mean() < 0.02


def test_low_lies_below_high_whatever_the_corpus():
    for vectors in (families(1, 9, 0.001), families(300, 1, 0), np.repeat(families(1, 1, 0), 5, axis=0)):
        window = propose_window(sample_distribution(vectors), Quantiles())
        assert window.low < window.high <= 1
    with pytest.raises(DataError, match="at least 3"):
        sample_distribution(families(2, 1, 0))


def test_nearest_and_tenth_nearest_equal_the_full_product():
    """The naive form is the specification: every row is a query of a small corpus."""
    vectors = families(20, 4, 0.4)
    similar = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(similar, -2)
    falling = -np.sort(-similar, axis=1)
    distribution = sample_distribution(vectors)
    np.testing.assert_allclose(distribution.nearest, np.sort(falling[:, 0]), atol=1e-6)
    np.testing.assert_allclose(distribution.tenth, np.sort(falling[:, 9]), atol=1e-6)


def test_the_share_of_nearest_neighbours_inside_a_window_counts_its_lower_bound():
    distribution = Distribution(np.zeros(1), np.array([0.1, 0.5, 0.7, 0.9]), np.zeros(1))
    assert distribution.nearest_inside(Window(low=0.5, high=0.9)) == 0.5
