"""Scenes, families, differences and their words."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sample import phrases, truth
from tasks.sample.scenes import SPLITS, Scene, assign_split, difference, draw, family, random_scene, shared
from tasks.sample.world import CLOSE


def some_scene(seed: int) -> Scene:
    return random_scene(random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_families_lie_in_one_split_and_their_members_one_to_three_edits_apart(split: str):
    rng = random.Random(3)
    edits = Counter()
    for _ in range(150):
        members = family(rng, split, rng.randint(4, 6), close=0.0 if split == "train" else rng.choice(CLOSE))
        assert {assign_split(scene) for scene in members} == {split}
        assert len({scene.key for scene in members}) == len(members)
        edits.update(len(difference(a, b)) for a in members for b in members if a is not b)
    assert set(edits) == {1, 2, 3}
    shares = [edits[n] / sum(edits.values()) for n in (1, 2, 3)]
    assert shares == pytest.approx([0.50, 0.35, 0.15], abs=0.12), shares


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_every_difference_holds_and_reads_back_in_every_style(one: int, other: int):
    query, target = some_scene(one), some_scene(other)
    edits, kept = difference(query, target), shared(query, target)
    assert all(truth.is_edit_true(edit, query, target) for edit in edits)
    assert (not edits) == (query == target)
    both, changes = phrases.parse_description(phrases.describe(query, target)) or ([], [])
    assert both == kept
    assert changes == [phrases.phrase(edit) for edit in edits]
    for style in phrases.STYLES if edits else ():
        text = phrases.instruction(edits, kept, style)
        read = truth.parse(text)
        assert read is not None, text
        assert read.edits == (tuple(edits) if style != "short" else (edits[0],)), text
        assert truth.is_true(text, query, target), text


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_a_scene_survives_its_record(seed: int):
    scene = some_scene(seed)
    assert Scene.from_record(scene.to_record()) == scene


def test_drawing_is_deterministic_and_other_renderings_differ():
    scene = some_scene(5)
    assert np.array_equal(draw(scene, rendering=1), draw(scene, rendering=1))
    assert any(not np.array_equal(draw(scene, rendering=1), draw(scene, rendering=n)) for n in range(2, 6))


def test_splits_are_about_sixty_twentyfive_fifteen():
    counts = Counter(assign_split(some_scene(seed)) for seed in range(4000))
    assert [counts[s] / 4000 for s in SPLITS] == pytest.approx([0.60, 0.25, 0.15], abs=0.03)
