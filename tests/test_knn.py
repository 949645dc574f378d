"""The search equals its naive form, written here: the naive form is the specification."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.knn import exact_similarity, neighbours_in_window


def on_circle(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane, (n, 2) float16."""
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)


def random_rows(seed: int, n: int, d: int, spread: float = 1.0) -> np.ndarray:
    """Unit rows around few middles, some of them equal: near-copies and ties."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, d))[rng.integers(0, 3, n)] + spread * rng.normal(size=(n, d))
    rows[rng.random(n) < 0.2] = rows[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def naive(queries, targets, query_keys, target_keys, low, high, k):
    out = []
    for q, a in enumerate(queries.astype(np.float64)):
        scored = [
            (-float(sum(x * y for x, y in zip(a, b, strict=True))), key, t)
            for t, (b, key) in enumerate(zip(targets.astype(np.float64), target_keys, strict=True))
        ]
        inside = sorted((s, key, t) for s, key, t in scored if low <= -s < high and key != query_keys[q])
        out += [(q, t, -s, rank) for rank, (s, _, t) in enumerate(inside[:k])]
    return out


def test_keeps_the_related_and_drops_the_copy_and_the_unrelated():
    vectors = on_circle(0, 1, 30, 90)  # degrees; cos 1 = 0.9998, cos 29 = 0.875, cos 30 = 0.866, cos 60 = 0.5
    keys = list("abcd")
    query, target, _, rank = neighbours_in_window(vectors, vectors, keys, keys, low=0.80, high=0.96, neighbours=3)
    assert list(zip(query.tolist(), target.tolist(), rank.tolist(), strict=True)) == [(0, 2, 0), (1, 2, 0), (2, 1, 0), (2, 0, 1)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 9),
    st.floats(-1, 0.99),
    st.floats(0.01, 1.2),
    st.sampled_from([0.02, 0.5, 2.0]),
)
def test_equals_the_naive_form(seed: int, m: int, n: int, k: int, low: float, width: float, spread: float):
    rows = random_rows(seed, m + n, 8, spread)
    keys = [f"{i:03d}" for i in np.random.default_rng(seed).permutation(m + n)]
    queries, targets = rows[:m], rows[m // 2 :]  # some queries are targets too
    query_keys, target_keys = keys[:m], keys[m // 2 :]
    found = neighbours_in_window(queries, targets, query_keys, target_keys, low=low, high=low + width, neighbours=k)
    assert list(zip(*(c.tolist() for c in found), strict=True)) == naive(queries, targets, query_keys, target_keys, low, low + width, k)


def test_many_copies_do_not_hide_what_is_inside_the_window():
    vectors = np.concatenate([on_circle(*[0.0] * 200), on_circle(30, 31)])
    keys = [f"{i:03d}" for i in range(202)]
    _, target, _, _ = neighbours_in_window(vectors[:1], vectors, keys[:1], keys, low=0.8, high=0.96, neighbours=2)
    assert target.tolist() == [200, 201]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_float64_sums_of_float16_products_do_not_depend_on_their_order(seed: int):
    a, b = random_rows(seed, 2, 512)
    products = a.astype(np.float64) * b.astype(np.float64)
    order = np.random.default_rng(seed).permutation(512)
    assert exact_similarity(a[None], b[None])[0] == sum(products.tolist()) == sum(products[order].tolist())


def test_refuses_rows_that_are_no_unit_vectors_and_widths_that_differ():
    good = on_circle(0, 10)
    with pytest.raises(DataError, match="length 2.0000"):
        neighbours_in_window(good * np.float16(2), good, ["a", "b"], ["a", "b"], low=0, high=1, neighbours=1)
    with pytest.raises(DataError, match="wide"):
        neighbours_in_window(good, np.eye(3, dtype=np.float16), ["a", "b"], ["c", "d", "e"], low=0, high=1, neighbours=1)


def test_nothing_in_gives_nothing_out():
    none = np.zeros((0, 2), np.float16)
    assert [len(c) for c in neighbours_in_window(none, none, [], [], low=0, high=1, neighbours=3)] == [0, 0, 0, 0]
