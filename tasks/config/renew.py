"""Parameters of renewal: which rows of earlier makers are made again, and how many in one run.

A condition is `name=value`; several are separated by commas, and all must hold. Values are compared as plain text (or
as dates), never put into a query.
"""

from __future__ import annotations

import datetime
import re
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from tasks.config.section import Section

RenewedStage = Literal["recaption", "caption", "judge"]

_BATCH = re.compile(r"\d{4}\.\d{2}\.\d{2}(\.\d+)?")
# Name of a condition -> the column that it compares, by stage; dates and batch are of every stage.
COLUMNS: dict[str, dict[str, str]] = {
    "recaption": {"source": "caption_source", "prompt": "prompt_sha256"},
    "caption": {
        "model": "captioner",
        "revision": "captioner_revision",
        "writer": "writer",
        "writer_revision": "writer_revision",
        "prompt": "prompt_sha256",
    },
    "judge": {"model": "judge", "revision": "judge_revision", "prompt": "judge_prompt_sha256"},
}
OF_EVERY_STAGE = ("made_before", "made_after", "batch")


class Condition(NamedTuple):
    """One condition: its name, and the text that it asks for."""

    name: str
    value: str


def parse_where(text: str, stage: str) -> tuple[Condition, ...]:
    """The conditions of a text such as `made_before=2026-11-01, model=llava`; none of an empty one.

    Raises:
        ValueError: a part without `=`, an unknown name, a name given twice, no date, or no batch; it says what is
            known.
    """
    conditions: list[Condition] = []
    known = [*OF_EVERY_STAGE, *COLUMNS[stage]]
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"{part!r} is no condition; expected name=value, for example made_before=2026-11-01")
        if name not in known:
            raise ValueError(f"unknown condition {name!r}; known for {stage}: {known}")
        if name in (condition.name for condition in conditions):
            raise ValueError(f"condition {name!r} is given twice; all conditions must hold, so give it once")
        if name in ("made_before", "made_after") and not _is_date(value):
            raise ValueError(f"{name}={value!r} is no date; expected YYYY-MM-DD")
        if name == "batch" and not _BATCH.fullmatch(value):
            raise ValueError(f"batch={value!r} is no batch; expected YYYY.MM.DD or YYYY.MM.DD.n")
        conditions.append(Condition(name, value))
    return tuple(conditions)


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class RenewRows(Section):
    """Which stale rows of one stage a run renews."""

    where: str = Field(
        "",
        description="Conditions on the stale rows, separated by commas; all must hold: made_before=YYYY-MM-DD, "
        "made_after=YYYY-MM-DD, batch=YYYY.MM.DD[.n], and of the maker model=, revision=, writer=, prompt= (for "
        "recaption source= and prompt=). Empty: every stale row.",
    )
    budget: int | None = Field(
        None,
        ge=1,
        description="Most rows that one run renews, the oldest first, a count: pairs, for recaption images. Empty: "
        "all that are stale.",
    )
    lost_share_max: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of the renewed rows that the makers of now may reject, 0 to 1. Above it, and above "
        "three, the stage fails before an old row goes.",
    )


class RenewConfig(Section):
    """Section `renew`: rows of an earlier model or prompt that this run makes anew, for each stage with `where` (which)
    and `budget` (how many). Empty: none.
    """

    recaption: RenewRows | None = Field(
        description="Captions of images that another model or prompt wrote. Empty: they stay."
    )
    caption: RenewRows | None = Field(
        description="Descriptions and instructions that another captioner, writer or prompt set wrote; what is written "
        "anew is judged anew. Empty: they stay.",
    )
    judge: RenewRows | None = Field(
        description="Verdicts of another judge or prompt, on the same instructions. Empty: they stay."
    )

    @field_validator("recaption", "caption", "judge")
    @classmethod
    def _check_where(cls, value: RenewRows | None, info: object) -> RenewRows | None:
        if value is not None:
            parse_where(value.where, str(getattr(info, "field_name", "")))
        return value

    @classmethod
    def of(cls, **stages: RenewRows | None) -> RenewConfig:
        """What some stages renew; the others nothing."""
        return cls(**{name: stages.get(name) for name in cls.model_fields})

    @property
    def is_on(self) -> bool:
        """Whether any stage renews rows."""
        return any(rows is not None for rows in (self.recaption, self.caption, self.judge))
