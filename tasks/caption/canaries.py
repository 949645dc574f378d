"""Canaries: image pairs with a known difference that the captioner must describe before a part pays for anything else.

A batch engine may answer without having seen the images, and its replies read well (Ray #56125, for one message shape).
Two shares are therefore measured: canaries whose description states the known difference (`caption.canaries_min` at
least), and canaries that the description of two blank images would fit (`caption.blank_max` at most). A captioner that
fails either stops the part.

A folder of canaries holds canaries.csv with the columns query and target (image files beside it) and expect: groups of
words separated by `;`, alternatives within a group by `|` (`red|crimson; star`). A description must contain one word of
each group. `caption.canaries` names the folder: tasks/sample/canaries for the sample world, tasks/sample/plain/canaries
for real models (drawn so plainly that no model that sees can miss the difference), or your own.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.caption.checks import contains_phrase, normalize_words
from tasks.caption.descriptions import parse_description
from tasks.errors import ConfigError, DataError
from tasks.models.llm.requests import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.models.llm.base import Captioner

BLANK_RGB = (128, 128, 128)
COLUMNS = ("query", "target", "expect")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Canary:
    """Two images, and the groups of words of which a description must contain one each."""

    query: Image
    target: Image
    expect: tuple[tuple[str, ...], ...]

    def is_seen(self, description: str) -> bool:
        """Whether the description states the known difference."""
        words = normalize_words(description)
        return all(any(contains_phrase(words, normalize_words(word)) for word in group) for group in self.expect)


class CanaryShares(NamedTuple):
    """Shares of the canaries, 0..1: `seen` by their own description, `guessed` by that of two blank images."""

    seen: float
    guessed: float


def read_canaries(folder: Path) -> list[Canary]:
    """The canaries of a folder.

    Raises:
        ConfigError: no canaries.csv, a column or an image is missing, or nothing is expected of a pair.
    """
    path = folder / "canaries.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8
        raise ConfigError(
            f"caption.canaries: {path} cannot be read ({getattr(error, 'strerror', error)}); "
            f"expected the columns {list(COLUMNS)} and the images beside it"
        ) from None
    if not rows or any(not (row.get(c) or "").strip() for row in rows for c in COLUMNS):
        raise ConfigError(f"caption.canaries: {path}: expected at least one row, each with {list(COLUMNS)}")
    return [_read_canary(row, path) for row in rows]


def _read_canary(row: dict[str, str], path: Path) -> Canary:
    from PIL import Image

    try:
        query, target = (
            Image.open(path.parent / row[c], formats=IMAGE_FORMATS).convert("RGB") for c in ("query", "target")
        )
    except OSError as error:
        raise ConfigError(f"caption.canaries: {path}: an image cannot be read ({error})") from None
    groups = [tuple(w.strip() for w in group.split("|") if w.strip()) for group in row["expect"].split(";")]
    return Canary(query, target, tuple(group for group in groups if group))


def canary_shares(descriptions: Sequence[str], blank: str, canaries: Sequence[Canary]) -> CanaryShares:
    """The shares from one description per canary and the description of two blank images."""
    seen = sum(c.is_seen(d) for c, d in zip(canaries, descriptions, strict=True))
    guessed = sum(c.is_seen(blank) for c in canaries)
    return CanaryShares(seen / len(canaries), guessed / len(canaries))


def description_text(reply: str) -> str:
    """The texts of a structured description without the words of the JSON itself; any other reply as it is."""
    description = parse_description(reply)
    return reply if description is None else " . ".join([description.prose, *description.short_texts()])


def check_canaries(
    model: Captioner,
    prompt: str,
    canaries: Sequence[Canary],
    *,
    seen_min: float,
    blank_max: float,
    schema: dict[str, object] | None = None,
    max_tokens: int | None = None,
) -> CanaryShares:
    """Let a captioner describe the canaries and two blank images.

    Args:
        model: the captioner.
        prompt: the request for a description.
        canaries: at least one.
        seen_min: least share of canaries whose description states the difference, 0..1.
        blank_max: greatest share that the description of blank images may fit, 0..1.
        schema: JSON schema where descriptions are structured.
        max_tokens: longest description, tokens; the captioner's own limit when None.
    Raises:
        DataError: the captioner misses too many differences, or guesses too many from blank images.
    """
    from PIL import Image

    blank = Image.new("RGB", canaries[0].query.size, BLANK_RGB)
    pairs = [*((c.query, c.target) for c in canaries), (blank, blank)]
    replies = model.chat([Request(pair, prompt, schema, max_tokens) for pair in pairs])
    *descriptions, of_blank = [description_text(r.text) if schema else r.text for r in replies]
    shares = canary_shares(descriptions, of_blank, canaries)
    if shares.seen < seen_min or shares.guessed > blank_max:
        raise DataError(
            f"canaries: '{model.name}' states the known difference of {shares.seen:.0%} of {len(canaries)} pairs "
            f"(at least {seen_min:.0%} expected), and its description of blank images fits {shares.guessed:.0%} "
            f"(at most {blank_max:.0%}); it does not see its images, or not well: check the model, its chat template "
            f"and the engine before anything is paid for. Its first reply: {replies[0].text[:120]!r}"
        )
    return shares
