"""Composed search's wishes in the review queue: those whose images the version has, and what was said once answered."""

import json
from pathlib import Path

import pytest

from tasks.browse import searches
from tasks.errors import DataError
from tasks.pages.render import html
from tasks.reviews.answers import Review
from tasks.reviews.searches import FEEDBACK, REASON, UPLOAD

KEY = UPLOAD + "a" * 64


class Version:
    """An explorer of a version with two images."""

    def sources(self, image_ids: set[str]) -> dict[str, str]:
        """Where they come from."""
        return {image_id: f"shop:{image_id}.jpg" for image_id in image_ids & {"q", "t"}}

    def image(self, image_id: str) -> bytes:
        """Its bytes."""
        return image_id.encode()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A deployment's clone, beside a folder in which three wishes were stored: one from an upload, one too old."""
    folder = tmp_path / "studio" / ".run"
    (folder / "search_feedback").mkdir(parents=True)
    (folder / "search_feedback" / f"{KEY}.jpg").write_bytes(b"uploaded")
    said = {"text": "in <b>red</b>", "name": "Ada", "at": "2026-11-28T10:00:00+00:00", "version": "2026.11.28"}
    ends = [("q", "t"), (KEY, "t"), ("q", "withdrawn")]
    lines = [json.dumps({**said, "query_image": query, "should_be_first": target}) for query, target in ends]
    (folder / FEEDBACK).write_text("\n".join(lines))
    return tmp_path / "dataset"


def test_a_wish_waits_until_this_person_has_answered_it_and_then_shows_what_people_said(clone: Path):
    items = searches.items_of(Version(), clone)  # type: ignore[arg-type]
    assert {(item["query"], item["target"]) for item in items} == {("q", "t"), (KEY, "t")}
    assert {item["query_source"] for item in items} == {"shop:q.jpg", "uploaded by a person"}
    done, left = items
    assert searches.waiting(items, [done["id"]], "") == searches.waiting(items, [done["id"]], REASON) == [left]
    assert searches.waiting(items, [], "accepted") == [], "the queue of another reason has none"
    said = [Review("", name, "v", done["id"], "", "", "", answer) for name, answer in (("a", "right"), ("b", "wrong"))]
    (shown,) = searches.verdicts(items, said, [done["id"]])
    assert shown["answers"] == [("right", 1), ("wrong", 1)] and shown["text"] == "in <b>red</b>"
    values = {"waiting": 1, "answered": 1, "threshold": "0.8", "reason": REASON, "skip": 0, "token": "t"}
    values |= {"up": "../../", "agreement": {"rows": 0}, "reasons": [REASON], "may_answer": True, "searches": [shown]}
    page = html("triplet_review.html.j2", name="2026.11.28", row=left, **values)
    assert "<bdi>Ada</bdi>, 2026-11-28 10:00 UTC" in page and "in &lt;b&gt;red&lt;/b&gt;" in page and "wrong 1" in page


def test_an_upload_is_shown_beside_the_versions_images(clone: Path):
    assert searches.image(Version(), clone, KEY) == b"uploaded"  # type: ignore[arg-type]
    assert searches.image(Version(), clone, "q") == b"q"  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no uploaded image"):
        searches.image(Version(), clone, f"{UPLOAD}../../dataset/secret")
