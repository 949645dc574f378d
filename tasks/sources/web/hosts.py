"""Limits per host: requests at a time, delay between requests, failures in a row, and the cached robots.txt.

One `HostLimits` is shared by all threads and sources of a process, so that a host is spared by all of them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from protego import Protego

from tasks.sources.web.addresses import ParsedUrl
from tasks.sources.web.robots import AGENT


@dataclass(frozen=True)
class FetchConfig:
    """How a source's URLs are downloaded.

    Attributes:
        contact: mail address or page of the operator, sent in the User-Agent.
        robots: honour robots.txt and the opt-out directives; False only where the site's owner has agreed.
        delay_s: least time between the starts of two requests to one host, s; a robots.txt's Crawl-delay extends it, up
            to max_wait_s.
        per_host: requests to one host at a time, a count.
        deadline_s: for one file from resolving to its last byte, all redirects included, s.
        max_wait_s: longest Retry-After that is waited for, s; after a longer one a later batch tries again.
        allow_hosts: names, addresses and networks that may be fetched from although they are not public.
        ca_file: certificates to trust instead of the system's (an intranet's).
    """

    contact: str
    robots: bool = True
    delay_s: float = 1.0
    per_host: int = 2
    deadline_s: float = 60.0
    max_wait_s: float = 60.0
    allow_hosts: tuple[str, ...] = ()
    ca_file: str | None = None


@dataclass
class HostState:
    """State of one scheme, host and port.

    Attributes:
        slots: requests under way.
        lock: guards `next_start_s`.
        next_start_s: monotonic time before which no request starts.
        failures: requests in a row that failed.
        robots: the parsed robots.txt, None before it was read.
        robots_state: 'allowed' where there is one, 'absent' where there is none.
        robots_until_s: monotonic time at which it is read again.
        robots_lock: guards the robots fields.
    """

    slots: threading.Semaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_start_s: float = 0.0
    failures: int = 0
    robots: Protego | None = None
    robots_state: str = ""
    robots_until_s: float = 0.0
    robots_lock: threading.Lock = field(default_factory=threading.Lock)


class HostLimits:
    """The states of all hosts of a fetcher; thread-safe."""

    def __init__(self, config: FetchConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self.config, self.sleep = config, sleep
        self._states: dict[str, HostState] = {}
        self._lock = threading.Lock()

    def state(self, url: ParsedUrl) -> HostState:
        """The state of this URL's host."""
        with self._lock:
            return self._states.setdefault(url.site, HostState(threading.Semaphore(self.config.per_host)))

    @contextmanager
    def request_slot(self, url: ParsedUrl) -> Iterator[None]:
        """One of the host's request slots, after its delay (or its Retry-After) has passed."""
        host = self.state(url)
        with host.slots:
            while True:
                with host.lock:
                    wait_s = host.next_start_s - time.monotonic()
                    if wait_s <= 0:
                        host.next_start_s = time.monotonic() + self._delay_s(host)
                        break
                self.sleep(wait_s)
            yield

    def postpone(self, url: ParsedUrl, after_s: float) -> None:
        """Let every thread wait this long (at most max_wait_s) before its next request to the host."""
        host = self.state(url)
        with host.lock:
            host.next_start_s = max(host.next_start_s, time.monotonic() + min(after_s, self.config.max_wait_s))

    def _delay_s(self, host: HostState) -> float:
        """The configured delay, or the host's Crawl-delay where that is longer."""
        crawl_delay = host.robots.crawl_delay(AGENT) if host.robots and self.config.robots else None
        return max(self.config.delay_s, min(float(crawl_delay or 0.0), self.config.max_wait_s))
