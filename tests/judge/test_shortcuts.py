"""What finds a target alone, what is dropped for it, and the figures of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.judge.shortcuts import excess_shortcuts, find_targets, is_first, is_shortcut, sample_ids, shortcut_figures

MODES = st.lists(st.sampled_from(["text", "image", "composed"]), max_size=3, unique=True)


def test_a_target_is_found_only_before_all_others_that_count():
    gallery = np.eye(3, dtype=np.float32)
    query = np.array([[0.9, 0.8, 0.0], [0.5, 0.5, 0.0]], np.float32)
    targets = gallery[[1, 1]]
    # the first image is nearer; a tie is not nearer
    assert is_first(query, targets, gallery, [[1], [1]]).tolist() == [False, False]
    assert is_first(query, targets, gallery, [[0, 1], [0, 1]]).tolist() == [True, True]  # it is the query itself


def test_text_image_and_both_are_told_apart():
    vectors = {
        "query": np.array([1, 0, 0.0]),
        "target": np.array([0.6, 0.8, 0]),
        "like the text": np.array([0, 1, 0.1]),
        "like the query": np.array([0.9, 0, 0.4]),
    }
    triplets = [
        {"query_image_id": "query", "target_image_id": "target", "instructions": ["both are needed"]},
        {
            "query_image_id": "query",
            "target_image_id": "like the query",
            "instructions": ["the picture is enough", "and again"],
        },
    ]
    texts = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 1.0]], np.float32)
    assert find_targets(triplets, texts, vectors, sorted(vectors)) == [["composed"], ["text", "image", "composed"]]
    assert find_targets([], texts[:0], vectors, sorted(vectors)) == []


@given(st.lists(MODES, max_size=30), st.floats(0, 1))
def test_what_is_left_keeps_the_share_and_drops_no_more_than_it_must(found: list[list[str]], share: float):
    beyond = excess_shortcuts(found, share)
    left = [f for n, f in enumerate(found) if n not in beyond]
    solved = sum(map(is_shortcut, left))
    assert all(is_shortcut(found[n]) for n in beyond)
    assert solved <= share * len(left) + 1e-6
    if beyond and share < 1:
        assert solved + 1 > share * (len(left) + 1) - 1e-6


def test_the_text_that_is_enough_goes_first():
    assert excess_shortcuts([["image"], ["text"], ["composed"], []], 0.34) == [1]
    assert excess_shortcuts([["image"], ["text"], ["composed"], []], 1.0) == []


def test_the_gap_is_over_the_better_half():
    found = shortcut_figures([["composed"], ["image", "composed"], ["text"], [], None])
    assert found == {
        "found_by_text": 0.25,
        "found_by_image": 0.25,
        "found_by_both": 0.5,
        "shortcut_share": 0.5,
        "composition_gap": 0.25,
    }
    assert shortcut_figures([None]) == {}


def test_a_large_gallery_is_drawn_by_its_ids_alone():
    ids = [f"i{n}" for n in range(50)]
    assert sample_ids(ids, 10, 1) == sample_ids(list(reversed(ids)), 10, 1) != sample_ids(ids, 10, 2)
    assert sample_ids(ids, 50, 1) == sorted(ids)
