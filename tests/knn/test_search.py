"""The search equals its naive form, written here: the naive form is the specification."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.knn import blocked_join
from tasks.knn import search as knn
from tasks.knn.exact import exact_similarity, order_of, recall_of
from tasks.knn.search import join_in_window, neighbours_in_window

WAYS = (
    {"backend": "faiss-flat"},
    {"backend": "faiss-flat", "threads": 2},
    {"screen": "int8"},
    {"screen": "int8", "threads": 2},
    {"screen": "float32"},
    {"screen": "int8", "memory_mib": 1},
    {"memory_mib": 1},
    {"backend": "torch"},
    {"backend": "torch", "memory_mib": 1},
)


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
    assert list(zip(query.tolist(), target.tolist(), rank.tolist(), strict=True)) == [
        (0, 2, 0),
        (1, 2, 0),
        (2, 1, 0),
        (2, 0, 1),
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 9),
    st.floats(-1, 0.99),
    st.floats(0.01, 1.2),
    st.sampled_from([0.02, 0.5, 2.0]),
    st.sampled_from(WAYS),
)
def test_equals_the_naive_form(
    seed: int, m: int, n: int, k: int, low: float, width: float, spread: float, way: dict[str, Any]
):
    rows = random_rows(seed, m + n, 8, spread)
    keys = [f"{i:03d}" for i in np.random.default_rng(seed).permutation(m + n)]
    queries, targets = rows[:m], rows[m // 2 :]  # some queries are targets too
    query_keys, target_keys = keys[:m], keys[m // 2 :]
    found = neighbours_in_window(
        queries, targets, query_keys, target_keys, low=low, high=low + width, neighbours=k, **way
    )
    assert list(zip(*(c.tolist() for c in found), strict=True)) == naive(
        queries, targets, query_keys, target_keys, low, low + width, k
    )


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
        neighbours_in_window(
            good, np.eye(3, dtype=np.float16), ["a", "b"], ["c", "d", "e"], low=0, high=1, neighbours=1
        )


def test_nothing_in_gives_nothing_out():
    none = np.zeros((0, 2), np.float16)
    assert [len(c) for c in neighbours_in_window(none, none, [], [], low=0, high=1, neighbours=3)] == [0, 0, 0, 0]


# --- the weekly join --------------------------------------------------------------------------------------------------


def corpus(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """Unit rows, (n, d) float16, where ties, copies and empty windows are common."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(max(1, n // 8), d))[rng.integers(0, max(1, n // 8), n)] + 0.2 * rng.normal(size=(n, d))
    if kind == "equal":
        rows[:] = rows[:1]
    elif kind == "orthogonal":
        rows = np.eye(d)[np.arange(n) % d]
    elif kind == "copies":
        rows[n // 2 :] = rows[: n - n // 2]
    elif kind == "ties":
        rows = rng.integers(-1, 2, (n, d)) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def whole_matrix(
    rows: np.ndarray, is_new: np.ndarray, asked: np.ndarray, low: float, high: float, k: int
) -> list[tuple[int, int, float, int]]:
    """The specification: all similarities at once."""
    out = []
    scores = rows.astype(np.float64) @ rows.astype(np.float64).T
    for q in sorted(asked.tolist()):
        allowed = (scores[q] >= low) & (scores[q] < high) & (is_new[q] | is_new)
        allowed[q] = False
        hits = sorted(np.flatnonzero(allowed).tolist(), key=lambda t: (-scores[q, t], t))[:k]
        out += [(q, t, float(scores[q, t]), rank) for rank, t in enumerate(hits)]
    return out


def listed(found: Any) -> list[tuple[int, int, float, int]]:
    return list(zip(*(c.tolist() for c in found), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["clustered", "equal", "orthogonal", "copies", "ties"]), st.integers(0, 70), st.sampled_from([4, 64]), st.integers(1, 90),
    st.floats(-1, 0.95), st.sampled_from([0.05, 0.5, 2.1]), st.sampled_from(WAYS), st.floats(0, 1), st.integers(1, 5), st.integers(0, 9999),
)  # fmt: skip
def test_the_join_equals_the_whole_matrix(
    kind: str,
    n: int,
    d: int,
    k: int,
    low: float,
    width: float,
    way: dict[str, Any],
    share: float,
    parts: int,
    seed: int,
):
    rows, rng = corpus(kind, n, d, seed), np.random.default_rng(seed)
    is_new, asked = rng.random(n) < share, rng.permutation(n)
    found = []
    for part in range(parts):  # whoever does which rows, and in what order, the rows are the same
        found += listed(
            join_in_window(rows, is_new, asked[part::parts], low=low, high=low + width, neighbours=k, **way)
        )
    assert sorted(found, key=lambda f: (f[0], f[3])) == whole_matrix(rows, is_new, asked, low, low + width, k)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from(["clustered", "ties"]),
    st.sampled_from(WAYS),
    st.integers(0, 9999),
)
def test_the_old_pairs_and_the_new_join_are_the_whole(old: int, new: int, kind: str, way: dict[str, Any], seed: int):
    rows = corpus(kind, old + new, 16, seed)
    is_new = np.random.default_rng(seed).permutation(old + new) < new

    def pairs(vectors: np.ndarray, of: np.ndarray) -> list[tuple[int, int, float]]:
        found = join_in_window(vectors, of, np.arange(len(vectors)), low=0.5, high=0.99, neighbours=1000, **way)
        return [f[:3] for f in listed(found)]

    names = np.flatnonzero(~is_new)
    before = [(int(names[q]), int(names[t]), s) for q, t, s in pairs(rows[~is_new], np.ones(old, bool))]
    added = pairs(rows, is_new)
    assert sorted(before + added) == sorted(pairs(rows, np.ones(old + new, bool)))
    assert not {f[:2] for f in before} & {f[:2] for f in added}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 80), st.integers(0, 80), st.floats(0, 1), st.integers(0, 9999))
def test_a_week_looks_at_pairs_of_a_new_row_alone_and_at_each_once(old: int, new: int, share: float, seed: int):
    """The work is new x old and half of new x new, less what nobody asks for: whatever the old rows are among
    themselves, nobody looks.
    """
    n, rng = old + new, np.random.default_rng(seed)
    is_new = rng.permutation(n) < new
    asked = np.flatnonzero(rng.random(n) < share)
    rows = corpus("clustered", n, 8, seed)
    looked: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        make = knn.make_screen
        patched.setattr(
            knn, "make_screen", lambda *a, pairs, **more: looked.append(pairs) or make(*a, pairs=pairs, **more)
        )
        join_in_window(rows, is_new, asked, low=0.5, high=0.99, neighbours=3)
    assert sum(looked) <= new * old + new * new // 2
    if share == 1:
        assert sum(looked) == new * old + new * new // 2


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_several_blocks_and_floors_that_rise(monkeypatch: pytest.MonkeyPatch, kind: str):
    """Small blocks, and a collector that drops what is beyond the k-th again and again."""
    monkeypatch.setattr(knn, "QUERY_ROWS", 32)
    compacted = []
    compact = blocked_join._Collector._compact
    monkeypatch.setattr(
        blocked_join._Collector, "_compact", lambda self: compacted.append(self._stored) or compact(self)
    )
    rows = corpus("clustered", 1500, 32, 3)
    is_new, asked = np.random.default_rng(1).random(1500) < 0.7, np.arange(1500)
    found = join_in_window(rows, is_new, asked, low=-0.5, high=0.999, neighbours=5, screen=kind, memory_mib=16)
    assert listed(found) == whole_matrix(rows, is_new, asked, -0.5, 0.999, 5)
    assert len(compacted) > 2 and max(compacted) < 400_000 < 1500 * 1500 // 4


def test_the_join_refuses_rows_that_are_no_unit_vectors():
    with pytest.raises(DataError, match="stored row 1 has length"):
        join_in_window(
            on_circle(0, 10) * np.array([[1], [2]], np.float16),
            np.ones(2, bool),
            np.arange(2),
            low=0,
            high=1,
            neighbours=1,
        )


@pytest.mark.parametrize("backend", ["faiss-ivf", "faiss-hnsw"])
def test_an_approximate_backend_finds_true_neighbours_and_its_recall_is_known(backend: Any):
    rows = corpus("clustered", 1200, 16, 5)
    is_new, asked = np.arange(1200) >= 400, np.arange(0, 1200, 3)
    exact = join_in_window(rows, is_new, asked, low=0.2, high=0.999, neighbours=8)
    found = join_in_window(rows, is_new, asked, low=0.2, high=0.999, neighbours=8, backend=backend)
    similarity = {
        f[:2]: f[2] for f in listed(join_in_window(rows, is_new, asked, low=0.2, high=0.999, neighbours=1200))
    }
    # scored exactly, inside the window, between the right rows
    assert all(similarity[q, t] == s for q, t, s, _ in listed(found))
    recall = recall_of(found, exact)
    assert 0.8 < recall <= 1 and recall_of(exact, exact) == 1
    assert listed(join_in_window(rows, is_new, asked, low=0.2, high=0.999, neighbours=8, backend=backend)) == listed(
        found
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 60), st.integers(1, 6), st.sampled_from([0, 1, 3, 10**9]), st.booleans())
def test_one_sort_of_cut_numbers_orders_candidates_as_three_keys_do(
    seed: int, count: int, n: int, levels: int, is_large: bool
):
    rng = np.random.default_rng(seed)
    rows, targets, place = rng.integers(0, n, count), rng.integers(0, 40, count), rng.permutation(40)
    # equal, or apart by less than a key tells
    similarities = 0.7 + rng.integers(0, levels, count, endpoint=True) * 1e-12
    similarities[: count // 2] -= rng.random(count // 2) * 0.5
    rows += (1 << 52) * is_large  # of so many rows a key has no room for the similarity
    found = order_of(rows, similarities, targets, place)
    wanted = np.lexsort((place[targets], -similarities, rows))
    assert np.array_equal(rows[found], rows[wanted]) and np.array_equal(similarities[found], similarities[wanted])
    assert np.array_equal(targets[found], targets[wanted])
