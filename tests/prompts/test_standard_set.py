"""The demonstrations and the schema of prompt set 'standard'."""

import re
from collections import Counter

from tasks.caption.checks import contains_phrase, normalize_words
from tasks.caption.descriptions import KINDS, Description
from tasks.config import load_params
from tasks.prompts.prompt_set import read_prompt_set

STANDARD = read_prompt_set("standard")
TEXTS = [(d, style, text) for d in STANDARD.demonstrations for style, text in d["texts"].items()]


def test_there_are_at_least_fifty_demonstrations_of_many_subjects_and_every_style():
    assert len(STANDARD.demonstrations) >= 50
    assert len({normalize_words(d["description"]) for d in STANDARD.demonstrations}) == len(STANDARD.demonstrations)
    assert len({normalize_words(text) for _, _, text in TEXTS}) == len(TEXTS)
    assert len({d["subject"] for d in STANDARD.demonstrations}) >= 12
    assert all(len(d["texts"]) >= 3 for d in STANDARD.demonstrations)
    styles = Counter(style for _, style, _ in TEXTS)
    assert set(styles) == set(load_params().caption.styles) and min(styles.values()) >= 25


def test_a_demonstration_names_the_target_and_never_what_only_the_source_shows():
    for demonstration, style, text in TEXTS:
        words = normalize_words(text)
        source_only = [p for p in demonstration["source_only"] if contains_phrase(words, normalize_words(p))]
        assert not source_only, text
        assert any(contains_phrase(words, normalize_words(p)) for p in demonstration["target_only"]), text
        assert len(text.split()) <= 30, text
        assert style != "question" or text.endswith("?"), text
        assert style != "short" or len(text.split()) <= 8, text


def test_a_demonstrations_description_names_both_sides():
    pattern = r"Both pictures show .+\. However, .*\bsource\b.+, whereas .*\btarget\b.+\.$"
    for demonstration in STANDARD.demonstrations:
        description = demonstration["description"]
        words = normalize_words(description)
        assert re.match(pattern, description), description
        assert 30 <= len(description.split()) <= 100
        assert all(contains_phrase(words, normalize_words(p)) for p in demonstration["source_only"]), description


def test_the_schema_is_the_one_that_replies_are_validated_by():
    """The file guides the engine and pydantic reads the reply: the same names, limits and kinds."""
    model, schema = Description.model_json_schema(), STANDARD.schema
    assert schema is not None and schema["required"] == model["required"]
    assert set(schema["properties"]) == set(model["properties"])
    side, ours = model["$defs"]["Difference"], schema["properties"]["differences"]["items"]
    assert ours["required"] == side["required"]
    assert ours["properties"]["kind"]["enum"] == list(KINDS) == side["properties"]["kind"]["enum"]
    for name in ("source", "target"):
        assert ours["properties"][name]["maxLength"] == side["properties"][name]["maxLength"]
    for name, limits in {
        "shared": ("minLength", "maxLength"),
        "prose": ("minLength", "maxLength"),
        "differences": ("minItems", "maxItems"),
    }.items():
        assert all(schema["properties"][name][limit] == model["properties"][name][limit] for limit in limits)
    # and the prompt explains each field and kind
    assert all(f'"{name}"' in STANDARD.describe for name in (*model["required"], *KINDS))
