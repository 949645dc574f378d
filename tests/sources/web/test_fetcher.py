"""Downloads from a real server on loopback (allowed by allow_hosts), and everything that must not be fetched."""

import gzip
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tasks.sources.files import FileRejected
from tasks.sources.web import addresses, connection, hosts
from tasks.sources.web import fetcher as fetcher_module
from tasks.sources.web.fetcher import Fetcher
from tasks.sources.web.hosts import FetchConfig
from tests.support.web import running

IMAGE = b"\xff\xd8 an image " * 100
LIMIT = 10_000


class Site(ThreadingHTTPServer):
    """A server whose pages are functions of its handler; counts requests by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: Counter[str] = Counter()
        self.agents: set[str] = set()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server  # type: ignore[assignment]
        site.requests[self.path] += 1
        site.agents.add(self.headers["User-Agent"])
        site.pages.get(self.path, respond(404))(self)

    def log_message(self, *_: object) -> None:
        pass


def respond(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return page


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    server.pages["/a.jpg"] = respond(body=IMAGE)
    with running(server):
        yield server


def make_fetcher(
    allow: tuple[str, ...] = ("127.0.0.1",), waits: list[float] | None = None, **changes: object
) -> Fetcher:
    """A fetcher that waits at most 10 ms before a retry; `waits` collects what it would have waited."""
    config = FetchConfig("mailto:me@example.org", delay_s=0.0, deadline_s=60.0, allow_hosts=allow)
    kept = [] if waits is None else waits
    return Fetcher(
        FetchConfig(**{**vars(config), **changes}), sleep=lambda s: kept.append(s) or time.sleep(min(s, 0.01))
    )  # type: ignore[func-returns-value]


def catch_rejection(url: str, fetcher: Fetcher | None = None, limit: int = LIMIT) -> FileRejected:
    with pytest.raises(FileRejected) as caught:
        (fetcher or make_fetcher()).fetch(url, limit)
    return caught.value


def test_a_file_comes_with_its_robots_state_and_requests_name_their_sender(site: Site):
    content = make_fetcher().fetch(site.url + "/a.jpg", LIMIT)
    assert (content, content.robots) == (IMAGE, "absent")
    assert site.agents == {"MegaPairs/0.1 (image dataset; +mailto:me@example.org)"}


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "0",
            "localhost",
            "１２７.０.０.１",
            "127。0。0。1",
        ),
        *(
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "0.0.0.0",
        ),
        *(
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fe80::1%25eth0]",
            "[fd00:ec2::254]",
            "[ff02::1]",
        ),
        *(
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[::127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:7f00:1::]",
            "[2001:0:1::8000:f:80ff:fffe]",
        ),
    ],
)
def test_no_request_goes_to_an_address_that_is_not_public(host: str, site: Site):
    rejected = catch_rejection(f"http://{host}:{site.server_port}/a.jpg", make_fetcher(allow=()))
    assert (rejected.reason, site.requests.total()) == ("unsafe", 0), rejected


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "gopher://x",
        "http://",
        "http://me:secret@example.org/",
        "http://example.org:25/",
        "http://exa mple.org/",
    ]
    + [
        "http://example.org/\r\nHost: x",
        "http://[::1",
        "http://example.org:99999/",
        "//example.org/a.jpg",
        "a.jpg",
        "http://" + "a" * 9_000,
    ],
)
def test_what_is_not_a_plain_http_url_is_unsafe(url: str):
    assert catch_rejection(url).reason == "unsafe"


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_rejected(text: str):
    for url in (text, f"http://{text}", f"http://example.org/{text}"):
        try:
            parsed = addresses.parse_url(url)
        except FileRejected as rejected:
            assert rejected.reason == "unsafe"
        else:
            assert parsed.target.isascii() and not set(parsed.target) & set(" \r\n") and parsed.host


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_as_private_as_itself(address: ipaddress.IPv4Address):
    mapped = ipaddress.IPv6Address(int(address) | 0xFFFF << 32)
    sixtofour = ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80)
    assert addresses.is_public(address) == addresses.is_public(mapped) == addresses.is_public(sixtofour)
    assert not addresses.is_public(address) or address.is_global


def test_a_public_address_is_public():
    assert all(addresses.is_public(ipaddress.ip_address(a)) for a in ("93.184.215.14", "1.1.1.1", "2606:4700::1111"))


def test_a_redirect_to_a_private_address_is_not_followed(site: Site):
    """The site itself is allowed by name; what it points at is not."""
    other = Site()
    site.pages["/in.jpg"] = respond(302, Location=f"http://127.0.0.2:{site.server_port}/a.jpg")
    site.pages["/meta.jpg"] = respond(301, Location="http://169.254.169.254/latest/meta-data/")
    site.pages["/file.jpg"] = respond(301, Location="file:///etc/passwd")
    assert [catch_rejection(site.url + p).reason for p in ("/in.jpg", "/meta.jpg", "/file.jpg")] == ["unsafe"] * 3
    other.server_close()


def test_a_name_is_resolved_once_and_the_checked_address_is_connected(site: Site):
    """DNS rebinding: a second answer, a private address, is never requested. One private address among several rejects
    all.
    """
    answers = iter([["127.0.0.1"], ["127.0.0.1"], ["10.0.0.1"]])
    fetcher = Fetcher(
        FetchConfig("me", delay_s=0, allow_hosts=("127.0.0.0/8",)), resolver=lambda host, port: next(answers)
    )
    assert fetcher.fetch(f"http://images.example:{site.server_port}/a.jpg", LIMIT) == IMAGE  # robots.txt, then the file
    assert catch_rejection(f"http://images.example:{site.server_port}/a.jpg", fetcher).reason == "unsafe"
    mixed = Fetcher(FetchConfig("me", delay_s=0), resolver=lambda host, port: ["93.184.215.14", "127.0.0.1"])
    assert catch_rejection(f"http://images.example:{site.server_port}/a.jpg", mixed).reason == "unsafe"
    assert site.requests["/a.jpg"] == 1


def test_an_unknown_name_is_resolved_once_and_a_failing_resolver_is_retried():
    for errno, tries in ((socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)):
        resolved: list[str] = []

        def resolver(host: str, port: int, errno: int = errno, resolved: list[str] = resolved) -> list[str]:
            resolved.append(host)
            raise socket.gaierror(errno, "no")

        rejected = catch_rejection(
            "http://images.example/a.jpg",
            Fetcher(FetchConfig("me", delay_s=0), resolver=resolver, sleep=lambda s: None),
        )
        assert (rejected.reason, rejected.is_lasting, len(resolved)) == ("unreachable", False, tries)


def test_redirects_are_followed_up_to_a_limit(site: Site):
    site.pages["/1"], site.pages["/2"] = respond(302, Location="/2"), respond(307, Location="a.jpg")
    site.pages["/round"], site.pages["/about"] = respond(302, Location="/about"), respond(302, Location="/round")
    for n in range(9):
        site.pages[f"/far{n}"] = respond(302, Location=f"/far{n + 1}")
    assert make_fetcher().fetch(site.url + "/1", LIMIT) == IMAGE
    assert [catch_rejection(site.url + p).reason for p in ("/round", "/far0")] == ["unreachable"] * 2
    assert site.requests["/far6"] == 0


def test_a_response_of_a_byte_at_a_time_ends_at_the_deadline(site: Site):
    """Both pages send for as long as the client listens: only the deadline ends the request."""

    def drip_headers(handler: BaseHTTPRequestHandler) -> None:
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        drip_headers(handler)

    site.pages["/drip.jpg"], site.pages["/headers.jpg"] = drip, drip_headers
    for path in ("/drip.jpg", "/headers.jpg"):
        rejected = catch_rejection(site.url + path, make_fetcher(deadline_s=0.3))
        assert (rejected.reason, rejected.is_lasting) == ("unreachable", False)


def test_a_body_beyond_the_limit_is_rejected(site: Site):
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while len(sent) < 20_000:
            handler.wfile.write(b"x" * 1024)
            sent.append(1024)

    site.pages["/stated.jpg"] = respond(body=b"x" * (LIMIT + 1))
    site.pages["/endless.jpg"] = endless
    site.pages["/exact.jpg"] = respond(body=b"x" * LIMIT)
    assert (
        catch_rejection(site.url + "/stated.jpg").reason
        == catch_rejection(site.url + "/endless.jpg").reason
        == "too_large"
    )
    assert sum(sent) < 20_000 * 1024
    assert len(make_fetcher().fetch(site.url + "/exact.jpg", LIMIT)) == LIMIT


def test_a_gzip_bomb_is_decompressed_no_further_than_the_limit(site: Site):
    bomb = gzip.compress(b"\0" * 50_000_000)
    site.pages["/bomb.jpg"] = respond(body=bomb, Content_Encoding="gzip")
    site.pages["/fine.jpg"] = respond(body=gzip.compress(IMAGE), Content_Encoding="gzip")
    site.pages["/cut.jpg"] = respond(body=gzip.compress(IMAGE)[:-12], Content_Encoding="gzip")
    site.pages["/br.jpg"] = respond(body=b"?", Content_Encoding="br")
    pieces = connection.decompress(iter([bomb]), "gzip", LIMIT)
    assert sum(len(p) for p in pieces) == LIMIT + 1
    assert catch_rejection(site.url + "/bomb.jpg", limit=60_000).reason == "too_large"
    assert make_fetcher().fetch(site.url + "/fine.jpg", LIMIT) == IMAGE
    assert [catch_rejection(site.url + p).reason for p in ("/cut.jpg", "/br.jpg")] == ["unreachable"] * 2


def skip_waits(fetcher: Fetcher, url: str) -> list[float]:
    """Collect the waits of this fetcher instead of sleeping; the host's own delay is over after each."""
    waits: list[float] = []
    host = fetcher.hosts.state(addresses.parse_url(url))

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        host.next_start_s = 0.0

    fetcher.hosts.sleep = sleep
    return waits


def test_retry_after_is_waited_for(site: Site):
    def busy(status: int, after: str) -> Callable[[BaseHTTPRequestHandler], None]:
        return lambda h: (respond(body=IMAGE) if site.requests[h.path] > 1 else respond(status, Retry_After=after))(h)

    site.pages["/429.jpg"], site.pages["/503.jpg"] = (
        busy(429, "7"),
        busy(503, formatdate(time.time() + 30, usegmt=True)),
    )
    for path, low_s, high_s in (("/429.jpg", 7, 7), ("/503.jpg", 20, 30)):
        fetcher = make_fetcher(max_wait_s=60.0)
        waits = skip_waits(fetcher, site.url)
        assert fetcher.fetch(site.url + path, LIMIT) == IMAGE
        assert low_s <= waits[0] <= high_s
    site.pages["/long.jpg"] = respond(429, Retry_After="86400")
    rejected = catch_rejection(site.url + "/long.jpg")
    assert (rejected.reason, rejected.is_lasting, site.requests["/long.jpg"]) == ("unreachable", False, 1)


def test_a_404_is_lasting_and_a_5xx_is_retried(site: Site):
    site.pages["/500.jpg"] = respond(500)
    site.pages["/once.jpg"] = lambda h: (respond(body=IMAGE) if site.requests[h.path] > 1 else respond(502))(h)
    gone, broken = catch_rejection(site.url + "/gone.jpg"), catch_rejection(site.url + "/500.jpg")
    assert (gone.reason, gone.is_lasting, broken.reason, broken.is_lasting) == (
        "unreachable",
        True,
        "unreachable",
        False,
    )
    assert (site.requests["/gone.jpg"], site.requests["/500.jpg"]) == (1, 3)
    assert make_fetcher().fetch(site.url + "/once.jpg", LIMIT) == IMAGE


def test_a_truncated_body_is_rejected(site: Site):
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)

    site.pages["/cut.jpg"] = cut
    assert catch_rejection(site.url + "/cut.jpg").reason == "unreachable"


def test_a_host_that_only_fails_is_no_longer_requested(site: Site):
    site.pages["/500.jpg"] = respond(500)
    fetcher = make_fetcher()
    for _ in range(10):
        assert not catch_rejection(site.url + "/500.jpg", fetcher).is_lasting
    assert site.requests["/500.jpg"] == fetcher_module.MAX_FAILURES


# --- robots and opt-out -----------------------------------------------------------------------------------------------


def test_robots_txt_is_honoured_and_read_once(site: Site):
    site.pages["/robots.txt"] = respond(
        body=b"User-agent: *\nDisallow: /\n\nUser-agent: MegaPairs\nDisallow: /private/*.jpg$\nAllow: /\n"
    )
    for path in ("/private/a.jpg", "/open/a.jpg"):
        site.pages[path] = respond(body=IMAGE)
    fetcher = make_fetcher()
    rejected = catch_rejection(site.url + "/private/a.jpg", fetcher)
    assert (rejected.reason, rejected.robots, site.requests["/private/a.jpg"]) == ("opted_out", "disallowed", 0)
    assert fetcher.fetch(site.url + "/open/a.jpg", LIMIT).robots == "allowed"
    assert site.requests["/robots.txt"] == 1
    assert make_fetcher(robots=False).fetch(site.url + "/private/a.jpg", LIMIT).robots == "ignored"


def test_an_unreadable_robots_txt_allows_nothing_for_now(site: Site):
    site.pages["/robots.txt"] = respond(503)
    rejected = catch_rejection(site.url + "/a.jpg")
    assert (rejected.reason, rejected.is_lasting, site.requests["/a.jpg"]) == ("unreachable", False, 0)


def test_the_robots_txt_of_a_redirects_target_counts(site: Site):
    site.pages["/robots.txt"] = respond(body=b"User-agent: *\nDisallow: /no/\n")
    site.pages["/yes"], site.pages["/no/a.jpg"] = respond(302, Location="/no/a.jpg"), respond(body=IMAGE)
    assert catch_rejection(site.url + "/yes").reason == "opted_out"
    assert site.requests["/no/a.jpg"] == 0


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({"X_Robots_Tag": "noai"}, "header:noai"),
        ({"X_Robots_Tag": "nofollow, NoImageAI"}, "header:noimageai"),
        ({"X_Robots_Tag": "noindex"}, "header:noindex"),
        ({"X_Robots_Tag": "megapairs: noindex"}, "header:noindex"),
        ({"X_Robots_Tag": "otherbot: noindex, noai"}, "absent"),
        ({"X_Robots_Tag": "unavailable_after: 25 Jun 2030 15:00:00 PST"}, "absent"),
        ({"X_Robots_Tag": "nofollow"}, "absent"),
        ({"tdm_reservation": "1"}, "header:tdm-reservation"),
        ({"tdm_reservation": "0"}, "absent"),
    ],
)
def test_headers_that_opt_out(headers: dict[str, str], state: str, site: Site):
    site.pages["/x.jpg"] = respond(body=IMAGE, **headers)
    if state == "absent":
        assert make_fetcher().fetch(site.url + "/x.jpg", LIMIT).robots == state
    else:
        rejected = catch_rejection(site.url + "/x.jpg")
        assert (rejected.reason, rejected.robots) == ("opted_out", state)


def test_a_meta_tag_that_opts_out(site: Site):
    site.pages["/p"] = respond(
        body=b'<html><head><META content="index, noimageai" name=ROBOTS></head>',
        Content_Type="text/html; charset=utf-8",
    )
    assert catch_rejection(site.url + "/p").robots == "meta:noimageai"


# --- limits per host --------------------------------------------------------------------------------------------------


class Clock:
    """A monotonic clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s, self.lock = 1000.0, threading.Lock()

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now_s += seconds


def test_requests_to_a_host_are_delayed_and_limited_in_number(site: Site, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(hosts, "time", clock)
    busy, most, lock = [0], [0], threading.Lock()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.05)
        with lock:
            busy[0] -= 1
        respond(body=IMAGE)(handler)

    site.pages["/s.jpg"] = slow
    fetcher = Fetcher(FetchConfig("me", delay_s=3.0, per_host=2, allow_hosts=("127.0.0.1",)), sleep=clock.sleep)
    threads = [threading.Thread(target=fetcher.fetch, args=(site.url + "/s.jpg", LIMIT)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.requests["/s.jpg"] == 8 and most[0] <= 2
    assert clock.now_s >= 1000.0 + 7 * 3.0


def test_tls_certificates_are_verified_for_the_hosts_name(site: Site, tmp_path: Path):
    """A certificate for images.example alone; the connection goes to a pinned 127.0.0.1 all the same."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    secret, name, now = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images.example")]),
        datetime.now(UTC),
    )
    signed = (
        x509.CertificateBuilder(
            name,
            name,
            secret.public_key(),
            x509.random_serial_number(),
            now - timedelta(hours=1),
            now + timedelta(days=2),
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("images.example")]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.socket = context.wrap_socket(site.socket, server_side=True)

    def using(ca_file: Path | None) -> Fetcher:
        config = FetchConfig("me", delay_s=0, allow_hosts=("127.0.0.1",), ca_file=str(ca_file) if ca_file else None)
        return Fetcher(config, resolver=lambda host, port: ["127.0.0.1"], sleep=lambda s: None)

    assert using(certificate).fetch(f"https://images.example:{site.server_port}/a.jpg", LIMIT) == IMAGE
    requests = site.requests.total()
    for url, ca_file in (
        (f"https://other.example:{site.server_port}/a.jpg", certificate),
        (f"https://images.example:{site.server_port}/a.jpg", None),
    ):
        rejected = catch_rejection(url, using(ca_file))
        assert rejected.reason == "unreachable" and "certificate" in rejected.detail
    assert site.requests.total() == requests


def test_a_chunked_body_is_joined(site: Site):
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        stream = io.BytesIO(IMAGE)
        while piece := stream.read(333):
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    site.pages["/chunks.jpg"] = chunked
    assert make_fetcher().fetch(site.url + "/chunks.jpg", LIMIT) == IMAGE
