"""Progress of ingest: a line in the log now and then, a bar on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter

log = logging.getLogger(__name__)

LOG_EVERY_S = 60


def tell(text: str, *, is_last: bool) -> None:
    """One line that replaces itself in a terminal."""
    print(f"\r\x1b[K{text}", end="\n" if is_last else "", file=sys.stderr, flush=True)


class Progress:
    """Counts while it runs: a line that moves in a terminal, one a minute in a log."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.kept = self.seen = 0
        self._start = self._told = time.monotonic()

    def count(self, reason: str | None) -> None:
        """One file ended: kept, or dropped for this."""
        self.seen += 1
        self.kept += reason is None
        if reason is not None:
            self.reasons[reason] += 1
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if now - self._told >= (0.2 if is_terminal else LOG_EVERY_S):
            self._told = now
            text = f"{self}, {60 * self.seen / (now - self._start):.0f} a minute"
            tell(text, is_last=False) if is_terminal else log.info("%s", text)

    def __str__(self) -> str:
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) or "none"
        return f"ingest: {self.seen} seen = {self.kept} kept + {sum(self.reasons.values())} dropped ({dropped})"
