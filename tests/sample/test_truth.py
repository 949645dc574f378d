"""The truth checker against 50 cases written by hand, 20 of them false."""

from __future__ import annotations

import pytest

from tasks.sample.scenes import Edit, Scene, SceneObject
from tasks.sample.truth import ParsedInstruction, is_complete, is_true, parse

RED_STAR = SceneObject(0, "star", "red", "small")  # 'small red star', top left
BLUE_STAR = SceneObject(0, "star", "blue", "small")
CIRCLE = SceneObject(4, "circle", "green", "large", "striped")  # 'large striped green circle', middle centre
CROSS = SceneObject(8, "cross", "orange", "small")  # 'small orange cross', bottom right


def scene(*objects: SceneObject, on: str = "white") -> Scene:
    return Scene(on, objects)


QUERY = scene(RED_STAR, CIRCLE)
BLUE = scene(BLUE_STAR, CIRCLE)
BLUE_ELSEWHERE = scene(SceneObject(2, "star", "blue", "small"), CIRCLE)
BLUE_ON_TEAL = scene(BLUE_STAR, CIRCLE, on="teal")
TEAL = scene(RED_STAR, CIRCLE, on="teal")
ALONE = scene(CIRCLE)
MOVED = scene(SceneObject(2, "star", "red", "small"), CIRCLE)
ADDED = scene(RED_STAR, CIRCLE, CROSS)
SQUARE = scene(SceneObject(0, "square", "red", "small"), CIRCLE)
LARGE = scene(SceneObject(0, "star", "red", "large"), CIRCLE)
STRIPED = scene(SceneObject(0, "star", "red", "small", "striped"), CIRCLE)
PLAIN = scene(RED_STAR, SceneObject(4, "circle", "green", "large"))
BOTH_STARS = scene(RED_STAR, SceneObject(1, "star", "blue", "small"), CIRCLE)
SWAPPED = scene(CROSS, CIRCLE, on="light grey")

TRUE = [
    ("make the small red star blue", QUERY, BLUE),
    ("Make the small red star blue.", QUERY, BLUE),
    ("make the small red star blue", QUERY, BLUE_ELSEWHERE),  # free of place
    ("make the small red star blue", QUERY, BLUE_ON_TEAL),  # one change of two
    ("change the background to teal", QUERY, BLUE_ON_TEAL),
    ("make the small red star blue and change the background to teal", QUERY, BLUE_ON_TEAL),
    ("the same with the small red star now blue and a teal background", QUERY, BLUE_ON_TEAL),
    ("what if the small red star were blue and the background were teal?", QUERY, BLUE_ON_TEAL),
    ("keep the large striped green circle but make the small red star blue", QUERY, BLUE),
    ("keep the white background but make the small red star blue", QUERY, BLUE),
    ("keep the white background and the large striped green circle but remove the small red star", QUERY, ALONE),
    ("remove the small red star", QUERY, ALONE),
    ("without the small red star", QUERY, ALONE),
    ("the same with no small red star", QUERY, ALONE),
    ("what if there were no small red star?", QUERY, ALONE),
    ("move the small red star to the top right", QUERY, MOVED),
    ("the small red star to the top right", QUERY, MOVED),
    ("what if the small red star were at the top right?", QUERY, MOVED),
    ("add a small orange cross at the bottom right", QUERY, ADDED),
    ("what if there were a small orange cross at the bottom right?", QUERY, ADDED),
    ("with a small orange cross at the bottom right", QUERY, ADDED),
    ("the same with a new small orange cross at the bottom right", QUERY, ADDED),
    ("turn the small red star into a square", QUERY, SQUARE),
    ("the small red star as a square", QUERY, SQUARE),
    ("make the small red star large", QUERY, LARGE),
    ("the same with the small red star now striped", QUERY, STRIPED),
    ("make the large striped green circle plain", QUERY, PLAIN),
    ("the large striped green circle but plain", QUERY, PLAIN),
    ("now remove the small red star, add a small orange cross at the top left and change the background to light grey",
     QUERY, scene(SceneObject(0, "cross", "orange", "small"), CIRCLE, on="light grey")),
    ("on a teal background", QUERY, TEAL),
]  # fmt: skip
FALSE = [
    ("make the small red star blue", QUERY, QUERY),  # the query itself
    ("make the small red star blue", QUERY, BOTH_STARS),  # the red one is still there
    ("make the small red star blue", QUERY, ALONE),
    ("make the small red star blue", BOTH_STARS, BLUE),  # it had a blue one already
    ("make the small red star green", QUERY, BLUE),
    ("make the large red star blue", QUERY, BLUE),  # the query has no such star
    ("make the small red star blue and change the background to teal", QUERY, BLUE),  # half of it
    ("keep the white background but make the small red star blue", QUERY, BLUE_ON_TEAL),  # not kept
    ("keep the small orange cross but make the small red star blue", QUERY, BLUE),
    ("keep the white background", QUERY, BLUE),  # names no edit
    ("change the background to white", QUERY, BLUE),  # it is white already
    ("change the background to black", QUERY, TEAL),
    ("remove the small red star", QUERY, MOVED),
    ("remove the small orange cross", QUERY, ALONE),  # it was never there
    ("move the small red star to the top left", QUERY, QUERY),  # it is there already
    ("move the small red star to the bottom left", QUERY, MOVED),
    ("add a small orange cross at the top left", QUERY, ADDED),  # elsewhere
    ("add a small red star at the top left", QUERY, QUERY),
    ("make it nicer", QUERY, BLUE),  # cannot be read
    ("make the small red star blue and nicer", QUERY, BLUE),  # cannot be read in part
]


def test_there_are_fifty_cases_twenty_of_them_false():
    assert (len(TRUE), len(FALSE)) == (30, 20)


@pytest.mark.parametrize(("text", "query", "candidate"), TRUE)
def test_true_texts(text: str, query: Scene, candidate: Scene):
    assert is_true(text, query, candidate)


@pytest.mark.parametrize(("text", "query", "candidate"), FALSE)
def test_false_texts(text: str, query: Scene, candidate: Scene):
    assert not is_true(text, query, candidate)


def test_complete_means_every_difference_is_stated():
    assert is_complete("make the small red star blue and change the background to teal", QUERY, BLUE_ON_TEAL)
    assert not is_complete("make the small red star blue", QUERY, BLUE_ON_TEAL)


def test_kept_items_and_edits_are_parsed():
    read = parse("keep the light grey background but move the small red star to the top right")
    assert read == ParsedInstruction((Edit("move", "small red star", "top right"),), ("light grey background",))
