"""One check of a deployment: what was looked at, what was found, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: what was looked at.
        status: ok; warn: a run may go well, or this could not be looked at; fail: a run cannot go well.
        found: what was found, in a few words.
        next_step: what a person does about it; empty when all is well.
        may_pass: whether trying again may help, as with a server that is starting.
    """

    name: str
    status: Status
    found: str
    next_step: str = ""
    may_pass: bool = False

    def line(self) -> str:
        """The check as a person reads it."""
        step = f" -> {self.next_step}" if self.next_step else ""
        return f"{self.status:<5}{self.name}: {self.found}{step}"

    def to_json(self) -> dict[str, Any]:
        """The check as JSON."""
        return asdict(self)
