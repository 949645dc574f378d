"""Bootstrap intervals over queries: as wide as theory says, paired between models, reproducible."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.bootstrap import interval, resampled_means


def test_the_width_is_that_of_the_normal_approximation():
    values = (np.random.default_rng(0).random((2000, 1)) < 0.3).astype(float)
    low, high = interval(resampled_means({"a": [values]}, seed=1)["a"][:, 0])
    expected = 2 * 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 2000)
    assert low < values.mean() < high and high - low == pytest.approx(expected, rel=0.1)


def test_models_are_compared_on_the_same_draws():
    rng = np.random.default_rng(2)
    hard = rng.random((500, 1))
    draws = resampled_means({"a": [hard], "b": [hard + 0.05]}, seed=0)
    low, high = interval((draws["b"] - draws["a"])[:, 0])
    assert high - low < 1e-5 and low == pytest.approx(0.05, abs=1e-5), (
        "a constant gain has no spread, however much queries differ"
    )


@given(st.integers(1, 40), st.integers(1, 40))
def test_tasks_have_equal_weight_regardless_of_their_size(few: int, many: int):
    draws = resampled_means({"a": [np.zeros((few, 2)), np.ones((many, 2))]}, seed=0, resamples=20)
    assert np.allclose(draws["a"], 0.5) and draws["a"].shape == (20, 2)


def test_the_draws_follow_from_the_seed():
    values = [np.random.default_rng(3).random((50, 3))]
    one, same, other = (resampled_means({"a": values}, seed=s)["a"] for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
