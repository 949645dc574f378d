"""Structured descriptions: the JSON that the describing model is asked for, and the strict reader of its reply.

The JSON schema stands beside the prompt that asks for it (tasks/prompts/<set>/describe.schema.json). Engines with
guided decoding get the schema; every reply is validated here all the same, whatever the engine promised. A difference
states what each image shows, so that a description can be reversed (target to source) and a text can be checked for
words that only the source image explains. See docs/decisions/0043.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.caption.checks import clean_reply, normalize_words, strip_thoughts

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
EMPTY_SIDE = "nothing"  # how the empty side of a difference is stored
KINDS_OF_A_THING = ("attribute", "position", "action")  # changes of one thing that both images show
REVERSED_KINDS: dict[str, str] = {"added": "removed", "removed": "added"}  # all others stay
# Words without content, ignored where the two sides of a difference are compared.
_STOP_WORDS = frozenset(
    normalize_words(
        "a an the of in on at to by for with from and or but no not its it is are be was were has have this that these "
        "those there one some picture image photo source target side show shows shown same other"
    ).split()
)


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Difference(_StrictModel):
    """One difference: its kind, and in a few words what each image shows.

    `source` is empty for what was added, `target` for what was removed.
    """

    kind: Kind
    source: str = Field(max_length=160)
    target: str = Field(max_length=160)

    @model_validator(mode="after")
    def _require_sides(self) -> Difference:
        if not self.target.strip() and self.kind != "removed":
            raise ValueError(f"'{self.kind}' without a target")
        if not self.source.strip() and self.kind != "added":
            raise ValueError(f"'{self.kind}' without a source")
        return self

    def as_text(self) -> str:
        """As it is stored: `kind: source -> target`, an empty side as 'nothing'."""
        source = EMPTY_SIDE if self.kind == "added" else clean_reply(self.source)
        target = EMPTY_SIDE if self.kind == "removed" else clean_reply(self.target)
        return f"{self.kind}: {source} -> {target}"

    def in_prose(self) -> str:
        """As part of a sentence. The writer gets it; its wording stays as it is."""
        source, target = clean_reply(self.source), clean_reply(self.target)
        if self.kind == "added":
            return f"only the target shows {target}"
        if self.kind == "removed":
            return f"the source shows {source}, whereas the target does not"
        return f"in {self.kind} the source has {source}, whereas the target has {target}"

    def reverse(self) -> Difference:
        """The same difference with source and target exchanged."""
        kind = REVERSED_KINDS.get(self.kind, self.kind)
        return Difference.model_validate({"kind": kind, "source": self.target, "target": self.source})


class Description(_StrictModel):
    """What two images share, how the target differs from the source, and both in prose."""

    shared: str = Field(min_length=1, max_length=300)
    differences: tuple[Difference, ...] = Field(min_length=1, max_length=8, strict=False)
    prose: str = Field(min_length=1, max_length=1600)

    def short_texts(self) -> list[str]:
        """Every text in it but the prose."""
        return [self.shared, *(side for d in self.differences for side in (d.source, d.target) if side.strip())]

    def difference_in_prose(self, number: int) -> str | None:
        """What is shared and the difference of that number, from 1, in prose; None where there are fewer.

        The writer gets this text; its wording stays as it is.
        """
        if number > len(self.differences):
            return None
        shared = clean_reply(self.shared).rstrip(".")
        return f"Both pictures show {shared}. However, {self.differences[number - 1].in_prose()}."

    def reverse(self) -> Description:
        """The description with source and target exchanged.

        Exchanged are sides and kinds of the differences, and the words 'the source' and 'the target' in the prose.
        """
        other = {"source": "target", "target": "source"}
        prose = re.sub(
            r"\b(the )(source|target)\b", lambda m: m[1] + other[m[2].lower()], self.prose, flags=re.IGNORECASE
        )
        return Description(shared=self.shared, differences=tuple(d.reverse() for d in self.differences), prose=prose)

    def contradicts_itself(self) -> bool:
        """Whether a thing that was added or removed is also said to be changed, or to be both added and removed.

        A thing that is replaced may be listed as removed too, and what came in its place as added: that says no more.
        """
        gone = {_thing(d.source) for d in self.differences if d.kind == "removed"}
        new = {_thing(d.target) for d in self.differences if d.kind == "added"}
        changed = (d for d in self.differences if d.kind in KINDS_OF_A_THING)
        there = {_thing(side) for d in changed for side in (d.source, d.target)}
        return bool(gone & new or (gone | new) & there)

    def source_words(self) -> frozenset[str]:
        """Words that only the source image explains: an instruction that uses them reveals the source.

        Words of the differences' source sides, less those of the target sides and of what is shared. Words of removed
        things are left out: an instruction may name what it removes.
        """
        source = {w for d in self.differences if d.kind != "removed" for w in content_words(d.source)}
        target = {w for d in self.differences for w in content_words(d.target)}
        return frozenset(source - content_words(self.shared) - target)


def _thing(side: str) -> str:
    """A side of a difference as it is compared: its words without a leading article."""
    return re.sub(r"^(?:an?|the) ", "", normalize_words(side))


def content_words(text: str) -> set[str]:
    """The words of a text that carry content, plural s removed."""
    words = (w for w in normalize_words(text).split() if w not in _STOP_WORDS)
    return {singular(w) for w in words if len(w) > 1 or w.isdigit()}


def singular(word: str) -> str:
    """A word without a plural s: equal for `dog` and `dogs`. A rough rule, no lemma."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def parse_description(reply: str) -> Description | None:
    """The description in a reply, or None where the reply is not exactly of the schema.

    No field may be missing, unknown, given twice or of another type. A code fence around the JSON is taken off.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", strip_thoughts(reply).strip())
    try:
        return Description.model_validate(json.loads(text, object_pairs_hook=_unique_keys))
    except (ValueError, ValidationError, RecursionError):
        return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row
