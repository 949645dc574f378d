"""One HTTP(S) GET request without redirects: to a public address only, within a deadline and a byte limit.

The host is resolved once, all its addresses are checked, and the connection is made to an address that was checked, so
that a second DNS answer (DNS rebinding) is never used; TLS and the Host header carry the host's name. Proxies of the
environment are not used: the proxy would resolve the name, and the check would be void.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

from tasks.sources.files import FileRejected
from tasks.sources.web.addresses import (
    NAME_NOT_FOUND,
    Address,
    AllowList,
    ParsedUrl,
    Resolver,
    is_public,
    literal_address,
)
from tasks.sources.web.connection import DeadlineSocket, decompress, seconds_left
from tasks.sources.web.hosts import FetchConfig
from tasks.sources.web.robots import AGENT

RESOLVER_THREADS = 16  # getaddrinfo takes no deadline, so it runs in threads of its own
CONNECT_S = 10.0  # longest wait for one address
MAX_ADDRESSES = 3  # of a host, tried one after another


class RetryableError(Exception):
    """A request that failed in a way that may pass.

    Attributes:
        after_s: seconds of the site's Retry-After; 0 without one.
    """

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Response:
    """The answer to one request; `content` is empty for redirects and errors."""

    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def redirect_target(self) -> str | None:
        """The Location of a redirect, None where it is none."""
        location = self.headers.get("Location")
        return location.strip() if self.status in (301, 302, 303, 307, 308) and location else None


class HttpClient:
    """Makes requests for a fetcher; thread-safe."""

    def __init__(self, config: FetchConfig, resolver: Resolver) -> None:
        self._deadline_text = f"not within {config.deadline_s:g} s"
        self._resolver = resolver
        self._allow_list = AllowList.parse(config.allow_hosts)
        self._user_agent = f"{AGENT}/0.1 (image dataset; +{config.contact})"
        self._resolver_pool = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")
        self._tls = ssl.create_default_context(cafile=config.ca_file)

    def get(self, url: ParsedUrl, limit_bytes: int, deadline_s: float, *, truncate: bool = False) -> Response:
        """GET one URL.

        Args:
            url: where to.
            limit_bytes: most bytes of the body, both as sent and decompressed.
            deadline_s: on the monotonic clock, s.
            truncate: cut a body at the limit instead of rejecting it.
        Raises:
            FileRejected: unsafe, too_large, or unreachable (an invalid certificate, no such host).
            RetryableError: not resolved, not connected, broken off, or not within the deadline.
        """
        try:
            sock = self._connect(url, deadline_s)
        except ssl.SSLCertVerificationError as error:
            raise FileRejected(
                "unreachable", f"{url.host}: its certificate does not hold: {error.verify_message}", is_lasting=False
            ) from error
        except TimeoutError as error:
            raise RetryableError(self._timeout_message(url)) from error
        except (OSError, ValueError) as error:
            raise RetryableError(f"{url.host}: {error}") from error
        with sock:
            try:
                sock.settimeout(seconds_left(deadline_s))
                sock.sendall(self._request_bytes(url))
                answer = http.client.HTTPResponse(DeadlineSocket(sock, deadline_s), method="GET")  # type: ignore[arg-type]
                answer.begin()
                body = b"" if answer.status >= 300 else read_body(answer, limit_bytes, truncate=truncate)
                return Response(answer.status, answer.headers, body)
            except TimeoutError as error:
                raise RetryableError(self._timeout_message(url)) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise RetryableError(f"{url.host}: {type(error).__name__} {error}") from error

    def _request_bytes(self, url: ParsedUrl) -> bytes:
        lines = (
            f"GET {url.target} HTTP/1.1",
            f"Host: {url.host_header}",
            f"User-Agent: {self._user_agent}",
            "Accept: image/avif,image/webp,image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5",
            "Accept-Encoding: identity",
            "Connection: close",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _timeout_message(self, url: ParsedUrl) -> str:
        """The same words wherever the deadline struck, so that a rerun writes the same row."""
        return f"{url.host}: {self._deadline_text}"

    def _connect(self, url: ParsedUrl, deadline_s: float) -> socket.socket:
        """A connection to one of the checked addresses; for https with TLS for the host's name."""
        last_error: OSError | None = None
        for address in self._checked_addresses(url, deadline_s)[:MAX_ADDRESSES]:
            try:
                sock = socket.create_connection(
                    (str(address), url.port), timeout=min(CONNECT_S, seconds_left(deadline_s))
                )
            except OSError as error:
                last_error = error
                continue
            if url.scheme == "http":
                return sock
            sock.settimeout(seconds_left(deadline_s))
            try:
                return self._tls.wrap_socket(sock, server_hostname=url.host)
            except BaseException:
                sock.close()
                raise
        raise last_error or OSError("no address")

    def _checked_addresses(self, url: ParsedUrl, deadline_s: float) -> list[Address]:
        """The host's addresses, all of them public or allowed.

        Raises:
            FileRejected: unsafe, when any is neither; unreachable, when the name does not exist.
            RetryableError: the name does not resolve, or not in time.
        """
        literal = literal_address(url.host)
        addresses = [literal] if literal is not None else self._resolve(url, deadline_s)
        if not addresses:
            raise RetryableError(f"{url.host}: not resolved")
        for address in addresses:
            if not is_public(address) and not self._allow_list.allows(url.host, address):
                raise FileRejected(
                    "unsafe", f"{url.host} is at {address}, which is not public; allow_hosts of the source lets it in"
                )
        return addresses

    def _resolve(self, url: ParsedUrl, deadline_s: float) -> list[Address]:
        answer: Future[Sequence[str]] = self._resolver_pool.submit(self._resolver, url.host, url.port)
        try:
            texts = answer.result(seconds_left(deadline_s))
            return [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        except FutureTimeout as error:
            answer.cancel()
            raise RetryableError(self._timeout_message(url)) from error
        except socket.gaierror as error:
            if error.errno in NAME_NOT_FOUND:  # a retry would fail alike
                raise FileRejected("unreachable", f"{url.host}: no such host", is_lasting=False) from error
            raise RetryableError(f"{url.host}: not resolved ({error})") from error
        except (OSError, UnicodeError) as error:
            raise RetryableError(f"{url.host}: not resolved ({error})") from error


def read_body(answer: http.client.HTTPResponse, limit_bytes: int, *, truncate: bool) -> bytes:
    """The body, streamed up to the limit; a longer one is cut where `truncate` is set.

    Raises:
        FileRejected: too_large; unreachable, for an unsupported encoding or a damaged body.
        http.client.HTTPException: the body ends early.
    """
    stated = answer.headers.get("Content-Length") or ""
    if not truncate and stated.isdigit() and int(stated) > limit_bytes:
        raise FileRejected("too_large", f"{stated} bytes stated, at most {limit_bytes}")
    encoding = (answer.headers.get("Content-Encoding") or "").strip().lower()
    body = bytearray()
    for chunk in decompress(_sent_chunks(answer, limit_bytes, truncate=truncate), encoding, limit_bytes):
        body += chunk
        if len(body) > limit_bytes:
            if truncate:
                break
            raise FileRejected("too_large", f"more than {limit_bytes} bytes")
    return bytes(body[:limit_bytes])


def _sent_chunks(answer: http.client.HTTPResponse, limit_bytes: int, *, truncate: bool) -> Iterator[bytes]:
    """The body as sent; raises IncompleteRead where it is shorter than its Content-Length."""
    stated = answer.headers.get("Content-Length") or ""
    count = 0
    while chunk := answer.read1(64 * 1024):
        count += len(chunk)
        yield chunk
        if count > limit_bytes:
            if truncate:
                return
            raise FileRejected("too_large", f"more than {limit_bytes} bytes sent")
    if stated.isdigit() and count < int(stated):
        raise http.client.IncompleteRead(b"", int(stated) - count)
