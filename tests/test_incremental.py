"""Laws of batches: however a corpus came, the pairs are those of one run over everything, or never more than the quotas
say.

The chain here is the stages' own functions without their files: join_in_window, rank_among_all, merge_candidates,
agreement_order, within_quotas.
"""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SelectConfig, Window
from tasks.knn.search import join_in_window
from tasks.knn.spec import SearchSpec
from tasks.select.candidates import MinedRows, merge_candidates, rank_among_all
from tasks.select.order import agreement_order
from tasks.select.quotas import within_quotas
from tests.support.parameters import section_with

Pair = tuple[str, str]
NO_QUOTAS = section_with(
    SelectConfig,
    pairs_per_query=10_000,
    pairs_per_target=10_000,
    pairs_per_batch=None,
    nearest_share=1.0,
    agreement="rank",
)
ALL = 10_000  # neighbours: no limit
splits = st.lists(st.integers(0, 14), min_size=1, max_size=5)


def corpus(seed: int, n: int) -> tuple[np.ndarray, list[str]]:
    """Unit rows around few middles, some equal, and their ids in rising order."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, 6))[rng.integers(0, 3, n)] + 0.5 * rng.normal(size=(n, 6))
    rows[rng.random(n) < 0.15] = rows[:1]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16), [f"{i:03d}" for i in range(n)]


def batches(seed: int, sizes: list[int], k: int, config: SelectConfig) -> list[tuple[set[str], list[Pair]]]:
    """Per batch its new images and its pairs. The sizes split the corpus at random."""
    n = sum(sizes)
    rows, ids = corpus(seed, n)
    order = np.random.default_rng(seed + 1).permutation(n)
    earlier: MinedRows | None = None
    published: list[tuple[int, int]] = []
    out = []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        here = np.sort(order[: start + size]).astype(np.int32)
        is_new = np.isin(here, order[start : start + size])
        query, target, similarity, rank = join_in_window(
            rows[here], is_new, np.arange(len(here)), SearchSpec(Window(low=0.4, high=0.999), k)
        )
        mined = MinedRows(here[query], here[target], similarity.astype(np.float32), rank)
        ranked = mined if earlier is None else rank_among_all(mined, earlier, k)
        new = np.zeros(n, bool)
        new[here[is_new]] = True
        found = merge_candidates(pa.array(ids, pa.string()), {"semantic": ranked})
        ends = np.array(published, np.int64).reshape(-1, 2)
        taken = within_quotas(found.take(agreement_order(found, seed=3)), (ends[:, 0], ends[:, 1]), config, new).pairs
        assert (new[taken.queries] | new[taken.targets]).all()
        pairs = list(zip(taken.queries.tolist(), taken.targets.tolist(), strict=True))
        published += pairs
        earlier = mined if earlier is None else earlier.concatenated(mined)
        out.append(({ids[i] for i in here[is_new]}, [(ids[q], ids[t]) for q, t in pairs]))
    return out


def union(of: list[tuple[set[str], list[Pair]]]) -> set[Pair]:
    return {p for _, pairs in of for p in pairs}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), splits)
def test_without_k_and_quotas_the_union_is_the_whole(seed: int, sizes: list[int]):
    assert union(batches(seed, sizes, ALL, NO_QUOTAS)) == union(batches(seed, [sum(sizes)], ALL, NO_QUOTAS))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), splits, st.integers(1, 6))
def test_with_k_alone_the_union_contains_the_whole(seed: int, sizes: list[int], k: int):
    assert union(batches(seed, sizes, k, NO_QUOTAS)) >= union(batches(seed, [sum(sizes)], k, NO_QUOTAS))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9999),
    splits,
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_with_quotas_none_is_exceeded_and_no_pair_comes_twice(
    seed: int, sizes: list[int], k: int, query: int, target: int, per_batch: int | None
):
    config = NO_QUOTAS.model_copy(
        update={"pairs_per_query": query, "pairs_per_target": target, "pairs_per_batch": per_batch}
    )
    found = batches(seed, sizes, k, config)
    pairs = [p for _, some in found for p in some]
    assert len(pairs) == len(set(pairs))
    assert max(Counter(q for q, _ in pairs).values(), default=0) <= query
    assert max(Counter(t for _, t in pairs).values(), default=0) <= target
    for new, some in found:  # a batch adds no more than its own images may bring, whatever room the old ones have left
        assert len(some) <= min(query * len(new), per_batch or len(some))
    assert batches(seed, sizes, k, config) == found


def mined(*rows: tuple[int, int, float, int]) -> MinedRows:
    query, target, similarity, rank = zip(*rows, strict=True)
    return MinedRows(
        np.array(query, np.int32),
        np.array(target, np.int32),
        np.array(similarity, np.float32),
        np.array(rank, np.int32),
    )


def test_an_old_image_takes_a_new_target_only_where_it_is_among_its_nearest():
    a, b, c, d, e, new, other = range(7)
    earlier = mined((a, b, 0.9, 0), (a, c, 0.8, 1), (d, e, 0.5, 0))
    found = rank_among_all(
        mined((a, new, 0.85, 0), (a, other, 0.7, 1), (d, new, 0.4, 0), (new, a, 0.85, 0)), earlier, 2
    )
    assert list(zip(found.queries.tolist(), found.targets.tolist(), found.ranks.tolist(), strict=True)) == [
        (a, new, 1),
        (d, new, 1),
        (new, a, 0),
    ]
