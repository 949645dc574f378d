"""Questions about mined negatives: which texts are asked, and what their answers are."""

from collections.abc import Sequence
from typing import Any

from tasks.calibrate.sample_labels import negative_rows
from tasks.sample.scenes import Scene, SceneObject

STAR, BLUE = SceneObject(0, "star", "red", "small"), SceneObject(0, "star", "blue", "small")
SCENES = {
    "q": Scene("white", (STAR,)),
    "t": Scene("teal", (BLUE,)),
    "teal": Scene("teal", (STAR,)),
    "black": Scene("black", (BLUE,)),
}
RIGHT, WRONG = "change the background to teal", "change the background to black"
OTHER_RIGHT = "make the small red star blue"


def pair(pair_id: str, texts: Sequence[str], negatives: Sequence[str]) -> dict[str, Any]:
    ends = {"query_image_id": "q", "target_image_id": "t", "negative_image_ids": ["q", *negatives]}
    return {"pair_id": pair_id, **ends, "instructions": list(texts)}


def test_every_text_that_fits_the_target_is_asked_about_every_mined_negative():
    texts = [WRONG, RIGHT, OTHER_RIGHT]
    rows = list(negative_rows([pair("p", texts, ["teal", "black", "unknown"])], SCENES, 10))
    assert [(row["instruction"], row["fits"], row["role"]) for row in rows] == [
        (RIGHT, "yes", "negative"),
        (OTHER_RIGHT, "no", "negative"),
        (RIGHT, "no", "negative"),
        (OTHER_RIGHT, "yes", "negative"),
    ]
    assert rows[0]["query"] == rows[2]["query"] and rows[0]["candidate"] != rows[2]["candidate"]


def test_pairs_without_a_fitting_text_or_a_scene_are_left_out_and_their_number_is_limited():
    pairs = [pair(name, [RIGHT], ["black"]) for name in ("d", "c", "b")] + [pair("a", [WRONG], ["black"])]
    assert len(list(negative_rows(pairs, SCENES, 2))) == 2
    assert not list(negative_rows(pairs, {"q": SCENES["q"], "black": SCENES["black"]}, 2))
