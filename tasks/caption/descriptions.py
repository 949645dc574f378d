"""Descriptions by a form: what a describing model is asked for as JSON, and how its reply is read, strictly.

The form stands beside the prompt that asks for it (tasks/prompts/<set>/describe.schema.json). Engines that can be
guided get it; every reply is read here all the same, whatever the engine promised. A difference says what each side
shows, so that a description can be turned round (target to source) and a text held against what the source alone shows.
See docs/decisions/0043.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.caption.checks import after_thinking, cleaned, plain

Kind = Literal[
    "attribute",
    "added",
    "removed",
    "replaced",
    "count",
    "position",
    "background",
    "style",
    "viewpoint",
    "action",
    "text",
]
KINDS: tuple[str, ...] = get_args(Kind)
NOTHING = "nothing"  # how an empty side is stored
TURNED: dict[str, str] = {"added": "removed", "removed": "added"}
# Words that say nothing about what an image shows; left out where sides are compared.
_COMMON = frozenset(
    plain(
        "a an the of in on at to by for with from and or but no not its it is are be was were has have this that these those there one some "
        "picture image photo source target side show shows shown same other"
    ).split()
)


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Difference(_Form):
    """One difference: its kind, and in a few words what each side shows; `source` is empty for what was added, `target`
    for what was removed.
    """

    kind: Kind
    source: str = Field(max_length=160)
    target: str = Field(max_length=160)

    @model_validator(mode="after")
    def _sides(self) -> Difference:
        if not self.target.strip() and self.kind != "removed":
            raise ValueError(f"'{self.kind}' without a target")
        if not self.source.strip() and self.kind != "added":
            raise ValueError(f"'{self.kind}' without a source")
        return self

    def sentence(self) -> str:
        """As it is stored: `kind: source -> target`, an empty side as 'nothing'."""
        source = NOTHING if self.kind == "added" else cleaned(self.source)
        target = NOTHING if self.kind == "removed" else cleaned(self.target)
        return f"{self.kind}: {source} -> {target}"

    def turned(self) -> Difference:
        """The same seen from the other side."""
        return Difference.model_validate(
            {"kind": TURNED.get(self.kind, self.kind), "source": self.target, "target": self.source}
        )


class Description(_Form):
    """What two images share, how the target differs, and both in prose."""

    shared: str = Field(min_length=1, max_length=300)
    differences: tuple[Difference, ...] = Field(min_length=1, max_length=8, strict=False)
    prose: str = Field(min_length=1, max_length=1600)

    def fields(self) -> list[str]:
        """Every text in it but the prose."""
        return [self.shared, *(side for d in self.differences for side in (d.source, d.target) if side.strip())]

    def of_one(self, number: int) -> str | None:
        """What is shared and the difference of that number, from 1, in prose; None where there are fewer."""
        if number > len(self.differences):
            return None
        d, shared = self.differences[number - 1], cleaned(self.shared).rstrip(".")
        if d.kind == "added":
            return f"Both pictures show {shared}. However, only the target shows {cleaned(d.target)}."
        if d.kind == "removed":
            return f"Both pictures show {shared}. However, the source shows {cleaned(d.source)}, whereas the target does not."
        return f"Both pictures show {shared}. However, in {d.kind} the source has {cleaned(d.source)}, whereas the target has {cleaned(d.target)}."

    def turned(self) -> Description:
        """The description of the same two images, source and target exchanged: sides, kinds, and 'the source' and 'the
        target' in the prose.
        """
        other = {"source": "target", "target": "source"}
        prose = re.sub(
            r"\b(the )(source|target)\b", lambda m: m[1] + other[m[2].lower()], self.prose, flags=re.IGNORECASE
        )
        return Description(shared=self.shared, differences=tuple(d.turned() for d in self.differences), prose=prose)

    def source_words(self) -> frozenset[str]:
        """Words that the source's side of the differences has and neither the target's side nor what is shared; those
        of things removed may be told.
        """
        told = {w for d in self.differences if d.kind != "removed" for w in words_of(d.source)}
        return frozenset(told - words_of(self.shared) - {w for d in self.differences for w in words_of(d.target)})


def words_of(text: str) -> set[str]:
    """The words of a text that say something, in a rough singular."""
    return {singular(w) for w in plain(text).split() if w not in _COMMON and (len(w) > 1 or w.isdigit())}


def singular(word: str) -> str:
    """A word without the s of a plural; the same for `dog` and `dogs`, not a lemma."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def read_description(text: str) -> Description | None:
    """The description that a reply holds, or None where it is not exactly of the form: no field missing, none more,
    none twice, no other type.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", after_thinking(text).strip())
    try:
        return Description.model_validate(json.loads(text, object_pairs_hook=_once))
    except (ValueError, ValidationError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found
