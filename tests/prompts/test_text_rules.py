"""Rules of a prompt set: texts that contradict themselves, and texts that state what their description does not."""

import json
import random

import pytest

from tasks.caption.checks import is_in_description
from tasks.errors import ConfigError
from tasks.prompts.prompt_set import read_prompt_set
from tasks.prompts.text_rules import TextRules, parse_text_rules
from tasks.sample.phrases import STYLES, describe, instruction
from tasks.sample.related import related_pair
from tasks.sample.scenes import difference, shared

TINY, STANDARD = read_prompt_set("tiny").rules, read_prompt_set("standard").rules


@pytest.mark.parametrize(
    "text",
    [
        "remove the large green triangle and move the large green triangle to the top left",
        "the same with no large green triangle and the large green triangle now at the top left",
        "what if the large green triangle were at the top left and there were no large green triangle?",
        "both: a white background; change: remove the small red star; add a small red star at the top left",
        "the same with a new small red star at the top left and no small red star",
        "add a small red star at the top left and make the small red star blue",
        "make the small red star blue and add a small red star at the top left",
        "move the small red star to the top left and add a large blue cross at the top left",
        "keep the black background but make the large green cross green",
        "turn the large green star into a star",
        "the small red star but small",
    ],
)
def test_a_text_of_the_sample_world_that_contradicts_itself_is_found(text: str):
    assert TINY.contradicts_itself(text)


def test_no_true_text_of_the_sample_world_contradicts_itself_or_leaves_its_description():
    rng = random.Random(5)
    for edited in [1, 2, 3] * 130:
        query, target = related_pair(rng, "train", edited)
        edits, common = difference(query, target), shared(query, target)
        description = describe(query, target)
        assert not TINY.contradicts_itself(description), description
        for style in STYLES:
            text = instruction(edits, common, style)
            assert not TINY.contradicts_itself(text), text
            assert is_in_description(text, description, TINY), (text, description)


def test_a_text_with_a_thing_or_a_place_that_its_description_lacks_is_found():
    description = "both: a small star, a small red star; change: move the large blue cross to the top left"
    assert is_in_description("Keep the small red star but move the large blue cross to the top left", description, TINY)
    assert not is_in_description("move the large red cross to the top left", description, TINY)
    assert not is_in_description("what if the large blue cross were at the middle left?", description, TINY)


@pytest.mark.parametrize(
    ("text", "contradicts"),
    [
        ("Remove the dog and move the dog to the sofa.", True),
        ("remove the old wooden chair, but paint the old wooden chair white", True),
        ("Move the cup to the left; then delete the cup.", True),
        ("keep the lamp, open the window and remove the lamp", True),
        ("Make the door red and get rid of the door.", True),
        ("Replace the dog with a dog.", True),
        ("Remove the cup on the left and move the cup on the right to the shelf.", False),
        ("Remove the dog and move the cat to the sofa.", False),
        ("Remove the cup, but keep the cup holder.", False),
        ("Replace the dog with a larger dog.", False),
        ("Make the door red and get rid of the handle.", False),
        ("Turn the day into night.", False),
    ],
)
def test_a_text_about_photographs_that_contradicts_itself_is_found(text: str, contradicts: bool):
    assert STANDARD.contradicts_itself(text) is contradicts


def test_writing_that_a_text_quotes_must_be_in_its_description():
    description = "Both pictures show a shop. However, the source has OPEN, whereas the target has Closed today."
    assert is_in_description('the same with a sign that says "closed today!"', description, STANDARD)
    assert not is_in_description("now the sign says “Sold out”", description, STANDARD)
    assert not is_in_description('change the sign to "pen"', description, STANDARD)  # a part of a word is not the word


def test_no_demonstration_of_the_standard_set_breaks_its_rules():
    for demonstration in read_prompt_set("standard").demonstrations:
        for text in (demonstration["description"], *demonstration["texts"].values()):
            assert not STANDARD.contradicts_itself(text), text
            assert is_in_description(text, demonstration["description"], STANDARD), text


def test_a_set_without_rules_lets_every_text_pass():
    rules = read_prompt_set("plain").rules
    assert rules == TextRules() and not rules.contradicts_itself("x") and is_in_description('"x"', "", rules)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"verbatim": []}),
        json.dumps({"verbatim": [], "contradictions": [["a thing", "("]]}),
        json.dumps({"verbatim": ["one"], "contradictions": []}),
        json.dumps({"verbatim": None, "contradictions": []}),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(text: str):
    with pytest.raises(ConfigError, match=r"mine/rules.json: .*expected an object with 'contradictions'"):
        parse_text_rules(text, "mine/rules.json")
