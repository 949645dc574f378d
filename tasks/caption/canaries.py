"""Canaries: pairs whose difference is known, shown to the describing model in every part before it is paid for anything
else.

A batch engine may answer without ever seeing the images, and its replies read well (Ray #56125 did that for one message
shape). So: of the canaries' descriptions at least a stated share must say the known difference, and the description of
two blank images must not happen to fit more than a stated share of them. A model that fails either fails the part.

A folder of canaries: canaries.csv with the columns query, target (images beside it) and expect (words of which the
description
must hold one of each group: `red|crimson; star`). The sample world's are in tasks/sample/canaries; those for real
models, drawn so plainly that none which sees can miss them, in tasks/sample/plain/canaries. `caption.canaries` names
either, or your own.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.caption.checks import holds, plain
from tasks.caption.descriptions import read_description
from tasks.errors import ConfigError, DataError
from tasks.models.llm.requests import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.models.llm.base import Captioner

BLANK = (128, 128, 128)  # RGB of the blank probe
COLUMNS = ("query", "target", "expect")


@dataclass(frozen=True)
class Canary:
    """Two images, and what a description of them must say: of each group one of its words."""

    query: Image
    target: Image
    expect: tuple[tuple[str, ...], ...]

    def is_seen(self, description: str) -> bool:
        """Whether the description says the difference."""
        words = plain(description)
        return all(any(holds(words, plain(word)) for word in group) for group in self.expect)


def read_canaries(folder: Path) -> list[Canary]:
    """The canaries of a folder.

    Raises:
        ConfigError: no canaries.csv, a column or an image is missing, or nothing is expected of a pair.
    """
    from PIL import Image

    path = folder / "canaries.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        wanted = f"expected the columns {list(COLUMNS)} and the images beside it"
        raise ConfigError(f"caption.canaries: {path} cannot be read ({error.strerror}); {wanted}") from None
    if not rows or any(not (row.get(c) or "").strip() for row in rows for c in COLUMNS):
        raise ConfigError(f"caption.canaries: {path}: expected at least one row, each with {list(COLUMNS)}")
    found = []
    for row in rows:
        try:
            query, target = (
                Image.open(folder / row[c], formats=("JPEG", "PNG", "WEBP")).convert("RGB") for c in ("query", "target")
            )
        except OSError as error:
            raise ConfigError(f"caption.canaries: {path}: an image cannot be read ({error})") from None
        groups = tuple(tuple(w.strip() for w in group.split("|") if w.strip()) for group in row["expect"].split(";"))
        found.append(Canary(query, target, tuple(g for g in groups if g)))
    return found


def shares(descriptions: Sequence[str], blank: str, canaries: Sequence[Canary]) -> tuple[float, float]:
    """(share of canaries whose own description says the difference, share that the blank images' description would
    fit).
    """
    seen = sum(c.is_seen(d) for c, d in zip(canaries, descriptions, strict=True))
    guessed = sum(c.is_seen(blank) for c in canaries)
    return seen / len(canaries), guessed / len(canaries)


def what_it_says(reply: str) -> str:
    """The texts of a reply by a form, without the form's own words; one that does not keep to it as it is."""
    form = read_description(reply)
    return reply if form is None else " . ".join([form.prose, *form.fields()])


def show(
    model: Captioner,
    prompt: str,
    canaries: Sequence[Canary],
    *,
    least: float,
    blank_most: float,
    schema: dict[str, object] | None = None,
) -> tuple[float, float]:
    """Describe the canaries and two blank images; `shares` of what came.

    Raises:
        DataError: the model does not see what it is shown.
    """
    from PIL import Image

    probe = Image.new("RGB", canaries[0].query.size, BLANK)
    replies = model.chat(
        [*(Request((c.query, c.target), prompt, schema) for c in canaries), Request((probe, probe), prompt, schema)]
    )
    *said, of_blank = [what_it_says(r.text) if schema else r.text for r in replies]
    seen, guessed = shares(said, of_blank, canaries)
    if seen < least or guessed > blank_most:
        raise DataError(
            f"canaries: '{model.name}' says the known difference of {seen:.0%} of {len(canaries)} pairs (at least {least:.0%} expected), and what it says of "
            f"blank images fits {guessed:.0%} (at most {blank_most:.0%}); it does not see its images, or not well: check the model, its chat template and "
            f"the engine before anything is paid for. It said, for example: {replies[0].text[:120]!r}"
        )
    return seen, guessed
