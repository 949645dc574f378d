"""The search equals its naive form, which is the specification: written here, or in tests/support/neighbours.py."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.knn import blocked_join
from tasks.knn.exact import exact_similarity
from tasks.knn.search import join_in_window, neighbours_in_window
from tests.support.neighbours import Case, as_rows, cases, corpus, naive_join, normalised, spec_of, unit_circle

# backends, prefilters, threads and memories, all of which give the same rows
SETTINGS = (
    {"backend": "faiss-flat"},
    {"backend": "faiss-flat", "threads": 2},
    {"prefilter": "int8"},
    {"prefilter": "int8", "threads": 2},
    {"prefilter": "float32"},
    {"prefilter": "torch:cpu"},
    {"prefilter": "int8", "memory_mib": 1},
    {"memory_mib": 1},
    {"backend": "torch"},
    {"backend": "torch", "memory_mib": 1},
)


def random_rows(seed: int, n: int, d: int, spread: float = 1.0) -> np.ndarray:
    """Unit rows around few centers, some of them equal: near-copies and ties."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, d))[rng.integers(0, 3, n)] + spread * rng.normal(size=(n, d))
    rows[rng.random(n) < 0.2] = rows[0]
    return normalised(rows)


def naive_search(queries, targets, query_keys, target_keys, spec):
    result = []
    for q, a in enumerate(queries.astype(np.float64)):
        scored = [
            (-float(sum(x * y for x, y in zip(a, b, strict=True))), key, t)
            for t, (b, key) in enumerate(zip(targets.astype(np.float64), target_keys, strict=True))
        ]
        inside = sorted(s for s in scored if spec.window.low <= -s[0] < spec.window.high and s[1] != query_keys[q])
        result += [(q, t, -s, rank) for rank, (s, _, t) in enumerate(inside[: spec.top_k])]
    return result


def test_related_rows_are_neighbours_copies_and_unrelated_rows_are_not():
    vectors = unit_circle(0, 1, 30, 90)  # degrees; cos 1 = 0.9998, cos 29 = 0.875, cos 30 = 0.866, cos 60 = 0.5
    keys = list("abcd")
    query, target, _, rank = neighbours_in_window(vectors, vectors, keys, keys, spec_of(0.80, 0.96, 3))
    assert list(zip(query.tolist(), target.tolist(), rank.tolist(), strict=True)) == [
        (0, 2, 0),
        (1, 2, 0),
        (2, 1, 0),
        (2, 0, 1),
    ]


def test_the_docstrings_example():
    vectors, keys = unit_circle(0, 30, 90), ["a", "b", "c"]
    query, target, similarity, rank = neighbours_in_window(vectors, vectors, keys, keys, spec_of(0.8, 0.96, 3))
    assert (query.tolist(), target.tolist(), rank.tolist()) == ([0, 1], [1, 0], [0, 0])
    assert similarity == pytest.approx([0.866, 0.866], abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 9),
    st.tuples(st.floats(-1, 0.99), st.floats(0.01, 1.2)),
    st.sampled_from([0.02, 0.5, 2.0]),
    st.sampled_from(SETTINGS),
)
def test_the_search_equals_its_naive_form(
    seed: int, sizes: tuple[int, int], k: int, window: tuple[float, float], spread: float, how: dict[str, Any]
):
    (m, n), (low, width) = sizes, window
    rows = random_rows(seed, m + n, 8, spread)
    keys = [f"{i:03d}" for i in np.random.default_rng(seed).permutation(m + n)]
    sides = rows[:m], rows[m // 2 :], keys[:m], keys[m // 2 :]  # some queries are targets too
    spec = spec_of(low, low + width, k, **how)
    assert as_rows(neighbours_in_window(*sides, spec)) == naive_search(*sides, spec)


def test_copies_take_no_rank_from_what_lies_inside_the_window():
    vectors = np.concatenate([unit_circle(*[0.0] * 200), unit_circle(30, 31)])
    keys = [f"{i:03d}" for i in range(202)]
    _, target, _, _ = neighbours_in_window(vectors[:1], vectors, keys[:1], keys, spec_of(0.8, 0.96, 2))
    assert target.tolist() == [200, 201]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_float64_sums_of_float16_products_do_not_depend_on_their_order(seed: int):
    a, b = random_rows(seed, 2, 512)
    products = a.astype(np.float64) * b.astype(np.float64)
    order = np.random.default_rng(seed).permutation(512)
    assert exact_similarity(a[None], b[None])[0] == sum(products.tolist()) == sum(products[order].tolist())


def test_rows_that_are_not_of_unit_length_and_widths_that_differ_are_refused():
    rows, spec = unit_circle(0, 10), spec_of(0, 1, 1)
    with pytest.raises(DataError, match="length 2.0000"):
        neighbours_in_window(rows * np.float16(2), rows, ["a", "b"], ["a", "b"], spec)
    with pytest.raises(DataError, match="wide"):
        neighbours_in_window(rows, np.eye(3, dtype=np.float16), ["a", "b"], ["c", "d", "e"], spec)


def test_no_rows_give_no_neighbours():
    none = np.zeros((0, 2), np.float16)
    assert [len(c) for c in neighbours_in_window(none, none, [], [], spec_of(0, 1, 3))] == [0, 0, 0, 0]


# --- the incremental join ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(cases(max_rows=70), st.sampled_from(SETTINGS), st.floats(0, 1), st.integers(1, 5))
def test_the_join_equals_the_whole_matrix(case: Case, how: dict[str, Any], share: float, parts: int):
    rows, rng = case.rows(), np.random.default_rng(case.seed)
    is_new, query_rows = rng.random(case.n) < share, rng.permutation(case.n)
    result = []
    for part in range(parts):  # neither the number of parts nor the order of the queries shows
        result += as_rows(join_in_window(rows, is_new, query_rows[part::parts], case.spec(**how)))
    assert sorted(result, key=lambda f: (f[0], f[3])) == naive_join(rows, is_new, query_rows, case.spec())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from(["clustered", "ties"]),
    st.sampled_from(SETTINGS),
    st.integers(0, 9999),
)
def test_the_old_pairs_and_the_incremental_join_are_the_whole(
    old: int, new: int, kind: str, how: dict[str, Any], seed: int
):
    rows = corpus(kind, old + new, 16, seed)
    is_new = np.random.default_rng(seed).permutation(old + new) < new

    def pairs(vectors: np.ndarray, new_rows: np.ndarray) -> list[tuple[int, int, float]]:
        joined = join_in_window(vectors, new_rows, np.arange(len(vectors)), spec_of(0.5, 0.99, 1000, **how))
        return [row[:3] for row in as_rows(joined)]

    old_rows = np.flatnonzero(~is_new)
    before = [(int(old_rows[q]), int(old_rows[t]), s) for q, t, s in pairs(rows[~is_new], np.ones(old, bool))]
    added = pairs(rows, is_new)
    assert sorted(before + added) == sorted(pairs(rows, np.ones(old + new, bool)))
    assert not {row[:2] for row in before} & {row[:2] for row in added}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 80), st.integers(0, 80), st.floats(0, 1), st.integers(0, 9999))
def test_the_join_compares_each_pair_of_a_new_row_once_and_no_pair_of_old_rows(
    old: int, new: int, share: float, seed: int
):
    """The work is new x old and half of new x new, less what no query asks for."""
    n, rng = old + new, np.random.default_rng(seed)
    is_new = rng.permutation(n) < new
    query_rows = np.flatnonzero(rng.random(n) < share)
    rows = corpus("clustered", n, 8, seed)
    compared: list[int] = []
    choose = blocked_join.choose_prefilter

    def counted(*sides: Any, pairs: int, **more: Any) -> Any:
        compared.append(pairs)
        return choose(*sides, pairs=pairs, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blocked_join, "choose_prefilter", counted)
        join_in_window(rows, is_new, query_rows, spec_of(0.5, 0.99, 3))
    assert sum(compared) <= new * old + new * new // 2
    if share == 1:
        assert sum(compared) == new * old + new * new // 2


@pytest.mark.parametrize("prefilter", ["float32", "int8"])
def test_small_blocks_and_rising_thresholds_do_not_show(monkeypatch: pytest.MonkeyPatch, prefilter: str):
    """Small blocks, and a collector that drops what is beyond the k-th again and again."""
    monkeypatch.setattr(blocked_join, "QUERY_ROWS", 32)
    stored = []
    compact = blocked_join._Collector._compact

    def watched(self: Any) -> Any:
        stored.append(self._stored)
        return compact(self)

    monkeypatch.setattr(blocked_join._Collector, "_compact", watched)
    rows = corpus("clustered", 1500, 32, 3)
    is_new, all_rows = np.random.default_rng(1).random(1500) < 0.7, np.arange(1500)
    spec = spec_of(-0.5, 0.999, 5, prefilter=prefilter, memory_mib=16)
    assert as_rows(join_in_window(rows, is_new, all_rows, spec)) == naive_join(rows, is_new, all_rows, spec)
    assert len(stored) > 2 and max(stored) < 400_000 < 1500 * 1500 // 4


def test_the_join_refuses_rows_that_are_not_of_unit_length():
    rows = unit_circle(0, 10) * np.array([[1], [2]], np.float16)
    with pytest.raises(DataError, match="stored row 1 has length"):
        join_in_window(rows, np.ones(2, bool), np.arange(2), spec_of(0, 1, 1))
