"""Rows are normalised to unit length, and rows that cannot be are recognised."""

import numpy as np
import pytest

from tasks.knn.unit_rows import are_unit_rows, unit_rows


def test_rows_that_cannot_be_normalised_are_not_unit_rows():
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0]])
    assert np.allclose(unit_rows(rows)[0], [0.6, 0.8])
    assert are_unit_rows(unit_rows(rows)).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_are_scaled_in_float64_and_returned_as_float32(dtype: type):
    rows = np.random.default_rng(0).normal(size=(50, 64)).astype(dtype)
    expected = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    assert unit_rows(rows).dtype == np.float32 and np.array_equal(unit_rows(rows), expected.astype(np.float32))


def test_a_stored_row_may_differ_from_unit_length_by_its_rounding_alone():
    lengths = np.array([0.9949, 0.9951, 1.0, 1.0049, 1.0051])
    assert are_unit_rows(lengths[:, None] * np.array([[0.6, 0.8]])).tolist() == [False, True, True, True, False]
