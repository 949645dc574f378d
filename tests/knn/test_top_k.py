"""The nearest rows of a few queries: those of a float64 comparison of everything, ties by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.knn.top_k import nearest_rows
from tasks.knn.unit_rows import unit_rows


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 80), top_k=st.integers(1, 100), repeats=st.integers(1, 3))
def test_rows_and_order_are_those_of_a_comparison_in_float64(seed: int, rows: int, top_k: int, repeats: int):
    rng = np.random.default_rng(seed)
    gallery = np.tile(unit_rows(rng.normal(size=(rows, 16))).astype(np.float16), (repeats, 1))  # repeated rows are ties
    queries = unit_rows(rng.normal(size=(2, 16))).astype(np.float16)
    every = queries.astype(np.float64) @ gallery.astype(np.float64).T
    for form in (gallery, gallery.astype(np.float32)):
        places, similarities = nearest_rows(queries, form, top_k)
        for n in range(2):
            expected = np.lexsort((np.arange(len(gallery)), -every[n]))[:top_k]
            assert places[n].tolist() == expected.tolist()
            assert similarities[n].tolist() == every[n][expected].tolist()


def test_vectors_of_two_models_are_refused():
    with pytest.raises(DataError, match="4 dimensions, rows 8"):
        nearest_rows(np.zeros((1, 4), np.float16), np.zeros((3, 8), np.float16), 1)
