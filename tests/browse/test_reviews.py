"""What people answer: kept line by line, the last answer of a person counts, and what all agree on becomes labels."""

from pathlib import Path

import pyarrow as pa
import pytest

from tasks.browse.published import PublishedVersion
from tasks.browse.reviews import agreement, labels, queue, write_labels
from tasks.browse.triplets import TripletIndex
from tasks.errors import DataError
from tasks.records import schemas
from tasks.reviews.answers import Review, Reviews


def review(name: str, row: str, answer: str, **more: str) -> Review:
    return Review("2026-11-29T00:00:00+00:00", name, "2026.11.28", row, "in blue", "q", "t", answer, **more)


def test_the_last_answer_of_a_person_counts_and_a_damaged_line_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    reviews = Reviews(tmp_path / "dataset")
    assert reviews.read() == []
    for given in (review("ann", "t1", "wrong"), review("ann", "t1", "right"), review("bob", "t1", "right")):
        reviews.add(given)
    assert [(r.name, r.answer) for r in reviews.read()] == [("ann", "right"), ("bob", "right")]
    with pytest.raises(DataError, match="expected one of"):
        reviews.add(review("ann", "t2", "perhaps"))
    reviews.path.write_text(reviews.path.read_text() + "{}\n")
    assert len(reviews.read()) == 2 and "reviews.jsonl, line 4: no review" in caplog.text


def test_a_text_with_a_line_break_of_unicode_is_one_answer(tmp_path: Path):
    reviews = Reviews(tmp_path / "dataset")
    reviews.add(review("ann", "t1", "right", text="red\u2028or\x85blue"))
    reviews.add(review("ann", "t2", "wrong"))
    assert [r.text for r in reviews.read()] == ["red\u2028or\x85blue", ""]


def test_two_people_agree_as_far_as_chance_would_not():
    pairs = ["rr", "rr", "ww", "rw"]
    given = [review(n, f"t{i}", a) for i, pair in enumerate(pairs) for n, a in zip("ab", pair, strict=True)]
    words = {"r": "right", "w": "wrong"}
    given = [review(r.name, r.row_id, words[r.answer]) for r in given]
    # agreed 3 of 4; by chance 0.75 * 0.5 + 0.25 * 0.5 = 0.5
    assert agreement(given) == {"rows": 4, "agreed": 3, "kappa": 0.5}
    assert agreement([review("a", "t1", "right"), review("b", "t1", "unsure")])["rows"] == 0


def test_labels_are_what_all_agree_on_and_a_better_image_is_one():
    given = [
        review("ann", "t1", "right"),
        review("bob", "t1", "right"),
        Review("", "ann", "v", "t2", "in red", "q", "t", "wrong", better="n"),
        Review("", "ann", "v", "t3", "round", "q", "t", "right"),
        Review("", "bob", "v", "t3", "round", "q", "t", "wrong"),
    ]
    assert labels(given) == [
        ("q", "t", "in blue", "yes"),
        ("q", "t", "in red", "no"),
        ("q", "n", "in red", "yes"),
    ]


def test_a_question_about_an_image_that_is_gone_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Withdrawn since, or a mistyped id of a better one."""

    class Images:
        def image(self, image_id: str) -> bytes:
            if image_id not in ("q", "t"):
                raise DataError(f"image {image_id}: not in this version")
            return image_id.encode()

    monkeypatch.setattr("tasks.browse.explorer.explorer_of", lambda _: Images())
    given = [review("ann", "t1", "right"), Review("", "ann", "v", "t2", "in red", "q", "t", "wrong", better="../n")]
    assert write_labels(PublishedVersion(tmp_path, "2026.11.28"), given, tmp_path / "labels") == 2
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["labels.csv", "q.jpg", "t.jpg"]
    assert (tmp_path / "labels" / "labels.csv").read_text().count("q.jpg,t.jpg,") == 2


def test_the_queue_begins_at_the_threshold_and_leaves_out_what_was_answered():
    rows = [
        {"triplet_id": f"t{n}", "query_image_id": "i", "instructions": ["x"], "judge_target": [score], "mined_by": []}
        for n, score in enumerate([0.99, 0.90, 0.70, 0.88])
    ]
    images = [{"image_id": "i", "source_uri": "s:i.jpg", "license_code": "CC0-1.0"}]
    tables = [pa.Table.from_pylist(r, schema=schemas()[s]) for r, s in ((rows, "triplets"), (images, "images"))]
    index = TripletIndex.build(*tables)
    assert queue(index, 0.885, []) == [3, 1, 0, 2]
    assert queue(index, 0.885, ["t3", "t0"], "accepted") == [1, 2] and queue(index, 0.885, [], "wrong_target") == []
