"""Progress of ingest: a tqdm bar on a terminal, one line a minute in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter

from tqdm import tqdm

from tasks import progress

log = logging.getLogger(__name__)

LOG_EVERY_S = 60
BAR_EVERY_S = 0.2


class Progress:
    """Counts files while ingest runs; `close` leaves the bar's last state on the terminal."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.kept = self.files = 0
        self._bar = tqdm(
            desc="ingest", unit=" files", mininterval=BAR_EVERY_S, file=sys.stderr, disable=not sys.stderr.isatty()
        )
        self._start_s = self._logged_s = time.monotonic()
        self._kept = progress.Progress("ingest", None, "files", is_logged=False)

    def count(self, reason: str | None) -> None:
        """Count one file: kept (None), or dropped for this reason."""
        self.files += 1
        self._kept.advance()
        if reason is None:
            self.kept += 1
        else:
            self.reasons[reason] += 1
        if not self._bar.disable:
            self._bar.set_postfix_str(self.outcome(), refresh=False)
            self._bar.update()
            return
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.info("%s, %.0f a minute", str(self), 60 * self.files / (now_s - self._start_s))

    def close(self) -> None:
        """End the bar, if there is one."""
        self._bar.close()
        self._kept.finish()

    def outcome(self) -> str:
        """How many files were kept, and dropped by reason."""
        by_reason = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) or "none"
        return f"{self.kept} kept + {sum(self.reasons.values())} dropped ({by_reason})"

    def __str__(self) -> str:
        return f"ingest: {self.files} seen = {self.outcome()}"
