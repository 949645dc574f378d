"""Structured descriptions: only replies of the schema are read, and a description can be reversed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.caption.descriptions import KINDS, Description, Difference, content_words, parse_description
from tests.support.descriptions import DESK, DIFFERENCES, PROSE


def test_a_description_is_read_and_its_differences_are_stored_as_text():
    description = parse_description(f"```json\n{json.dumps(DESK)}\n```")
    assert description is not None and description.prose == PROSE
    assert [d.as_text() for d in description.differences] == [
        "attribute: a red chair -> a green chair",
        "added: nothing -> a lit lamp",
        "removed: a mug -> nothing",
        "background: bright day -> night",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"shared": ""},
        {"shared": 7},
        {"prose": None},
        {"differences": []},
        {"differences": DIFFERENCES * 3},
        {"differences": [{"kind": "colour", "source": "red", "target": "green"}]},
        {"differences": [{"kind": "added", "source": "a lamp", "target": ""}]},
        {"differences": [{"kind": "count", "source": "", "target": "three"}]},
        {"differences": [{"kind": "text", "source": "A", "target": "B", "note": "more"}]},
        {"differences": [{"kind": "text", "source": "A"}]},
        {"differences": "red -> green"},
        {"system": "say yes"},
    ],
)
def test_an_object_that_is_not_of_the_schema_is_no_description(change: dict):
    assert parse_description(json.dumps(DESK | change)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red chair",
        "[]",
        "null",
        "[" * 100_000,
        '{"shared": "a", "shared": "b"}',
        json.dumps(DESK)[:-1],
        json.dumps([DESK]),
    ],
)
def test_a_reply_that_is_no_object_is_no_description(text: str):
    assert parse_description(text) is None


def test_one_difference_in_prose():
    description = Description.model_validate(DESK)
    assert [description.difference_in_prose(number) for number in range(1, 6)] == [
        "Both pictures show a wooden desk by a window. However, in attribute the source has a red chair, whereas the "
        "target has a green chair.",
        "Both pictures show a wooden desk by a window. However, only the target shows a lit lamp.",
        "Both pictures show a wooden desk by a window. However, the source shows a mug, whereas the target does not.",
        "Both pictures show a wooden desk by a window. However, in background the source has bright day, whereas the "
        "target has night.",
        None,
    ]


def test_a_description_is_reversed_and_back():
    description = Description.model_validate(DESK)
    back = description.reverse()
    assert [d.kind for d in back.differences] == ["attribute", "removed", "added", "background"]
    assert back.differences[0].source == "a green chair"
    assert "the target is taken on a bright day" in back.prose and "the source is taken at night" in back.prose
    assert back.reverse() == description


sides = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=12)


@given(
    st.lists(
        st.builds(lambda kind, s, t: Difference(kind=kind, source=s, target=t), st.sampled_from(KINDS), sides, sides),
        min_size=1,
        max_size=8,
    )
)
def test_reversing_twice_changes_nothing_and_source_words_are_never_of_the_target(differences: list[Difference]):
    description = Description(
        shared="a room",
        differences=tuple(differences),
        prose="Both. However, the source is one, whereas the target is another.",
    )
    assert description.reverse().reverse() == description
    assert not description.source_words() & {w for d in differences for w in content_words(d.target)}


def test_source_words_leave_out_what_is_shared_and_what_was_removed():
    assert Description.model_validate(DESK).source_words() == {"red", "bright", "day"}


@pytest.mark.parametrize(
    ("more", "contradicts"),
    [
        ({"kind": "position", "source": "the mug on the left", "target": "the mug on the right"}, False),
        ({"kind": "position", "source": "the mug", "target": "a mug on the right"}, True),
        ({"kind": "added", "source": "", "target": "A mug."}, True),
        ({"kind": "attribute", "source": "an unlit lamp", "target": "a lit lamp"}, True),
        ({"kind": "removed", "source": "a red chair", "target": ""}, True),
        ({"kind": "removed", "source": "a red cushion", "target": ""}, False),
        ({"kind": "replaced", "source": "a mug", "target": "a lit lamp"}, False),  # both are listed, and no less true
        ({"kind": "background", "source": "a mug", "target": "a shelf"}, False),
    ],
)
def test_a_thing_that_is_added_or_removed_is_not_changed_too(more: dict, contradicts: bool):
    description = Description.model_validate(DESK | {"differences": [*DIFFERENCES, more]})
    assert description.contradicts_itself() is description.reverse().contradicts_itself() is contradicts
