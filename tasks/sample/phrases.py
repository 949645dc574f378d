"""Texts of the sample world: descriptions, captions, and instructions in five styles.

A description is the vision-language model's output for two images:
`both: a small red star, a white background; change: make the large red circle blue; remove the small green cross`.
An instruction is the writer's output for a description. `truth.parse` parses every style.

The tiny checkpoints were trained on these texts: changing a template makes them wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from tasks.sample.scenes import Edit, Scene, difference, shared

STYLES = ("imperative", "noun phrase", "question", "keep", "short")

_PHRASES: dict[str, dict[str, str]] = {
    "imperative": {
        "colour": "make the {n} {v}",
        "shape": "turn the {n} into a {v}",
        "size": "make the {n} {v}",
        "pattern": "make the {n} {v}",
        "move": "move the {n} to the {v}",
        "add": "add a {n} at the {v}",
        "remove": "remove the {n}",
        "background": "change the background to {v}",
    },
    "noun phrase": {
        "colour": "the {n} now {v}",
        "shape": "the {n} now a {v}",
        "size": "the {n} now {v}",
        "pattern": "the {n} now {v}",
        "move": "the {n} now at the {v}",
        "add": "a new {n} at the {v}",
        "remove": "no {n}",
        "background": "a {v} background",
    },
    "question": {
        "colour": "the {n} were {v}",
        "shape": "the {n} were a {v}",
        "size": "the {n} were {v}",
        "pattern": "the {n} were {v}",
        "move": "the {n} were at the {v}",
        "add": "there were a {n} at the {v}",
        "remove": "there were no {n}",
        "background": "the background were {v}",
    },
    "short": {
        "colour": "the {n} in {v}",
        "shape": "the {n} as a {v}",
        "size": "the {n} but {v}",
        "pattern": "the {n} but {v}",
        "move": "the {n} to the {v}",
        "add": "with a {n} at the {v}",
        "remove": "without the {n}",
        "background": "on a {v} background",
    },
}


def phrase(edit: Edit, style: str = "imperative") -> str:
    """One edit in the words of a style ('keep' uses imperatives)."""
    return _PHRASES["imperative" if style == "keep" else style][edit.kind].format(n=edit.name, v=edit.value)


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def instruction(edits: Sequence[Edit], common: Sequence[str], style: str) -> str:
    """The edits as one instruction of a style; `common` is what both images share, as `scenes.shared` words it."""
    if style == "short":
        return phrase(edits[0], style)
    text = _join([phrase(edit, style) for edit in edits])
    if style == "noun phrase":
        return f"the same with {text}"
    if style == "question":
        return f"what if {text}?"
    if style == "keep":
        return f"keep the {common[-1]} but {text}" if common else f"now {text}"
    return text


def describe(query: Scene, target: Scene) -> str:
    """What two scenes share and what changed, in the grammar that the describer is trained to write."""
    return description(difference(query, target), shared(query, target))


def description(edits: Sequence[Edit], common: Sequence[str]) -> str:
    """As `describe`, from the edits and what both scenes share."""
    both = ", ".join(f"a {name}" for name in common) or "nothing"
    return f"both: {both}; change: {'; '.join(phrase(edit) for edit in edits) or 'nothing'}"


def parse_description(text: str) -> tuple[list[str], list[str]] | None:
    """(what both share, imperative phrases of the changes) of a description, or None where it is not in the grammar."""
    match = re.fullmatch(r"both: (.+?); change: (.+)", text.strip())
    if match is None:
        return None
    both = [] if match[1] == "nothing" else [part.removeprefix("a ") for part in match[1].split(", ")]
    return both, [] if match[2] == "nothing" else match[2].split("; ")


def caption(scene: Scene) -> str:
    """The scene in one line: names, positions, background."""
    objects = ", ".join(f"a {item.name} at the {item.place}" for item in scene.objects)
    return f"{objects} on a {scene.background} background"


def web_caption(scene: Scene, rng: random.Random) -> str:
    """The scene as a web page might caption it, in one of several wordings."""
    objects = list(scene.objects)
    rng.shuffle(objects)
    preposition = "in" if rng.random() < 0.3 else "at"
    parts = [f"a {item.name} {preposition} the {item.place}" for item in objects]
    text = _join(parts) if rng.random() < 0.6 else ", ".join(parts)
    form = rng.choice(
        (
            "{text} on a {ground} background",
            "picture of {text} on a {ground} background",
            "{ground} background with {text}",
            "on a {ground} background: {text}",
            "{text}, {ground} background",
        )
    )
    return form.format(text=text, ground=scene.background)
