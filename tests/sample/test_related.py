"""Related scenes with any mix of changes, as mining finds them across families."""

import random

import pytest

from tasks.sample.related import SAID_EDITS, TOO_DIFFERENT, held_out_related, related_pair
from tasks.sample.scenes import assign_split, difference
from tasks.sample.train_vlm import gold_description


@pytest.mark.parametrize("edits", [1, 2, 3, SAID_EDITS + 1])
def test_a_related_pair_is_of_one_split_and_as_far_apart_as_asked(edits: int):
    rng = random.Random(edits)
    kinds = set()
    for _ in range(30):
        query, target = related_pair(rng, "corpus", edits)
        assert assign_split(query) == assign_split(target) == "corpus"
        found = difference(query, target)
        assert len(found) == edits or (edits > SAID_EDITS and len(found) > edits)
        kinds.add(tuple(sorted(edit.kind for edit in found)))
    assert edits == 1 or any({"add", "remove"} <= set(mix) for mix in kinds)  # which families never have


def test_a_description_states_up_to_three_edits_and_no_more():
    for query, target in held_out_related(40, seed=1):
        is_far = len(difference(query, target)) > SAID_EDITS
        assert (gold_description(query, target) == TOO_DIFFERENT) == is_far
