"""An adaptive limit of the requests in flight at one server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ConcurrencyLimiter:
    """Limits the requests in flight at one server; the limit adapts.

    Attributes:
        most: greatest limit, a count.
        limit: current limit, a count: halved when the server is busy, raised by one per `limit` replies.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, most
        self._in_flight, self._successes = 0, 0
        self._changed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until one more request is allowed, and count it while it is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self.limit)
            self._in_flight += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify()

    def on_busy(self) -> None:
        """The server was busy: halve the limit."""
        with self._changed:
            self.limit, self._successes = max(1, self.limit // 2), 0

    def on_success(self) -> None:
        """The server answered: raise the limit after as many replies as it allows."""
        with self._changed:
            self._successes += 1
            if self._successes >= self.limit and self.limit < self.most:
                self.limit, self._successes = self.limit + 1, 0
                self._changed.notify()
