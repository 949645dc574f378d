"""The orders of candidates: by agreement, or drawn over bands; by the seed and the set alone."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.names import seeded_hash
from tasks.select.candidates import Candidates
from tasks.select.order import agreement_order, agreement_tiers, band_order, seeded_hashes, window_bands
from tests.support.candidates import candidates_of, pairs_of, pairs_of_letters, shuffled, table_of


def test_hashes_of_pairs_are_the_first_bytes_of_their_seeded_hash():
    ids = candidates_of(["ab", "ca", "bd"]).pair_ids
    expected = [int.from_bytes(seeded_hash(7, i.decode())[:8], "big") for i in ids.tolist()]
    assert seeded_hashes(ids, 7).tolist() == expected


WINDOWS = {"semantic": (0.8, 0.9), "caption": (0.5, 1.0)}


CASES = [(0.899, 0, 0, 0), (0.86, 3, 0, 1), (0.84, 6, 1, 1), (0.801, 11, 2, 2), (0.8, 40, 2, 2)]


def test_candidates_that_encoders_agree_on_come_first():
    all_first = {"semantic": 0, "pattern": 0, "caption": 0}
    some = table_of(
        [("g", "h", {"caption": 9}), ("e", "f", {"caption": 0}), ("c", "d", all_first), ("a", "b", all_first)],
        {3: all_first},
    )
    assert agreement_tiers(some).tolist() == [23, 10, 4, 0]
    assert agreement_order(some, seed=0).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(("similarity", "rank", "by_rank", "by_similarity"), CASES)
def test_bands_divide_the_ranks_or_the_window(similarity: float, rank: int, by_rank: int, by_similarity: int):
    # the one that ranks it best counts
    c = table_of([("a", "b", {"semantic": rank, "caption": 50})], cosines={"semantic": similarity, "caption": 0.99})
    assert window_bands(c, 3, by="rank", top_k=12, windows=WINDOWS).tolist() == [by_rank]
    assert window_bands(c, 3, by="similarity", top_k=12, windows=WINDOWS).tolist() == [by_similarity]


def fan(queries: int, ranks: int) -> Candidates:
    """Each query with targets of its own at ranks 0, 1, ..."""
    return table_of([(f"q{q}", f"t{q}-{r}", {"semantic": r}) for q in range(queries) for r in range(ranks)])


def test_draws_fall_over_the_bands_by_their_weights_and_each_query_takes_them_in_turn():
    some = fan(400, 12)
    thirds = some.ranks[:, 0].astype(np.int64) // 4
    order = band_order(some, 0, (2, 1, 1), thirds)
    assert len(np.unique(some.queries[order[:400]])) == 400  # every query's first draw before any second one
    share = [np.mean(thirds[order[:400]] == b) for b in range(3)]
    assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    names = some.image_ids.to_pylist()
    for query in ("q0", "q7", "q99"):
        drawn = thirds[order[some.queries[order] == names.index(query)]].tolist()
        assert sorted(drawn[:3]) == [0, 1, 2] and drawn[3:6] == drawn[:3]
    ranks = [
        r
        for r, third in zip(some.ranks[order[:400], 0].tolist(), thirds[order[:400]].tolist(), strict=True)
        if third == 0
    ]
    assert max(ranks.count(r) for r in range(4)) < 0.4 * len(ranks)  # inside a band the nearest is nothing special
    assert band_order(some, 1, (2, 1, 1), thirds)[:400].tolist() != order[:400].tolist()


def test_inside_a_band_what_more_encoders_mined_comes_first():
    some = table_of(
        [("a", "b", {"semantic": 0}), ("a", "c", {"semantic": 3, "pattern": 2}), ("a", "d", {"pattern": 1})]
    )
    assert band_order(some, 0, (1,), np.zeros(3, np.int64))[0] == 1


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 99), st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.randoms())
def test_the_draws_depend_on_the_seed_and_the_set_alone(
    names: list[str], seed: int, weights: list[float], rng: random.Random
):
    def drawn(c: Candidates) -> list[tuple[str, str]]:
        return pairs_of(c.take(band_order(c, seed, weights, c.ranks.min(axis=1, initial=0) % len(weights))))

    some = candidates_of(names)
    order = drawn(some)
    assert drawn(shuffled(some, rng)) == order
    assert sorted(order) == sorted(pairs_of(some))
    turns = Counter[str]()
    turn_of = []
    for query, _ in order:
        turn_of.append(turns[query])
        turns[query] += 1
    assert turn_of == sorted(turn_of)
