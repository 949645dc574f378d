"""Parse URLs and decide which hosts may be fetched from: only public addresses, unless the source allows others."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from tasks.sources.files import FileRejected

MAX_URL_CHARS = 8_000
# Not covered by ipaddress.is_global, or global but internal to a cloud: IETF protocol assignments (Oracle's metadata
# service is 192.0.0.192), Azure's wire server, the 6to4 relays.
FORBIDDEN = tuple(ipaddress.ip_network(n) for n in ("192.0.0.0/24", "168.63.129.16/32", "192.88.99.0/24"))
# IPv6 networks with an IPv4 address in the last 32 bits: NAT64, local NAT64, IPv4-compatible
EMBEDDING = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))

# getaddrinfo's error numbers for a name that does not exist
NAME_NOT_FOUND = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]


def system_resolver(host: str, port: int) -> list[str]:
    """All addresses of a host, by getaddrinfo."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def literal_address(host: str) -> Address | None:
    """The address that a host name is itself: dotted, decimal, hex, octal or IPv6; None for a name to be resolved."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))  # 2130706433, 0x7f.1, 0177.0.0.1, 127.1
    except (OSError, ValueError):
        return None


def embedded_address(address: Address) -> Address:
    """The IPv4 address embedded in an IPv6 one (mapped, 6to4, Teredo, NAT64), to which packets would be routed.

    Any other address is returned as it is.
    """
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    embedded = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if embedded is None and int(address) > 1 and any(address in network for network in EMBEDDING):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return embedded or address


def is_public(address: Address) -> bool:
    """Whether an address belongs to a host of the public internet.

    False for private, loopback, link-local, shared, multicast, reserved and cloud-internal addresses.
    """
    inner = embedded_address(address)
    if isinstance(inner, ipaddress.IPv6Address) and (
        inner.is_site_local or inner not in ipaddress.ip_network("2000::/3")
    ):
        return False
    return (
        inner.is_global
        and not inner.is_multicast
        and not inner.is_reserved
        and not any(inner in network for network in FORBIDDEN if network.version == inner.version)
    )


@dataclass(frozen=True)
class AllowList:
    """Hosts and networks that may be fetched from although they are not public: intranets, tests."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> AllowList:
        """From host names, addresses and CIDR networks."""
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                hosts.add(entry.lower().rstrip("."))
        return cls(frozenset(hosts), tuple(networks))

    def allows(self, host: str, address: Address) -> bool:
        """Whether this host, or the address that it resolved to, is listed."""
        return host in self.hosts or any(
            address in network for network in self.networks if network.version == address.version
        )


@dataclass(frozen=True)
class ParsedUrl:
    """An http(s) URL, split and normalised.

    Attributes:
        url: as it was given.
        scheme: http or https.
        host: lower case, IDNA-encoded, without brackets and without the final dot.
        port: 80 or 443 unless the URL states another.
        target: path and query, percent-encoded.
    """

    url: str
    scheme: str
    host: str
    port: int
    target: str

    @property
    def bracketed_host(self) -> str:
        """The host as written in a URL: IPv6 addresses in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def site(self) -> str:
        """scheme://host:port, the scope of a robots.txt."""
        return f"{self.scheme}://{self.bracketed_host}:{self.port}"

    @property
    def host_header(self) -> str:
        """Value of the Host header: the port only where it is neither 80 nor 443."""
        return self.bracketed_host if self.port in (80, 443) else f"{self.bracketed_host}:{self.port}"


def parse_url(url: str) -> ParsedUrl:
    """Split and normalise a URL.

    Raises:
        FileRejected: unsafe, when it is not a plain http(s) URL of a host, or its port is below 1024 and not 80 or 443.
    """
    if len(url) > MAX_URL_CHARS or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in url):
        raise FileRejected("unsafe", "a URL too long, or with control characters")
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise FileRejected("unsafe", f"no URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise FileRejected("unsafe", f"scheme '{parts.scheme}'; http and https are fetched")
    if parts.username is not None or parts.password is not None:
        raise FileRejected("unsafe", "a URL with a user name or password")
    if ":" not in host:
        try:
            # nameprep: full-width digits and dots become ASCII
            host = host.rstrip(".").encode("idna").decode().lower()
        except UnicodeError as error:
            raise FileRejected("unsafe", f"no host name: {error}") from error
        if not re.fullmatch(r"[a-z0-9_.\-]+", host):
            raise FileRejected("unsafe", "no host name")
    port = port or (443 if parts.scheme == "https" else 80)
    if port < 1024 and port not in (80, 443):
        raise FileRejected("unsafe", f"port {port}; 80, 443 and those from 1024 are fetched")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}"
    return ParsedUrl(url, parts.scheme, host, port, target)
