"""The truth about instructions of the sample world; for evaluation only, no stage reads it.

A text is read back into edits and keeps, whatever its style, and held against the scenes behind two images. Attribute
edits are free of place: 'make the small red star blue' holds when the query has a small red star and the candidate has
none, but has a small blue star that the query had not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tasks.sample.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    Edit,
    Scene,
    difference,
    renamed,
)

_NAME = rf"(?P<n>(?:{'|'.join(SIZES)})(?: striped)? (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
_PLACE = rf"(?P<v>{'|'.join(PLACES)})"
_GROUND = rf"(?P<v>{'|'.join(BACKGROUNDS)})"
_VALUES = {
    "colour": rf"(?P<v>{'|'.join(COLOURS)})",
    "shape": rf"an? (?P<v>{'|'.join(SHAPES)})",
    "size": rf"(?P<v>{'|'.join(SIZES)})",
    "pattern": rf"(?P<v>{'|'.join(PATTERNS)})",
}
_CLAUSES: list[tuple[str, re.Pattern[str]]] = [
    *((kind, re.compile(rf"make the {_NAME} {value}")) for kind, value in _VALUES.items() if kind != "shape"),
    ("shape", re.compile(rf"turn the {_NAME} into {_VALUES['shape']}")),
    *((kind, re.compile(rf"the {_NAME} (?:now|were|is|in|as|but) {value}")) for kind, value in _VALUES.items()),
    ("move", re.compile(rf"move the {_NAME} to the {_PLACE}")),
    ("move", re.compile(rf"the {_NAME} (?:now at|were at|is at|to) the {_PLACE}")),
    ("add", re.compile(rf"(?:add|there were|with|there is)? ?a (?:new )?{_NAME} (?:at|in) the {_PLACE}")),
    ("remove", re.compile(rf"(?:remove|without) the {_NAME}")),
    ("remove", re.compile(rf"(?:there were )?no {_NAME}")),
    (
        "background",
        re.compile(rf"(?:change the background to|make the background|the background (?:were|is|now)) {_GROUND}"),
    ),
    ("background", re.compile(rf"(?:on )?an? {_GROUND} background")),
]
_KEPT = re.compile(rf"the (?:{_GROUND} background|{_NAME})")


@dataclass(frozen=True)
class Reading:
    """What a text says: `edits` to make; `keeps`, names of objects or '<background> background', to be in both."""

    edits: tuple[Edit, ...]
    keeps: tuple[str, ...]


def parse(text: str) -> Reading | None:
    """The edits and keeps that a text names, in its order; None where any part of it cannot be read."""
    line = " ".join(text.split()).strip().rstrip("?.!").strip()
    line = line[:1].lower() + line[1:]
    keeps: list[str] = []
    if line.startswith("keep "):
        kept, but, line = line.removeprefix("keep ").partition(" but ")
        for part in re.split(r",? and |, ", kept):
            found = _KEPT.fullmatch(part)
            if found is None:
                return None
            keeps.append(found["n"] or f"{found['v']} background")
        if not but:
            return Reading((), tuple(keeps))
    for opening in ("the same with ", "the same but ", "what if ", "now ", "please "):
        line = line.removeprefix(opening)
    edits: list[Edit] = []
    for clause in re.split(r",? and |, |; ", line):
        found_edit = _read_clause(clause)
        if found_edit is None:
            return None
        edits.append(found_edit)
    return Reading(tuple(edits), tuple(keeps))


def _read_clause(clause: str) -> Edit | None:
    for kind, pattern in _CLAUSES:
        found = pattern.fullmatch(clause)
        if found is not None:
            groups = found.groupdict()
            return Edit(kind, groups.get("n") or "", groups.get("v") or "")
    return None


def holds(edit: Edit, query: Scene, candidate: Scene) -> bool:
    """Whether the candidate is what the edit makes of the query, as far as this edit goes."""
    if edit.kind == "background":
        return candidate.background == edit.value != query.background
    here, there = query.named(edit.name), candidate.named(edit.name)
    if edit.kind == "add":
        return here is None and there is not None and there.place == edit.value
    if edit.kind == "remove":
        return here is not None and there is None
    if edit.kind == "move":
        return here is not None and there is not None and here.place != edit.value == there.place
    if edit.kind not in ATTRIBUTES:
        raise ValueError(f"edit of kind {edit.kind!r}; known: {[*ATTRIBUTES, 'move', 'add', 'remove', 'background']}")
    new = renamed(edit.name, edit.kind, edit.value)
    return here is not None and there is None and candidate.named(new) is not None and query.named(new) is None


def keeps(kept: str, query: Scene, candidate: Scene) -> bool:
    """Whether both scenes have what is to be kept."""
    if kept.endswith(" background"):
        return query.background == candidate.background == kept.removesuffix(" background")
    return query.named(kept) is not None and candidate.named(kept) is not None


def satisfies(text: str, query: Scene, candidate: Scene) -> bool:
    """Whether the text reads, names at least one edit, and all that it says holds between query and candidate."""
    reading = parse(text)
    if reading is None or not reading.edits:
        return False
    edits_hold = all(holds(edit, query, candidate) for edit in reading.edits)
    return edits_hold and all(keeps(kept, query, candidate) for kept in reading.keeps)


def is_true(text: str, query: Scene, candidate: Scene) -> bool:
    """`satisfies`, and the query itself does not satisfy it."""
    return satisfies(text, query, candidate) and not satisfies(text, query, query)


def is_complete(text: str, query: Scene, target: Scene) -> bool:
    """Whether the text is true and states every difference between the two scenes."""
    reading = parse(text)
    return reading is not None and is_true(text, query, target) and set(difference(query, target)) <= set(reading.edits)


def measure(triplets: Iterable[dict], scene_of: Callable[[str], Scene | None]) -> dict[str, float | int]:
    """Shares over accepted triplets, a text or a (text, negative) pair counting once.

    Args:
        triplets: records with query_image_id, target_image_id, instructions (texts), negative_image_ids (the query
            first).
        scene_of: the scene behind an image id, or None where it has none; a text about such an image counts as false.
    Returns:
        instructions_true, instructions_complete: shares of texts; negatives_also_right: share of (text, mined negative)
        pairs whose negative the text fits too, negative 0 left out; texts, negatives: what the shares are of.
    """
    texts = true = complete = negatives = right = 0
    for triplet in triplets:
        query, target = scene_of(triplet["query_image_id"]), scene_of(triplet["target_image_id"])
        mined = [scene_of(image_id) for image_id in list(triplet["negative_image_ids"])[1:]]
        for text in triplet["instructions"]:
            texts += 1
            negatives += len(mined)
            if query is None:
                continue
            if target is not None:
                true += is_true(text, query, target)
                complete += is_complete(text, query, target)
            right += sum(scene is not None and is_true(text, query, scene) for scene in mined)
    return {
        "instructions_true": true / texts if texts else 0.0,
        "instructions_complete": complete / texts if texts else 0.0,
        "negatives_also_right": right / negatives if negatives else 0.0,
        "texts": texts,
        "negatives": negatives,
    }
