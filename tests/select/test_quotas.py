"""Quotas hold whatever the order of the input, and nothing that is published is selected again."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import ENCODER_ROLES, SelectConfig
from tasks.names import stable_id
from tasks.select.candidates import Candidates
from tasks.select.order import agreement_order
from tasks.select.quotas import QUOTAS, Selection, within_quotas
from tasks.store.id_order import index_in_ids
from tests.support.candidates import candidates_of, pairs_of, pairs_of_letters, rows_of, shuffled, table_of
from tests.support.parameters import section_with

# No limit but what a test states.
UNLIMITED = {"pairs_per_query": 10_000, "pairs_per_target": 10_000, "pairs_per_batch": None, "nearest_share": 1.0}


def config_with(**values: Any) -> SelectConfig:
    """Section select without limits, but for `values`; the nearest pairs come first."""
    return section_with(SelectConfig, **{**UNLIMITED, "agreement": "rank", **values})


NO_QUOTAS = config_with()


def select(
    c: Candidates, published: list[tuple[str, str]], config: SelectConfig, sources: dict[str, str] | None = None
) -> Selection:
    """`within_quotas` with ids instead of indices."""
    ends = [pa.chunked_array([pa.array([p[end] for p in published], pa.string())]) for end in (0, 1)]
    queries, targets = (index_in_ids(column, c.image_ids) for column in ends)
    numbers = (
        None
        if sources is None
        else np.array([["one", "two"].index(sources[i]) for i in c.image_ids.to_pylist()], np.int64)
    )
    return within_quotas(c, (queries, targets), config, None, numbers)


def decisions(c: Candidates, *more: object) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Pairs that are selected, and (query, target, full quota) of those rejected; sorted."""
    selection = select(c, *more)  # type: ignore[arg-type]
    left = [
        (q, t, QUOTAS[why])
        for (q, t), why in zip(pairs_of(c.take(selection.rejected)), selection.full_quotas.tolist(), strict=True)
    ]
    return sorted(pairs_of(selection.pairs)), sorted(left)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    pairs_of_letters,
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 9)),
    st.randoms(),
)
def test_quotas_hold_and_the_order_of_inputs_does_not_matter(
    names: list[str], seed: int, per_query: int, per_target: int, per_batch: int | None, rng: random.Random
):
    config = config_with(pairs_per_query=per_query, pairs_per_target=per_target, pairs_per_batch=per_batch)
    some, published = candidates_of(names), [("a", "b"), ("a", "c")]
    other = shuffled(some, rng)
    made, left = decisions(some.take(agreement_order(some, seed)), published, config)
    assert decisions(other.take(agreement_order(other, seed)), published, config) == (made, left)
    assert not set(made) & set(published)
    for end, most in ((0, per_query), (1, per_target)):
        for letter in "abcdef":
            assert sum(p[end] == letter for p in made) <= max(0, most - sum(p[end] == letter for p in published))
    assert per_batch is None or len(made) <= per_batch
    assert len(made) + len(left) == len([n for n in names if n not in ("ab", "ac")])


encoders_of_pairs = st.lists(st.sets(st.sampled_from(ENCODER_ROLES), min_size=1), min_size=30, max_size=30)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    pairs_of_letters,
    encoders_of_pairs,
    st.integers(0, 9),
    st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 3)),
    st.booleans(),
    st.randoms(),
)
def test_quotas_of_encoders_and_sources_hold_and_both_directions_are_selected_or_neither(
    names: list[str],
    mined_by: list[set[str]],
    seed: int,
    limits: tuple[int, int, int],
    both: bool,
    rng: random.Random,
):
    semantic, per_source, per_query = limits
    quotas = {
        "pairs_per_query": per_query,
        "pairs_per_encoder": {"semantic": semantic},
        "pairs_per_source": per_source,
        "pairs_per_batch": 13,
    }
    config = config_with(**quotas, pairs_per_target=3, both_directions=both)
    sources = {letter: "one" if letter < "d" else "two" for letter in "abcdef"}
    some = table_of([(n[0], n[1], dict.fromkeys(mined, 0)) for n, mined in zip(names, mined_by, strict=False)])
    published = [("a", "b"), ("c", "d")]
    selection = select(some.take(agreement_order(some, seed)), published, config, sources)
    other = shuffled(some, rng)
    assert decisions(other.take(agreement_order(other, seed)), published, config, sources) == decisions(
        some.take(agreement_order(some, seed)), published, config, sources
    )
    made = set(pairs_of(selection.pairs))
    # no published pair is selected again
    assert len(made) == len(selection.pairs) <= 13 and not made & set(published)
    assert int(selection.pairs.mined_by[:, 0].sum()) <= semantic
    assert max(Counter(sources[q] for q, _ in made).values(), default=0) <= per_source
    assert max(Counter(q for q, _ in [*made, *published]).values()) <= per_query
    assert max(Counter(t for _, t in [*made, *published]).values()) <= 3
    assert not both or all((t, q) in made | set(published) for q, t in made)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 9), st.floats(0, 1), st.randoms())
def test_the_share_of_pairs_with_the_querys_nearest_image_is_limited(
    names: list[str], seed: int, share: float, rng: random.Random
):
    config = config_with(pairs_per_query=9, pairs_per_target=9, nearest_share=share)
    some = table_of(
        [(n[0], n[1], {"semantic": rng.randrange(2)} if rng.random() < 0.8 else {"pattern": 0}) for n in sorted(names)]
    )
    other = shuffled(some, rng)
    selection = select(some.take(agreement_order(some, seed)), [], config)
    assert decisions(other.take(agreement_order(other, seed)), [], config) == decisions(
        some.take(agreement_order(some, seed)), [], config
    )
    nearest = int((selection.pairs.ranks[:, 0] == 0).sum())
    assert nearest <= share * len(selection.pairs) + 1e-9 or share == 1
    left = some.take(agreement_order(some, seed)).take(selection.rejected)
    assert (left.ranks[:, 0] == 0).all() and {QUOTAS[r] for r in selection.full_quotas.tolist()} <= {"nearest_share"}
    assert len(selection.pairs) - nearest == int((some.ranks[:, 0] != 0).sum())  # the others are not touched


def test_the_other_direction_is_a_pair_of_its_own_mined_by_the_same_encoders():
    there, alone = {"semantic": 0, "caption": 3}, {"pattern": 1}
    some = table_of([("a", "b", there), ("c", "d", alone)], {0: {"semantic": 2}})
    config = config_with(pairs_per_query=1, pairs_per_target=1, both_directions=True)
    taken = select(some, [], config).pairs
    assert {(q, t): ranks for q, t, ranks in rows_of(taken)} == {
        ("a", "b"): there,
        ("b", "a"): {"semantic": 2, "caption": 3},
        ("c", "d"): alone,
        ("d", "c"): alone,
    }
    assert taken.pair_ids.tolist() == [stable_id(q, t).encode() for q, t in pairs_of(taken)]
    made, left = decisions(table_of([("a", "b", there), ("b", "e", {"semantic": 1})]), [], config)
    assert len(made) == 2 and left == [("b", "e", "pairs_per_query")]


@settings(max_examples=40, deadline=None)
@given(pairs_of_letters, st.integers(0, 30), st.integers(0, 9))
def test_without_quotas_the_union_over_batches_is_the_whole(names: list[str], cut: int, seed: int):
    def made(some: list[str], published: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return (
            decisions(c.take(agreement_order(c, seed)), published, NO_QUOTAS)[0]
            if len(c := candidates_of(some))
            else []
        )

    first = made(names[:cut], [])
    second = made(names, first)
    assert {*first, *second} == set(made(names, [])) and not set(first) & set(second)
