"""Recall of image-text retrieval, and what a change of it is worth."""

import numpy as np
import pytest

from benchmarks.image_text import changes, places_of_answers, recalls


def test_the_answers_place_counts_what_is_strictly_nearer():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.7], [0.3, 0.3, 0.3]])
    assert places_of_answers(similarity).tolist() == [0, 2, 0]
    assert recalls({"text_to_image": np.array([[0, 2, 0, 7]]), "image_to_text": np.array([[0, 0, 0, 0]])}) == {
        "text_to_image_recall_at_1": 50.0,
        "text_to_image_recall_at_5": 75.0,
        "image_to_text_recall_at_1": 100.0,
        "image_to_text_recall_at_5": 100.0,
    }


def test_a_change_has_the_standard_error_of_paired_images():
    before = {name: np.zeros((2, 4), int) for name in ("text_to_image", "image_to_text")}
    after = before | {"image_to_text": np.array([[0, 0, 1, 1], [0, 0, 0, 3]])}  # found no more: 0, 0, half, all
    changed = changes(before, after)
    assert changed["text_to_image"] == (0.0, 0.0)
    rise, error = changed["image_to_text"]
    assert rise == -37.5 and error == pytest.approx(np.std([0, 0, -50, -100], ddof=1) / 2)
