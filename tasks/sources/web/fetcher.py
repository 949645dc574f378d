"""Fetch files of strangers' URLs over HTTP(S): never from inside the house, never more than asked for, never against
the site's word.

Every hop of a URL (redirects and robots.txt included) goes the same way: scheme and port are looked at, the host is
resolved once, all its addresses are checked, and the connection is made to the very address that was checked (so a
second, rebound answer of the DNS is never asked for), with the host's name in TLS and in the Host header. A deadline
holds over resolving, handshake, headers and body, a cap over the bytes as sent and as unpacked. robots.txt (RFC 9309,
by protego), X-Robots-Tag, tdm-reservation and a page's meta robots are honoured unless the source says otherwise. Why
none of the libraries: docs/decisions/0025-fetching.md.

Proxies of the environment are not used: behind one the proxy would resolve, and the check would be for nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

from protego import Protego

from tasks.sources.files import Content, Refused
from tasks.sources.web.addresses import (
    NO_SUCH_NAME,
    Address,
    Allowed,
    Place,
    Resolver,
    is_public,
    literal_address,
    place_of,
    system_resolver,
)
from tasks.sources.web.connection import _Response, left_of, unpacked
from tasks.sources.web.robots import AGENT, directive_in, meta_directive, retry_after_s

log = logging.getLogger(__name__)

MAX_HOPS = 5
ROBOTS_BYTES = 500 * 1024  # RFC 9309, 2.5: parsers take at least 500 KiB
ROBOTS_AGE_S = 24 * 3600.0  # RFC 9309, 2.4
MAX_FAILURES = 12  # requests in a row that a host fails before it is left alone until the next run
RETRIES = 2  # after a reset connection, a 429 or a 5xx


class Again(Exception):
    """A hop failed in a way that may pass."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


# --- addresses --------------------------------------------------------------------------------------------------------


# --- a connection that keeps its deadline -----------------------------------------------------------------------------


# --- what sites say ---------------------------------------------------------------------------------------------------


# --- hosts ------------------------------------------------------------------------------------------------------------


@dataclass
class _Host:
    """How busy a host is."""

    slots: threading.Semaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_s: float = 0.0  # monotonic; no request begins before
    failures: int = 0  # in a row
    robots: Protego | None = None
    robots_state: str = ""
    robots_until: float = 0.0
    robots_lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Reply:
    """One hop's answer."""

    status: int
    headers: http.client.HTTPMessage
    content: bytes


@dataclass(frozen=True)
class FetchConfig:
    """How a source is fetched from.

    Attributes:
        contact: mail address or page of who runs this, in the User-Agent.
        robots: honour robots.txt and the directives; False only where the site's owner has agreed.
        delay_s: least time between two requests' beginnings at one host, s; a robots.txt's Crawl-delay makes it longer,
            up to max_wait_s.
        per_host: requests at one host at a time, a count.
        deadline_s: for one file from resolving to its last byte, all hops, s.
        max_wait_s: longest Retry-After that is waited for, s; after a longer one a later batch tries again.
        allow_hosts: names, addresses and networks that may be fetched from though they are not public.
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


class Fetcher:
    """Fetches URLs; for many threads, one for the whole process, so that hosts are spared by all of them together."""

    def __init__(
        self, config: FetchConfig, resolver: Resolver = system_resolver, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config, self._resolver, self._sleep = config, resolver, sleep
        self.allowed = Allowed.of(config.allow_hosts)
        self.user_agent = f"{AGENT}/0.1 (image dataset; +{config.contact})"
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._resolving = ThreadPoolExecutor(16, thread_name_prefix="resolve")  # getaddrinfo knows no deadline
        self._tls = ssl.create_default_context(cafile=config.ca_file)

    def fetch(self, url: str, limit_bytes: int) -> Content:
        """The file behind a URL, with what its site says about machine readers.

        Args:
            url: http or https.
            limit_bytes: most bytes, sent or unpacked.
        Raises:
            Refused: unsafe, opted_out, too_large, or unreachable (not lasting, but for 4xx answers).
        """
        why = ""
        if self._host(place_of(url)).failures >= MAX_FAILURES:
            raise Refused("unreachable", f"its host failed {MAX_FAILURES} times in a row", is_lasting=False)
        for attempt in range(RETRIES + 1):
            try:
                content = self._follow(url, limit_bytes)
                self._host(place_of(url)).failures = 0
                return content
            except Again as again:
                why = str(again)
                host = self._host(place_of(url))
                host.failures += 1
                if host.failures >= MAX_FAILURES:
                    break
                wait_s = max(again.after_s, 0.5 * 2**attempt)
                if attempt == RETRIES or again.after_s > self.config.max_wait_s:
                    break
                self._sleep(wait_s)
        raise Refused("unreachable", why, is_lasting=False)

    def _follow(self, url: str, limit_bytes: int) -> Content:
        robots, seen, spent_s = "", {url}, 0.0
        for _ in range(MAX_HOPS + 1):
            place = place_of(url)
            state = self._robots_of(place)
            robots = state if robots in ("", "absent") else robots
            with self._turn(place):
                begun = time.monotonic()
                reply = self._request(place, limit_bytes, begun + self.config.deadline_s - spent_s)
                spent_s += time.monotonic() - begun
            if reply.status in (301, 302, 303, 307, 308) and reply.headers.get("Location"):
                url = urljoin(url, reply.headers["Location"].strip())
                if url in seen:
                    raise Refused("unreachable", "its redirects lead round in a circle", robots=robots)
                seen.add(url)
                continue
            if after_s := retry_after_s(reply.headers.get("Retry-After"), time.time()):
                host = self._host(place)
                with host.lock:  # all threads wait
                    host.next_s = max(host.next_s, time.monotonic() + min(after_s, self.config.max_wait_s))
            return self._accept(reply, robots)
        raise Refused("unreachable", f"more than {MAX_HOPS} redirects", robots=robots)

    def _accept(self, reply: Reply, robots: str) -> Content:
        """The body of a last hop, if it is one and may be used."""
        if reply.status == 429 or reply.status >= 500:
            raise Again(f"HTTP {reply.status}", retry_after_s(reply.headers.get("Retry-After"), time.time()))
        if reply.status != 200:
            raise Refused(
                "unreachable",
                f"HTTP {reply.status}",
                is_lasting=400 <= reply.status < 500 and reply.status not in (408, 425),
                robots=robots,
            )
        if not self.config.robots:
            return Content.of(reply.content, "ignored")
        no = directive_in(reply.headers.get_all("X-Robots-Tag") or [])
        if no is None and (reply.headers.get("tdm-reservation") or "").strip() == "1":  # W3C TDM Reservation Protocol
            no = "tdm-reservation"
        if no is not None:
            raise Refused("opted_out", f"X-Robots-Tag or header: {no}", robots=f"header:{no}")
        if "html" in (reply.headers.get("Content-Type") or "").lower() and (no := meta_directive(reply.content)):
            raise Refused("opted_out", f"meta robots: {no}", robots=f"meta:{no}")
        return Content.of(reply.content, robots)

    # --- hosts --------------------------------------------------------------------------------------------------------

    def _host(self, place: Place) -> _Host:
        with self._lock:
            return self._hosts.setdefault(place.site, _Host(threading.Semaphore(self.config.per_host)))

    @contextmanager
    def _turn(self, place: Place) -> Iterator[None]:
        """One of the host's slots, not before its delay (or its Retry-After) has passed."""
        host = self._host(place)
        with host.slots:
            while True:
                with host.lock:
                    wait_s = host.next_s - time.monotonic()
                    if wait_s <= 0:
                        asked = host.robots.crawl_delay(AGENT) if host.robots and self.config.robots else None
                        host.next_s = time.monotonic() + max(
                            self.config.delay_s, min(float(asked or 0.0), self.config.max_wait_s)
                        )
                        break
                self._sleep(wait_s)
            yield

    def _robots_of(self, place: Place) -> str:
        """State of the site's robots.txt for this URL; read once a day (RFC 9309).

        Raises:
            Refused: opted_out, when it does not allow the URL.
            Again: it could not be read: then nothing is allowed for now.
        """
        if not self.config.robots:
            return "ignored"
        host = self._host(place)
        with host.robots_lock:
            if host.robots is None or time.monotonic() > host.robots_until:
                text, host.robots_state = self._read_robots(place)
                host.robots, host.robots_until = Protego.parse(text), time.monotonic() + ROBOTS_AGE_S
        if not host.robots.can_fetch(place.url, AGENT):
            raise Refused("opted_out", "robots.txt does not allow it", robots="disallowed")
        return host.robots_state

    def _read_robots(self, place: Place) -> tuple[str, str]:
        url, until = f"{place.site}/robots.txt", time.monotonic() + min(20.0, self.config.deadline_s)
        for _ in range(MAX_HOPS + 1):
            hop = place_of(url)
            reply = self._request(hop, ROBOTS_BYTES, until, cuts=True)
            if reply.status in (301, 302, 303, 307, 308) and reply.headers.get("Location"):
                url = urljoin(url, reply.headers["Location"].strip())
                continue
            if reply.status == 200:
                return reply.content.decode("utf-8", "replace"), "allowed"
            if reply.status == 429 or reply.status >= 500:
                raise Again(
                    f"robots.txt: HTTP {reply.status}", retry_after_s(reply.headers.get("Retry-After"), time.time())
                )
            return "", "absent"
        return "", "absent"

    # --- one hop ------------------------------------------------------------------------------------------------------

    def _addresses(self, place: Place, until: float) -> list[Address]:
        """The host's addresses, every one of them checked.

        Raises:
            Refused: unsafe, when any is not public and not allowed.
            Again: the name does not resolve, or not in time.
        """
        found = literal_address(place.host)
        if found is not None:
            addresses = [found]
        else:
            answer: Future[Sequence[str]] = self._resolving.submit(self._resolver, place.host, place.port)
            try:
                addresses = [ipaddress.ip_address(a.partition("%")[0]) for a in answer.result(left_of(until))]
            except FutureTimeout as error:
                answer.cancel()
                raise Again(self._late(place)) from error
            except socket.gaierror as error:
                if error.errno in NO_SUCH_NAME:  # asking again at once is for nothing
                    raise Refused("unreachable", f"{place.host}: no such host", is_lasting=False) from error
                raise Again(f"{place.host}: not resolved ({error})") from error
            except (OSError, UnicodeError) as error:
                raise Again(f"{place.host}: not resolved ({error})") from error
        if not addresses:
            raise Again(f"{place.host}: not resolved")
        for address in addresses:
            if not is_public(address) and not self.allowed.has(place.host, address):
                raise Refused(
                    "unsafe", f"{place.host} is at {address}, which is not public; allow_hosts of the source lets it in"
                )
        return addresses

    def _connect(self, place: Place, until: float) -> socket.socket:
        """A connection to an address that was checked, TLS with the host's name."""
        failed: OSError | None = None
        for address in self._addresses(place, until)[:3]:
            try:
                sock = socket.create_connection((str(address), place.port), timeout=min(10.0, left_of(until)))
            except OSError as error:
                failed = error
                continue
            if place.scheme == "http":
                return sock
            sock.settimeout(left_of(until))
            try:
                return self._tls.wrap_socket(sock, server_hostname=place.host)
            except BaseException:
                sock.close()
                raise
        raise failed or OSError("no address")

    def _request(self, place: Place, limit_bytes: int, until: float, *, cuts: bool = False) -> Reply:
        """GET one URL; no redirect is followed here.

        Args:
            until: deadline on the monotonic clock, s.
            cuts: a body past the limit is cut, not refused.
        """
        try:
            sock = self._connect(place, until)
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                "unreachable", f"{place.host}: its certificate does not hold: {error.verify_message}", is_lasting=False
            ) from error
        except TimeoutError as error:
            raise Again(self._late(place)) from error
        except (OSError, ValueError) as error:
            raise Again(f"{place.host}: {error}") from error
        with sock:
            host = (
                place.site.partition("://")[2]
                if place.port not in (80, 443)
                else place.site.partition("://")[2].rpartition(":")[0]
            )
            lines = (
                f"GET {place.target} HTTP/1.1",
                f"Host: {host}",
                f"User-Agent: {self.user_agent}",
                "Accept: image/avif,image/webp,image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5",
                "Accept-Encoding: identity",
                "Connection: close",
            )
            try:
                sock.settimeout(left_of(until))
                sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
                response = http.client.HTTPResponse(_Response(sock, until), method="GET")  # type: ignore[arg-type]
                response.begin()
                return Reply(
                    response.status,
                    response.headers,
                    b"" if response.status >= 300 else self._body(response, limit_bytes, cuts=cuts),
                )
            except TimeoutError as error:
                raise Again(self._late(place)) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Again(f"{place.host}: {type(error).__name__} {error}") from error

    def _late(self, place: Place) -> str:
        """The same words wherever the deadline fell, so that a rerun writes the same row."""
        return f"{place.host}: not within {self.config.deadline_s:g} s"

    def _body(self, response: http.client.HTTPResponse, limit_bytes: int, *, cuts: bool) -> bytes:
        """The body, streamed up to the limit."""
        length = response.headers.get("Content-Length") or ""
        if not cuts and length.isdigit() and int(length) > limit_bytes:
            raise Refused("too_large", f"{length} bytes stated, at most {limit_bytes}")

        def sent() -> Iterator[bytes]:
            count = 0
            while piece := response.read1(64 * 1024):
                count += len(piece)
                yield piece
                if count > limit_bytes:
                    if cuts:
                        return
                    raise Refused("too_large", f"more than {limit_bytes} bytes sent")
            if length.isdigit() and count < int(length):
                raise http.client.IncompleteRead(b"", int(length) - count)

        out = bytearray()
        for piece in unpacked(sent(), (response.headers.get("Content-Encoding") or "").strip().lower(), limit_bytes):
            out += piece
            if len(out) > limit_bytes:
                if cuts:
                    break
                raise Refused("too_large", f"more than {limit_bytes} bytes")
        return bytes(out[:limit_bytes])
