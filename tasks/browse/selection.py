"""What a person looks for among the triplets, as an address says it. Pure, without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ACCEPTED = "accepted"


@dataclass(frozen=True)
class Selection:
    """What a person looks for; the empty one is every accepted triplet.

    Attributes:
        text: words that the instructions of a row must all have; the beginning of a word will do.
        encoder, style, source, licence: one value each; empty for all.
        status: accepted, rejected, or one of the judge's reasons; empty for all rows.
        low, high: the lowest judge score of a row's instructions, low <= score <= high, 0..1.
    """

    text: str = ""
    encoder: str = ""
    style: str = ""
    source: str = ""
    licence: str = ""
    status: str = ACCEPTED
    low: float = 0.0
    high: float = 1.0


def split_words(text: str) -> list[str]:
    """The words of a search, lower case; punctuation divides."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def selection_from(values: Mapping[str, str]) -> Selection:
    """A selection from an address' values; what is no number counts as not given."""

    def number(name: str, default: float) -> float:
        try:
            value = float(values.get(name) or default)
        except ValueError:
            return default
        return value if 0 <= value <= 1 else default

    texts = {name: str(values.get(name) or "")[:200] for name in ("text", "encoder", "style", "source", "licence")}
    status = values.get("status", ACCEPTED)[:50]
    return Selection(**texts, status=status, low=number("low", 0.0), high=number("high", 1.0))
