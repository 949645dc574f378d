"""How far a stage is: a line in its log every few seconds, and the last state as a file that a page can read.

    with progress.kept_in(root / ".run" / "progress" / "caption.json"):
        counter = Progress("caption", total=12_000, unit="pairs")
        counter.skip(4_000)      # done by an earlier try
        counter.advance(512)

The file holds the names of `State`, as JSON. Losing it costs nothing: it is written without a flush to the disk.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)
EVERY_S = 5.0  # between two lines, and two writes of the file

_file: ContextVar[Path | None] = ContextVar("progress_file", default=None)


@dataclasses.dataclass(frozen=True)
class State:
    """Where a stage is.

    Attributes:
        stage: its name.
        unit: what is counted, a plural noun.
        done: how many are done, those of earlier tries too.
        total: how many there are; None where that is not known before the end.
        rate: done a second, by this try; None before the first.
        left_s: seconds left at that rate; None where it is not known.
        at: when, ISO 8601, UTC.
    """

    stage: str
    unit: str
    done: int
    total: int | None
    rate: float | None
    left_s: float | None
    at: str

    def __str__(self) -> str:
        of = f" of {self.total:,} ({self.done / self.total:.0%})" if self.total else ""
        rate = "" if self.rate is None else f", {_rate(self.rate)}"
        left = "" if self.left_s is None else f", {_duration(self.left_s)} left"
        return f"{self.stage}: {self.done:,}{of} {self.unit}{rate}{left}"


def _rate(per_s: float) -> str:
    """A rate in the unit in which it is a number above 1."""
    for factor, unit in ((1, "s"), (60, "min")):
        if per_s * factor >= 1:
            return f"{per_s * factor:,.1f}/{unit}"
    return f"{per_s * 3600:,.1f}/h"


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Keep the last state of the progress in the block in a file."""
    token = _file.set(path)
    try:
        yield
    finally:
        _file.reset(token)


def read_state(path: Path) -> State | None:
    """The state that a file holds; None where there is none."""
    try:
        return State(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Progress:
    """Counts what a stage has done, and says so every few seconds."""

    def __init__(self, stage: str, total: int | None, unit: str = "rows", *, is_logged: bool = True) -> None:
        """Nothing is done yet.

        Args:
            stage: its name.
            total: how many there are to do; None where that is not known.
            unit: what is counted, a plural noun.
            is_logged: whether lines go to the log; the file is written all the same.
        """
        self._stage, self._total, self._unit, self._is_logged = stage, total, unit, is_logged
        self._skipped = self._done = 0
        self._start_s = self._said_s = time.monotonic()

    def skip(self, count: int) -> None:
        """Count what an earlier try did: it is done, and says nothing of the rate."""
        self._skipped += count

    def advance(self, count: int = 1) -> None:
        """Count what is done now."""
        self._done += count
        now_s = time.monotonic()
        if now_s - self._said_s >= EVERY_S:
            self._said_s = now_s
            self._say()

    def finish(self) -> None:
        """Keep the last state; without a line, because the stage's report says the same."""
        self._keep(self.state())

    def state(self) -> State:
        """Where the stage is now."""
        elapsed_s, done = time.monotonic() - self._start_s, self._skipped + self._done
        rate = self._done / elapsed_s if self._done and elapsed_s > 0 else None
        left_s = None if rate is None or self._total is None else max(0, self._total - done) / rate
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return State(self._stage, self._unit, done, self._total, rate, left_s, at)

    def _say(self) -> None:
        state = self.state()
        if self._is_logged:
            log.info("%s", state)
        self._keep(state)

    @staticmethod
    def _keep(state: State) -> None:
        path = _file.get()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(state)))
        temporary.replace(path)
