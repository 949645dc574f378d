"""Rows for other tasks: what each is made of, and that no wrong answer is right."""

from typing import Any

import pytest

from tasks.config import ROW_TASKS
from tasks.publish.further_rows import BUILDERS, RowSources, further_rows

TEXTS = ["change the background to red", "on a red background"]
TERMS = {"q": ("CC0-1.0", ""), "t": ("CC-BY-4.0", "Ann"), "n": ("CC-BY-SA-4.0", "Bob"), "alone": ("CC0-1.0", "")}
CAPTIONS = {"q": ("a cat on blue", "source"), "t": ("a cat on red", "vlm"), "alone": ("a dog", "source")}


def triplet(name: str, query: str, target: str, texts: list[str], *negatives: str) -> dict[str, Any]:
    return {
        "triplet_id": name,
        "pair_id": f"pair {name}",
        "query_image_id": query,
        "target_image_id": target,
        "instructions": texts,
        "styles": ["imperative", "short"],
        "negative_image_ids": [query, *negatives],
        "judge_target": [0.9, 0.97],
        "description": f"both: a cat; change: {texts[0]}",
        "captioner": "vlm",
    }


@pytest.fixture
def sources() -> RowSources:
    triplets = [triplet("1", "q", "t", TEXTS, "n"), triplet("2", "t", "q", ["remove the small cat", "no small cat"])]
    return RowSources("w1", ["alone", "q", "t"], CAPTIONS, triplets, {}, TERMS, "tiny")


def rows_of(task: str, sources: RowSources) -> dict[str, dict[str, Any]]:
    return {row["source_id"]: row for row in further_rows(task, sources)}


def test_every_task_has_a_builder_and_ids_of_its_own(sources: RowSources):
    assert set(BUILDERS) == set(ROW_TASKS)
    ids = [row["row_id"] for task in ROW_TASKS for row in further_rows(task, sources)]
    assert len(ids) == len(set(ids)) == 3 + 3 + 2 + 2 + 2


def test_an_image_and_its_caption_find_each_other_among_those_of_its_triplets(sources: RowSources):
    captions, images = rows_of("image_to_caption", sources), rows_of("caption_to_image", sources)
    assert (captions["q"]["target_text"], captions["q"]["negative_texts"]) == ("a cat on blue", ["a cat on red"])
    assert (images["q"]["query_text"], images["q"]["target_image_ids"]) == ("a cat on blue", ["q"])
    assert images["q"]["negative_image_ids"] == ["t"] and images["alone"]["negative_image_ids"] == []
    assert captions["t"]["text_by"] == "vlm" and captions["alone"]["text_by"] == "source"


def test_an_image_without_a_caption_is_no_wrong_answer(sources: RowSources):
    """Nothing says that the text does not describe it, too."""
    known = RowSources("w1", sources.image_ids, {"q": CAPTIONS["q"]}, sources.triplets, {}, TERMS, "tiny")
    assert rows_of("caption_to_image", known)["q"]["negative_image_ids"] == []
    assert rows_of("image_to_caption", known)["q"]["negative_texts"] == []


def test_an_image_of_the_same_caption_is_no_wrong_answer(sources: RowSources):
    same = {**CAPTIONS, "t": ("A cat  on blue", "vlm")}
    alike = RowSources("w1", sources.image_ids, same, sources.triplets, {}, TERMS, "tiny")
    assert rows_of("image_to_caption", alike)["q"]["negative_texts"] == []
    assert rows_of("caption_to_image", alike)["q"]["negative_image_ids"] == []


def test_a_description_leads_to_its_pair_and_not_to_the_pair_read_backwards(sources: RowSources):
    row = rows_of("description_to_pair", sources)["1"]
    assert row["target_image_ids"] == ["q", "t"] and row["negative_image_ids"] == ["t", "q", "q", "n"]


def test_the_kind_of_change_stands_among_the_other_kinds_of_the_batch(sources: RowSources):
    row = rows_of("difference_classification", sources)["1"]
    assert (row["target_text"], row["negative_texts"]) == ("background", ["removed"])
    listed = RowSources("w1", [], {}, sources.triplets, {"pair 1": ["colour: blue -> red"]}, TERMS, "tiny")
    assert rows_of("difference_classification", listed)["1"]["target_text"] == "colour"
    one = RowSources("w1", [], {}, sources.triplets[:1], {}, TERMS, "tiny")
    assert further_rows("difference_classification", one) == []


def test_a_choice_of_images_has_the_text_of_which_the_judge_was_surest_and_its_terms(sources: RowSources):
    row = rows_of("which_image_fits", sources)["1"]
    assert row["query_text"] == TEXTS[1] and row["negative_image_ids"] == ["q", "n"]
    assert row["licenses"] == ["CC0-1.0", "CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0"] and row["batch"] == "w1"
    assert row["license_code"] == "CC-BY-SA-4.0" and row["attributions"] == ["", "Ann", "", "Bob"]
