"""The order of a search's rows, and recall."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.knn.neighbours import rank_order, recall
from tasks.knn.search import join_in_window
from tests.support.neighbours import as_rows, corpus, spec_of


@pytest.mark.parametrize("backend", ["faiss-ivf", "faiss-hnsw"])
def test_an_approximate_backend_finds_true_neighbours_and_its_recall_is_measured(backend: Any):
    rows = corpus("clustered", 1200, 16, 5)
    is_new, query_rows = np.arange(1200) >= 400, np.arange(0, 1200, 3)
    exact = join_in_window(rows, is_new, query_rows, spec_of(0.2, 0.999, 8))
    approximate = join_in_window(rows, is_new, query_rows, spec_of(0.2, 0.999, 8, backend=backend))
    every = join_in_window(rows, is_new, query_rows, spec_of(0.2, 0.999, 1200))
    similarity = {row[:2]: row[2] for row in as_rows(every)}
    # scored exactly, inside the window, between the right rows
    assert all(similarity[q, t] == s for q, t, s, _ in as_rows(approximate))
    assert 0.8 < recall(approximate, exact) <= 1 and recall(exact, exact) == 1
    again = join_in_window(rows, is_new, query_rows, spec_of(0.2, 0.999, 8, backend=backend))
    assert as_rows(again) == as_rows(approximate)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 60), st.integers(1, 6), st.sampled_from([0, 1, 3, 10**9]), st.booleans())
def test_one_sort_of_integer_keys_orders_candidates_as_three_keys_do(
    seed: int, count: int, n: int, levels: int, is_large: bool
):
    rng = np.random.default_rng(seed)
    rows, targets, tie_rank = rng.integers(0, n, count), rng.integers(0, 40, count), rng.permutation(40)
    # equal, or apart by less than a key distinguishes
    similarities = 0.7 + rng.integers(0, levels, count, endpoint=True) * 1e-12
    similarities[: count // 2] -= rng.random(count // 2) * 0.5
    rows += (1 << 52) * is_large  # a key of so many rows has no bits left for the similarity
    order = rank_order(rows, similarities, targets, tie_rank)
    expected = np.lexsort((tie_rank[targets], -similarities, rows))
    assert np.array_equal(rows[order], rows[expected])
    assert np.array_equal(similarities[order], similarities[expected])
    assert np.array_equal(targets[order], targets[expected])
