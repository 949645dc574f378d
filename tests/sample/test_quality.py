"""Truth about one week: what came out, and true texts that were thrown away."""

import json

import pytest

from tasks.sample.quality import accepted_shares, negative_shares, rejected_shares
from tasks.sample.scenes import Scene, SceneObject

STAR = SceneObject(0, "star", "red", "small")
QUERY = Scene("white", (STAR,))
TARGET = Scene("teal", (SceneObject(0, "star", "blue", "small"),))
BLUE = Scene("white", TARGET.objects)
SCENES = {"q": QUERY, "t": TARGET, "n": BLUE}
BOTH, ONE = "make the small red star blue and change the background to teal", "make the small red star blue"
SHORT, FALSE = "on a teal background", "add a large blue cross at the top left"
PARTIAL = ("short",)


def written(pair_id: str, texts: list[str], styles: list[str]) -> dict[str, object]:
    ends = {"query_image_id": "q", "target_image_id": "t", "negative_image_ids": ["q", "n"]}
    return {"pair_id": pair_id, **ends, "instructions": texts, "styles": styles}


def test_a_partial_text_is_no_incomplete_one_but_a_whole_text_that_leaves_something_out_is():
    triplet = written("p", [BOTH, ONE, SHORT], ["imperative", "keep", "short 2"])
    shares = accepted_shares([triplet], SCENES.get, PARTIAL)
    assert shares == {"true_share": 1.0, "complete_share": 0.5, "negatives_also_right": pytest.approx(1 / 3)}
    assert accepted_shares([], SCENES.get, PARTIAL)["true_share"] is None


def test_the_query_image_is_no_negative_and_a_text_about_an_unknown_image_is_false():
    known = {**written("p", [ONE, BOTH, "hm"], ["keep"] * 3), "negative_image_ids": ["q", "n", "unknown"]}
    shares = accepted_shares([known], SCENES.get, PARTIAL)
    assert shares["true_share"] == pytest.approx(2 / 3) and shares["complete_share"] == pytest.approx(1 / 3)
    assert shares["negatives_also_right"] == pytest.approx(1 / 6)
    assert accepted_shares([{**known, "query_image_id": "unknown"}], SCENES.get, PARTIAL)["true_share"] == 0.0


def test_negatives_that_fit_too_are_told_by_encoder_and_by_what_they_are_near():
    """The blue star on white is one edit from the query and one from the target: a tie counts as the target's."""
    scenes = {**SCENES, "near": Scene("black", (STAR,))}  # one edit from the query, two from the target
    row = {**written("p", [BOTH, ONE], ["keep", "short"]), "negative_image_ids": ["q", "n", "near", "unknown"]}
    shares = negative_shares([{**row, "mined_by": ["semantic"]}, {**row, "mined_by": ["caption"]}], scenes.get)
    assert shares == {
        "by_encoder": {"caption": 0.25, "semantic": 0.25},
        "by_kind": {"query": 0.0, "target": 0.5},
    }


def test_true_texts_of_dropped_pairs_and_dropped_texts_count_as_thrown_away():
    rows = [written(p, [BOTH, FALSE], ["keep", "question"]) for p in ("kept", "dropped", "shortcut", "known")]
    triplets = [{"pair_id": "kept", "instructions": [BOTH]}]
    dropped = [
        {"key": "dropped", "reason": "wrong_target", "detail": "{}"},
        {"key": "shortcut", "reason": "shortcut", "detail": json.dumps({"texts": [BOTH]})},
        {"key": "known", "reason": "duplicate", "detail": "{}"},
    ]
    shares = rejected_shares(rows, triplets, dropped, SCENES.get, PARTIAL)
    assert shares["false_rejection_share"] == pytest.approx(1 / 3) and shares["written_true_share"] == 0.5


def test_a_partial_text_that_a_negative_fits_as_well_is_rightly_refused():
    row = written("p", [BOTH, "the small red star in blue", SHORT], ["keep", "short", "short 2"])
    triplets = [{"pair_id": "p", "instructions": [BOTH]}]
    shares = rejected_shares([row], triplets, [], SCENES.get, PARTIAL)
    assert shares["false_rejection_share"] == 0.5  # the background's text alone: the negative has the blue star
