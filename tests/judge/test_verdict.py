"""The verdict on a pair: thresholds, margins, partial styles, replaced negatives, and the reasons."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.judge.verdict import Verdict, VerdictRules, decide

RULES = VerdictRules(threshold=0.7, negative_threshold=0.5, instructions_min=1)


def verdict(target: list[float], negatives: dict[int, list[float]], partial: list[bool], **changes) -> Verdict:
    return decide(target, negatives, partial, replace(RULES, **changes))


@pytest.mark.parametrize(
    ("margin", "kept"),
    # a negative meets the text from 0.5, 0.45, 0.35, 0.05 on
    [(None, [0, 1, 2, 3]), (0.45, [0, 1, 2, 3]), (0.55, [0, 2, 3]), (0.85, [0, 3])],
)
def test_a_negative_within_the_margin_of_the_target_is_a_false_negative(margin: float | None, kept: list[int]):
    result = verdict([0.9], {0: [0.01, 0.4, 0.3, 0.04]}, [False], negative_margin=margin)
    assert result.negatives == kept and set(result.false_negatives) == {1, 2, 3} - set(kept)


def test_the_margin_never_accepts_a_negative_that_the_threshold_excludes():
    assert verdict([0.9], {0: [0.1, 0.5]}, [False], negative_margin=0.1).negatives == [0]
    # the limit is that of each text
    assert verdict([0.75], {0: [0.1, 0.3]}, [False], negative_margin=0.5).false_negatives == {1: 0.3}


def test_the_query_image_must_stay_outside_the_margin_too():
    assert verdict([0.9], {0: [0.4]}, [False], negative_margin=0.45).reason is None
    result = verdict([0.9], {0: [0.4]}, [False], negative_margin=0.55)
    assert result.reason == "ambiguous" and result.dropped == {0: ("query_fits", 0.4)}


def test_the_next_candidate_replaces_a_false_negative():
    scores = {0: [0.1, 0.6, 0.2, 0.9, 0.3, 0.05]}
    result = verdict([0.9], scores, [False], negatives_max=2)
    assert result.negatives == [0, 2, 4] and result.false_negatives == {1: 0.6, 3: 0.9}
    assert result.judge_negative == [0.1, 0.2, 0.3]
    # without a candidate there are fewer negatives, never a false one
    assert verdict([0.9], {0: [0.1, 0.6]}, [False], negatives_max=2).negatives == [0]


def test_a_partial_text_is_kept_only_where_no_remaining_negative_meets_it():
    met = verdict([0.9, 0.9], {0: [0.1, 0.2, 0.2], 1: [0.1, 0.6, 0.2]}, [False, True])
    assert (met.instructions, met.negatives, met.dropped) == ([0], [0, 1, 2], {1: ("partial_fits", 0.6)})
    # the negative fits the whole change: it is taken out, the text stays
    taken = verdict([0.9, 0.9], {0: [0.1, 0.8, 0.2], 1: [0.1, 0.6, 0.2]}, [False, True])
    assert (taken.instructions, taken.negatives, taken.false_negatives) == ([0, 1], [0, 2], {1: 0.8})
    alone = verdict([0.9], {0: [0.1, 0.6]}, [True])
    assert (alone.reason, alone.instructions) == ("ambiguous", [])


def test_an_instruction_that_the_query_image_meets_is_dropped():
    assert verdict([0.9, 0.9], {0: [0.5, 0.1], 1: [0.49, 0.1]}, [False, False]).instructions == [1]
    assert verdict([0.9], {0: [0.5, 0.1]}, [False]).reason == "ambiguous"
    assert verdict([0.1], {}, [False]).reason == "wrong_target"
    assert verdict([0.9, 0.1], {0: [0.1]}, [False, False], instructions_min=2).reason == "wrong_target"


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_kept_instructions_fit_the_target_and_no_kept_negative(instructions: int, negatives: int, seed: int):
    rng = random.Random(seed)
    target = [rng.random() for _ in range(instructions)]
    negative_yes = {n: [rng.random() for _ in range(negatives)] for n, p in enumerate(target) if p >= 0.7}
    result = verdict(target, negative_yes, [rng.random() < 0.3 for _ in range(instructions)])
    if result.reason is None:
        assert result.negatives[0] == 0 and result.instructions
        assert all(target[n] >= 0.7 for n in result.instructions)
        assert all(negative_yes[n][k] < 0.5 for n in result.instructions for k in result.negatives)
        assert result.judge_target == [target[n] for n in result.instructions]
        assert result.judge_negative == [max(negative_yes[n][k] for n in result.instructions) for k in result.negatives]
    assert set(result.instructions) | set(result.dropped) == set(range(instructions)) or result.reason is not None
