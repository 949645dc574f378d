"""What people said should have been the first result of a composed search: items of the review queue.

`python -m tasks serve` appends a line of JSON to `.run/search_feedback.jsonl` of the folder that it serves; an image
that a person had uploaded for it lies in the folder of that name beside it. The queue reads the files of all folders
beside the deployment's clone, so that `serve --root` beside it needs no setting. The same image wanted for the same
query by several people is one item. A line that is none is left out: nothing that people wrote stops a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.names import stable_id

FEEDBACK = "search_feedback.jsonl"
REASON = "composed_search"  # by which the queue shows these items alone
ROW_PREFIX = "search-"  # a review's row id of such an item begins so
UPLOAD = "upload-"  # a key of an uploaded image begins so; the rest is the SHA-256 of its stored form
UPLOAD_KEY = re.compile(rf"{UPLOAD}[0-9a-f]{{64}}")


@dataclass(frozen=True)
class SearchItem:
    """A query, and the image that people wanted first.

    Attributes:
        query: image id, or key of an uploaded image.
        text: the change.
        target: id of the wanted image.
        said: (name, time) of each person, the earliest first; time is UTC, ISO 8601.
        version: that was searched when it was said first; empty where the line does not say.
    """

    query: str
    text: str
    target: str
    said: tuple[tuple[str, str], ...]
    version: str = ""

    @property
    def row_id(self) -> str:
        """What a review of it names."""
        return ROW_PREFIX + stable_id(self.query, self.text, self.target)


def feedback_files(clone: Path, further: Iterable[Path] = ()) -> list[Path]:
    """Files of answers to composed search: of the folders beside the clone, and those that are named."""
    beside = clone.resolve().parent.glob(f"*/.run/{FEEDBACK}")
    return sorted({path.resolve() for path in (*beside, *further) if path.exists()})


def read_searches(files: Sequence[Path]) -> list[SearchItem]:
    """The items of the files, those that most people named first, then the earliest.

    Args:
        files: of `feedback_files`.
    """
    said: dict[tuple[str, str, str], dict[str, str]] = {}
    versions: dict[tuple[str, str, str], str] = {}
    for line in (line for path in files for line in path.read_bytes().split(b"\n")):
        row = _row(line)
        if row is None:
            continue
        key = (row["query_image"], row["text"], row["should_be_first"])
        people = said.setdefault(key, {})
        people[row["name"]] = min(row["at"], people.get(row["name"], row["at"]))
        versions.setdefault(key, row["version"])
    items = [
        SearchItem(*key, tuple(sorted(people.items(), key=lambda named: named[::-1])), versions[key])
        for key, people in said.items()
    ]
    return sorted(items, key=lambda item: (-len(item.said), item.said[0][1], item.row_id))


def _row(line: bytes) -> dict[str, str] | None:
    """A line's texts; None where it is no answer, or not one about an image, a text and another image."""
    try:
        row: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    names = ("query_image", "text", "should_be_first", "name", "at", "version")
    texts = {name: value if isinstance(value := row.get(name), str) else "" for name in names}
    is_whole = texts["query_image"] and texts["text"] and texts["should_be_first"]
    return texts if is_whole and texts["query_image"] != texts["should_be_first"] else None


def uploaded_image(files: Iterable[Path], key: str) -> bytes:
    """The stored JPEG that a person had uploaded for a search.

    Args:
        files: of `feedback_files`.
        key: of the image, as it stands in an item.
    Raises:
        DataError: no such image, or no longer.
    """
    if UPLOAD_KEY.fullmatch(key):
        for path in files:
            file = path.with_suffix("") / f"{key}.jpg"
            if file.is_file():
                return file.read_bytes()
    raise DataError(f"image {key[:19]!r}: no uploaded image of this name is kept")
