"""The servers of one model: which one gets the next request, how many it gets at once, which ones are left out.

A request goes to the server with the fewest requests in flight. One that fails is left out for a while that doubles,
then tried with a single request. Where all are left out, the one whose time ends first is tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

MAX_DOWN_S = 30.0  # longest time that a failing server is left out, s


class Replica:
    """One server.

    Attributes:
        url: base URL, ending in /v1.
        most: greatest number of requests at once.
        limit: current one: halved when the server is busy, raised by one per `limit` replies.
        in_flight: requests there now, a count.
        is_verified: whether its model was verified since its last fault.
        connections: those over which its model was verified; another one may lead to a server that was restarted.
        faults: failures in a row, a count.
        down_until: monotonic time, s, until which it is left out.
        lock: held while its model is verified.
    """

    def __init__(self, url: str, most: int) -> None:
        self.url, self.most, self.limit, self.in_flight = url, most, most, 0
        self.is_verified, self.faults, self.down_until = False, 0, 0.0
        self.connections: WeakSet[object] = WeakSet()
        self.lock = threading.Lock()
        self._successes = 0

    def on_busy(self) -> None:
        """The server was busy: halve the limit."""
        self.limit, self._successes = max(1, self.limit // 2), 0

    def on_success(self) -> None:
        """The server answered: raise the limit after as many replies as it allows; after faults at once."""
        if self.faults:
            self.faults, self.down_until, self.limit = 0, 0.0, self.most
        self._successes += 1
        if self._successes >= self.limit and self.limit < self.most:
            self.limit, self._successes = self.limit + 1, 0

    def on_fault(self, now: float) -> None:
        """The server failed: leave it out for a while, then try one request."""
        self.is_verified = False  # it may come back with another model
        self.faults += 1
        self.limit = 1
        self.down_until = now + min(MAX_DOWN_S, 0.25 * 2.0**self.faults)


class ReplicaPool:
    """All servers of one model.

    Attributes:
        replicas: the servers.
        replies: so far, a count.
    """

    def __init__(self, urls: Sequence[str], in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`in_flight`: most requests at each server, a count; `clock`: monotonic time, s."""
        self.replicas = [Replica(url, in_flight) for url in urls]
        self.replies = 0
        self._clock = clock
        self._changed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[Replica]:
        """Wait until a server may get one more request; the server, which counts it while the block runs."""
        with self._changed:
            while (replica := self._choose()) is None:
                self._changed.wait(self._next_change_s())
            replica.in_flight += 1
        try:
            yield replica
        finally:
            with self._changed:
                replica.in_flight -= 1
                self._changed.notify_all()

    def on_success(self, replica: Replica) -> None:
        """A server answered."""
        with self._changed:
            self.replies += 1
            replica.on_success()
            self._changed.notify_all()

    def on_busy(self, replica: Replica) -> None:
        """A server has too much to do."""
        with self._changed:
            replica.on_busy()

    def on_fault(self, replica: Replica) -> None:
        """A server did not answer, or failed."""
        with self._changed:
            replica.on_fault(self._clock())
            self._changed.notify_all()

    def _choose(self) -> Replica | None:
        """The server for the next request; None where those that answer have enough to do."""
        now = self._clock()
        up = [replica for replica in self.replicas if replica.down_until <= now]
        candidates = up or [min(self.replicas, key=lambda replica: replica.down_until)]
        free = [replica for replica in candidates if replica.in_flight < replica.limit]
        return min(free, key=lambda replica: replica.in_flight, default=None)

    def _next_change_s(self) -> float | None:
        """Seconds until the next server is tried again; None where none is left out."""
        now = self._clock()
        waits = [replica.down_until - now for replica in self.replicas if replica.down_until > now]
        return max(0.01, min(waits)) if waits else None
