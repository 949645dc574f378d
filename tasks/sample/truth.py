"""Ground truth about instructions of the sample world; for evaluation only, no stage reads it.

A text of any style is parsed into edits and kept items, which are checked against the scenes of two images. Attribute
edits do not depend on position: 'make the small red star blue' is true when the query has a small red star and the
candidate has none, but has a small blue star that the query does not have.
"""

from __future__ import annotations

import re
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
    rename_object,
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
class ParsedInstruction:
    """A parsed instruction.

    Attributes:
        edits: to be made.
        keeps: names of objects, or '<background> background', that must be in both images.
    """

    edits: tuple[Edit, ...]
    keeps: tuple[str, ...]


def parse(text: str) -> ParsedInstruction | None:
    """The edits and kept items of a text, in its order; None where any part of it is not in the grammar."""
    line = " ".join(text.split()).strip().rstrip("?.!").strip()
    line = line[:1].lower() + line[1:]
    keeps: list[str] = []
    if line.startswith("keep "):
        kept, but, line = line.removeprefix("keep ").partition(" but ")
        for part in re.split(r",? and |, ", kept):
            match = _KEPT.fullmatch(part)
            if match is None:
                return None
            keeps.append(match["n"] or f"{match['v']} background")
        if not but:
            return ParsedInstruction((), tuple(keeps))
    for opening in ("the same with ", "the same but ", "what if ", "now ", "please "):
        line = line.removeprefix(opening)
    edits: list[Edit] = []
    for clause in re.split(r",? and |, |; ", line):
        edit = _parse_clause(clause)
        if edit is None:
            return None
        edits.append(edit)
    return ParsedInstruction(tuple(edits), tuple(keeps))


def _parse_clause(clause: str) -> Edit | None:
    for kind, pattern in _CLAUSES:
        match = pattern.fullmatch(clause)
        if match is not None:
            groups = match.groupdict()
            return Edit(kind, groups.get("n") or "", groups.get("v") or "")
    return None


def is_edit_true(edit: Edit, query: Scene, candidate: Scene) -> bool:
    """Whether the candidate differs from the query as this edit says."""
    if edit.kind == "background":
        return candidate.background == edit.value != query.background
    here, there = query.find(edit.name), candidate.find(edit.name)
    if edit.kind == "add":
        return here is None and there is not None and there.place == edit.value
    if edit.kind == "remove":
        return here is not None and there is None
    if edit.kind == "move":
        return here is not None and there is not None and here.place != edit.value == there.place
    if edit.kind not in ATTRIBUTES:
        raise ValueError(f"edit of kind {edit.kind!r}; known: {[*ATTRIBUTES, 'move', 'add', 'remove', 'background']}")
    new = rename_object(edit.name, edit.kind, edit.value)
    return here is not None and there is None and candidate.find(new) is not None and query.find(new) is None


def is_kept(item: str, query: Scene, candidate: Scene) -> bool:
    """Whether both scenes contain what is to be kept: an object's name, or '<background> background'."""
    if item.endswith(" background"):
        return query.background == candidate.background == item.removesuffix(" background")
    return query.find(item) is not None and candidate.find(item) is not None


def satisfies(text: str, query: Scene, candidate: Scene) -> bool:
    """Whether the text parses, names at least one edit, and is true of query and candidate in all its parts."""
    reading = parse(text)
    if reading is None or not reading.edits:
        return False
    are_edits_true = all(is_edit_true(edit, query, candidate) for edit in reading.edits)
    return are_edits_true and all(is_kept(item, query, candidate) for item in reading.keeps)


def is_true(text: str, query: Scene, candidate: Scene) -> bool:
    """Whether the candidate satisfies the text and the query itself does not."""
    return satisfies(text, query, candidate) and not satisfies(text, query, query)


def is_complete(text: str, query: Scene, target: Scene) -> bool:
    """Whether the text is true and states every difference between the two scenes."""
    reading = parse(text)
    return reading is not None and is_true(text, query, target) and set(difference(query, target)) <= set(reading.edits)
