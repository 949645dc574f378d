"""Download untrusted URLs with SSRF protection, size and time limits, and robots/opt-out compliance.

Every hop of a URL (redirects and robots.txt included) goes through the same checks: scheme and port, then one DNS
resolution whose addresses must all be public or allowed (tasks/sources/web/client.py). A deadline covers resolving, TLS
handshake, headers and body; a byte limit covers the body both as sent and decompressed. robots.txt (RFC 9309, parsed by
protego), X-Robots-Tag, tdm-reservation and a page's meta robots are honoured unless the source sets `robots: false`.
Requests per host are limited in number and rate (tasks/sources/web/hosts.py). Why no HTTP library does this:
docs/decisions/0025.

Rejections, by reason: `unsafe` (a URL, host or redirect that may not be fetched), `opted_out` (the site disallows it),
`too_large` (more bytes than the limit), `unreachable` (everything else; lasting only for 4xx answers).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urljoin

from protego import Protego

from tasks.sources.files import Content, FileRejected
from tasks.sources.web.addresses import ParsedUrl, Resolver, parse_url, system_resolver
from tasks.sources.web.client import HttpClient, Response, RetryableError
from tasks.sources.web.hosts import FetchConfig, HostLimits
from tasks.sources.web.robots import AGENT, find_opt_out, find_page_opt_out, parse_retry_after

MAX_HOPS = 5  # redirects of one URL
ROBOTS_BYTES = 500 * 1024  # RFC 9309, 2.5: parsers take at least 500 KiB
ROBOTS_AGE_S = 24 * 3600.0  # RFC 9309, 2.4
ROBOTS_DEADLINE_S = 20.0  # for one robots.txt
MAX_FAILURES = 12  # requests in a row that fail before a host is skipped until the next run
RETRIES = 2  # after a reset connection, a 429 or a 5xx


class Fetcher:
    """Downloads URLs; thread-safe, one for the whole process, so that its limits per host hold over all sources."""

    def __init__(
        self, config: FetchConfig, resolver: Resolver = system_resolver, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config = config
        self.hosts = HostLimits(config, sleep)
        self._client = HttpClient(config, resolver)

    def fetch(self, url: str, limit_bytes: int) -> Content:
        """The file at a URL, with the robots state of its site.

        Args:
            url: http or https.
            limit_bytes: most bytes, as sent or decompressed.
        Raises:
            FileRejected: unsafe, opted_out, too_large, or unreachable (lasting only for 4xx answers).
        """
        host = self.hosts.state(parse_url(url))
        message = ""
        if host.failures >= MAX_FAILURES:
            raise FileRejected("unreachable", f"its host failed {MAX_FAILURES} times in a row", is_lasting=False)
        for attempt in range(RETRIES + 1):
            try:
                content = self._follow_redirects(url, limit_bytes)
                host.failures = 0
                return content
            except RetryableError as error:
                message = str(error)
                host.failures += 1
                if host.failures >= MAX_FAILURES or attempt == RETRIES or error.after_s > self.config.max_wait_s:
                    break
                self.hosts.sleep(max(error.after_s, 0.5 * 2**attempt))
        raise FileRejected("unreachable", message, is_lasting=False)

    def _follow_redirects(self, url: str, limit_bytes: int) -> Content:
        robots, visited, spent_s = "", {url}, 0.0
        for _ in range(MAX_HOPS + 1):
            hop = parse_url(url)
            state = self._check_robots(hop)
            robots = state if robots in ("", "absent") else robots
            with self.hosts.request_slot(hop):
                start_s = time.monotonic()
                response = self._client.get(hop, limit_bytes, start_s + self.config.deadline_s - spent_s)
                spent_s += time.monotonic() - start_s
            if (target := response.redirect_target) is not None:
                url = urljoin(url, target)
                if url in visited:
                    raise FileRejected("unreachable", "its redirects lead round in a circle", robots=robots)
                visited.add(url)
                continue
            if after_s := parse_retry_after(response.headers.get("Retry-After"), time.time()):
                self.hosts.postpone(hop, after_s)
            return self._accept(response, robots)
        raise FileRejected("unreachable", f"more than {MAX_HOPS} redirects", robots=robots)

    def _accept(self, response: Response, robots: str) -> Content:
        """The body of the last hop, if it is a file and the site has not opted out.

        Raises:
            FileRejected: opted_out, or unreachable for a status other than 200.
            RetryableError: status 429 or 5xx.
        """
        _raise_if_temporary(response, f"HTTP {response.status}")
        if response.status != 200:
            is_lasting = 400 <= response.status < 500 and response.status not in (408, 425)
            raise FileRejected("unreachable", f"HTTP {response.status}", is_lasting=is_lasting, robots=robots)
        if not self.config.robots:
            return Content.with_robots(response.content, "ignored")
        headers = response.headers
        directive = find_opt_out(headers.get_all("X-Robots-Tag") or [])
        if directive is None and (headers.get("tdm-reservation") or "").strip() == "1":  # W3C TDM Reservation Protocol
            directive = "tdm-reservation"
        if directive is not None:
            raise FileRejected("opted_out", f"X-Robots-Tag or header: {directive}", robots=f"header:{directive}")
        is_page = "html" in (headers.get("Content-Type") or "").lower()
        if is_page and (directive := find_page_opt_out(response.content)):
            raise FileRejected("opted_out", f"meta robots: {directive}", robots=f"meta:{directive}")
        return Content.with_robots(response.content, robots)

    # --- robots.txt ---------------------------------------------------------------------------------------------------

    def _check_robots(self, url: ParsedUrl) -> str:
        """The state of the site's robots.txt, which is read once a day (RFC 9309); see `Content.robots`.

        Raises:
            FileRejected: opted_out, when it disallows the URL.
            RetryableError: it could not be read, so that nothing is allowed for now.
        """
        if not self.config.robots:
            return "ignored"
        host = self.hosts.state(url)
        with host.robots_lock:
            if host.robots is None or time.monotonic() > host.robots_until_s:
                text, host.robots_state = self._download_robots(url)
                host.robots, host.robots_until_s = Protego.parse(text), time.monotonic() + ROBOTS_AGE_S
        if not host.robots.can_fetch(url.url, AGENT):
            raise FileRejected("opted_out", "robots.txt does not allow it", robots="disallowed")
        return host.robots_state

    def _download_robots(self, site: ParsedUrl) -> tuple[str, str]:
        """(text, state) of a site's robots.txt; ('', 'absent') where there is none."""
        url = f"{site.site}/robots.txt"
        deadline_s = time.monotonic() + min(ROBOTS_DEADLINE_S, self.config.deadline_s)
        for _ in range(MAX_HOPS + 1):
            response = self._client.get(parse_url(url), ROBOTS_BYTES, deadline_s, truncate=True)
            if (target := response.redirect_target) is not None:
                url = urljoin(url, target)
                continue
            if response.status == 200:
                return response.content.decode("utf-8", "replace"), "allowed"
            _raise_if_temporary(response, f"robots.txt: HTTP {response.status}")
            return "", "absent"
        return "", "absent"


def _raise_if_temporary(response: Response, message: str) -> None:
    """Raise RetryableError, with the site's Retry-After, for a status that may pass: 429 or 5xx."""
    if response.status == 429 or response.status >= 500:
        raise RetryableError(message, parse_retry_after(response.headers.get("Retry-After"), time.time()))
