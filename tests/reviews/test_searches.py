"""What people wanted first in composed search: one item for one wish, and no line stops a page."""

import json
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.reviews.searches import FEEDBACK, UPLOAD, feedback_files, read_searches, uploaded_image

KEY = UPLOAD + "a" * 64


def wish(target: str, name: str, at: str, **more: str) -> str:
    row = {"query_image": "q", "text": "in red", "should_be_first": target, "name": name, "at": at, **more}
    return json.dumps(row) + "\n"


def test_the_same_wish_of_two_people_is_one_item_and_comes_first(tmp_path: Path):
    lines = [
        wish("t1", "Ada", "2026-11-02", version="2026.11.01"),
        wish("t2", "Ada", "2026-11-03"),
        wish("t2", "Bob", "2026-11-04"),
        wish("t2", "Bob", "2026-11-05"),
    ]
    lines += ["{}\n", "[1]\n", "no JSON\n", wish("q", "Eve", "2026"), wish("t3", "Eve", "2026", text="")]
    (tmp_path / FEEDBACK).write_text("".join(lines))
    first, second = read_searches([tmp_path / FEEDBACK])
    assert (first.target, first.said) == ("t2", (("Ada", "2026-11-03"), ("Bob", "2026-11-04")))
    assert (second.target, second.said, second.version) == ("t1", (("Ada", "2026-11-02"),), "2026.11.01")
    assert first.row_id.startswith("search-") and first.row_id != second.row_id


def test_an_upload_is_found_by_its_key_alone(tmp_path: Path):
    """In the folder of a `serve` beside the clone; a key is no path."""
    folder = tmp_path / "studio" / ".run"
    (folder / "search_feedback").mkdir(parents=True)
    (folder / FEEDBACK).write_text(wish("t", "Ada", "2026", query_image=KEY))
    (folder / "search_feedback" / f"{KEY}.jpg").write_bytes(b"jpeg")
    (folder / "secret.jpg").write_bytes(b"secret")
    files = feedback_files(tmp_path / "dataset")
    assert uploaded_image(files, KEY) == b"jpeg"
    for key in ("upload-../secret", f"{UPLOAD}{'b' * 64}", "../secret", ""):
        with pytest.raises(DataError, match="no uploaded image"):
            uploaded_image(files, key)
