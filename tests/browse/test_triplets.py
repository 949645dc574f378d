"""The explorer's index finds what a loop over the rows finds: that loop is its specification."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.browse.selection import Selection, selection_from, split_words
from tasks.browse.triplets import TripletIndex, rejected_rows
from tasks.records import schemas

WORDS = ("red", "redder", "Blue", "car.", "a", "Übung")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
ENCODERS, STYLES = ("semantic", "pattern"), ("short", "question")


@st.composite
def triplets(draw: Any) -> list[dict[str, Any]]:
    rows = []
    for n in range(draw(st.integers(0, 8))):
        texts = draw(st.lists(TEXTS, min_size=1, max_size=3))
        rows.append(
            {
                "triplet_id": f"t{n}",
                "pair_id": f"p{n}",
                "batch": "2026.11.16",
                "query_image_id": draw(st.sampled_from(["i0", "i1"])),
                "target_image_id": "i2",
                "instructions": texts,
                "styles": [draw(st.sampled_from(STYLES)) for _ in texts],
                "judge_target": [draw(st.sampled_from([0.25, 0.5, 1.0])) for _ in texts],
                "mined_by": draw(st.lists(st.sampled_from(ENCODERS), min_size=1, max_size=2, unique=True)),
            }
        )
    return rows


IMAGES = [
    {"image_id": f"i{n}", "source_uri": f"{'shop' if n else 'sample'}:{n}.jpg", "license_code": f"L{n % 2}"}
    for n in range(3)
]


def table(rows: list[dict[str, Any]], schema: str) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schemas()[schema])


def naive(rows: list[dict[str, Any]], wanted: Selection) -> list[str]:
    """Row by row: every word of the text begins a word of the instructions, and each filter holds."""
    images = {image["image_id"]: image for image in IMAGES}
    found = []
    for row in rows:
        image = images[row["query_image_id"]]
        words = split_words(" ".join(row["instructions"]))
        holds = (
            all(any(word.startswith(wish) for word in words) for wish in split_words(wanted.text)),
            not wanted.encoder or wanted.encoder in row["mined_by"],
            not wanted.style or wanted.style in row["styles"],
            not wanted.source or image["source_uri"].startswith(wanted.source + ":"),
            not wanted.licence or image["license_code"] == wanted.licence,
            wanted.low <= min(row["judge_target"]) <= wanted.high,
        )
        if all(holds):
            found.append(row["triplet_id"])
    return found


@settings(max_examples=60, deadline=None)
@given(
    triplets(),
    st.builds(
        Selection,
        text=st.sampled_from(["", "red", "blue car", "RED!", "üb", "zz"]),
        encoder=st.sampled_from(["", "semantic", "nobody"]),
        style=st.sampled_from(["", "short"]),
        source=st.sampled_from(["", "shop", "sample"]),
        licence=st.sampled_from(["", "L0"]),
        low=st.sampled_from([0.0, 0.5]),
        high=st.sampled_from([0.5, 1.0]),
    ),
)
def test_a_search_finds_what_a_loop_over_the_rows_finds(rows: list[dict[str, Any]], wanted: Selection):
    index = TripletIndex.build(table(rows, "triplets"), table(IMAGES, "images"))
    numbers = index.find(wanted)
    assert [row["triplet_id"] for row in index.rows(numbers)] == naive(rows, wanted)
    assert [json.loads(line)["triplet_id"] for line in b"".join(index.lines(numbers, 2)).splitlines()] == naive(
        rows, wanted
    )


def test_rejected_pairs_stand_beside_with_their_reason_and_texts():
    pair = {"pair_id": "p9", "query_image_id": "i0", "target_image_id": "i1", "mined_by": ["semantic"]}
    texts = {"pair_id": "p9", "batch": "2026.11.16", "instructions": ["make it green"], "styles": ["short"]}
    dropped = [
        {"stage": "judge", "batch": "2026.11.16", "key": "p9", "reason": "wrong_target", "detail": '{"score": 0.1}'},
        {"stage": "judge", "batch": "2026.11.16", "key": "p9:1", "reason": "false_negative", "detail": "{}"},
    ]
    rejected = rejected_rows(table([texts], "captioned"), table([pair], "pairs"), table(dropped, "dropped"))
    index = TripletIndex.build(table([], "triplets"), table(IMAGES, "images"), rejected)
    assert index.choices()["status"] == ["accepted", "rejected", "wrong_target"]
    (row,) = index.rows(index.find(Selection(text="green", status="rejected")))
    assert (row["reason"], row["instructions"]) == ("wrong_target", ["make it green"])
    assert len(index.find(Selection())) == 0 and len(index.find(Selection(status="wrong_target"))) == 1


@pytest.mark.parametrize("values", [{"low": "nan"}, {"low": "-1", "high": "7"}, {"low": "x", "high": ""}])
def test_a_strangers_numbers_that_are_none_count_as_not_given(values: dict[str, str]):
    assert selection_from(values) == Selection()
