"""The rows that a version left out, as a person looks at them: the images, where they came from, and the details.

The image of a file that ingest dropped is not stored; of a copy the image is shown that it is a copy of. A row about a
pair shows query and target, one about a negative the negative, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.browse.published import PublishedVersion

IMAGE_FIELDS = {
    "query": "query",
    "target": "target",
    "negative": "negative",
    "image_id": "negative",
    "copy_of": "copy of",
}
PAIR_KEY = re.compile(r"([0-9a-f]{32})(?::.*)?", re.S)
NAMES = {"p_yes": "P(yes)"}  # of values in a detail, where the stored name is no word
HIDDEN = ("sha256", "requests", "tokens")  # of a detail: what tells a person nothing


def shown_drops(version: PublishedVersion, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Dropped rows as the page shows them.

    Args:
        version: that holds them.
        rows: of table `dropped`, few.
    Returns:
        key, batch, images (label, id, where it came from) and details (name, value; or name and texts with notes).
    Raises:
        DataError: the DVC cache lacks a file.
    """
    ends = pair_ends(version, [str(row["key"]) for row in rows])
    values = [detail_values(row["detail"]) for row in rows]
    wanted = [
        image_fields(of_row, ends.get(pair_of(str(row["key"])))) for row, of_row in zip(rows, values, strict=True)
    ]
    names = image_names(version, {image for images in wanted for _, image in images})
    shown = []
    for row, of_row, images in zip(rows, values, wanted, strict=True):
        known = [(label, image, names[image]) for label, image in images if image in names]
        left = {n: v for n, v in of_row.items() if n not in HIDDEN and not (n in IMAGE_FIELDS and v in names)}
        shown.append({"key": row["key"], "batch": row["batch"], "images": known, "details": shown_details(left)})
    return shown


def detail_values(text: str | None) -> dict[str, Any]:
    """A row's detail as a mapping; a detail that is no JSON object, a sentence, has no name."""
    try:
        values = json.loads(text or "{}")
    except ValueError:
        return {"": str(text)}
    return values if isinstance(values, dict) else {"": values}


def pair_of(key: str) -> str:
    """The pair id that a row's key is or begins with; empty for the key of a file."""
    found = PAIR_KEY.fullmatch(key)
    return found[1] if found else ""


def image_fields(values: Mapping[str, Any], ends: tuple[str, str] | None) -> list[tuple[str, str]]:
    """(label, image id) of the images that a row is about, each once, query and target first."""
    found = list(zip(("query", "target"), ends, strict=True)) if ends else []
    found += [(label, str(values[name])) for name, label in IMAGE_FIELDS.items() if values.get(name)]
    return list({image: (label, image) for label, image in reversed(found)}.values())[::-1]


def shown_details(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, text) of plain values; (name, [(text, note)]) of a list of texts with their scores and reasons."""
    shown: list[tuple[str, Any]] = []
    for name, value in values.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            shown.append((name, [text_and_note(entry) for entry in value]))
        elif isinstance(value, dict):
            shown.append((name, [(str(text), str(key)) for key, text in value.items()]))
        elif isinstance(value, list):
            shown.append((name, ", ".join(map(str, value))))
        else:
            shown.append((name, str(value)))
    return shown


def text_and_note(entry: Mapping[str, Any]) -> tuple[str, str]:
    """A text of a row, and what is said of it: style, reason, score."""
    said = {NAMES.get(name, name): value for name, value in entry.items() if name not in ("instruction", "text")}
    notes = [f"{name.replace('_', ' ')} {value}" for name, value in said.items()]
    return str(entry.get("instruction", entry.get("text", ""))), ", ".join(notes)


def pair_ends(version: PublishedVersion, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """pair id -> (query, target), of the pairs that keys name and the version has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = sorted({pair for key in keys if (pair := pair_of(key))})
    if not wanted:
        return {}
    pairs = version.table("data/pairs", ["pair_id", "query_image_id", "target_image_id"])
    if not len(pairs):
        return {}
    rows = pairs.filter(pc.is_in(pairs["pair_id"], value_set=pa.array(wanted, pa.string()))).to_pylist()
    return {row["pair_id"]: (row["query_image_id"], row["target_image_id"]) for row in rows}


def image_names(version: PublishedVersion, image_ids: Iterable[str]) -> dict[str, str]:
    """image id -> where it came from, of those that the version has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = sorted(image_ids)
    if not wanted:
        return {}
    images = version.table("data/images", ["image_id", "source_uri"])
    if not len(images):
        return {}
    rows = images.filter(pc.is_in(images["image_id"], value_set=pa.array(wanted, pa.string()))).to_pylist()
    return {row["image_id"]: row["source_uri"] for row in rows}
