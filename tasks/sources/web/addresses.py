"""URLs and addresses: which hosts may be fetched from; only public addresses unless allowed."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from tasks.sources.files import Refused

MAX_URL_CHARS = 8_000
# Not covered by ipaddress.is_global, or global yet a cloud's own: IETF protocol assignments (Oracle's metadata is
# 192.0.0.192), Azure's
# wire server, the 6to4 relays.
FORBIDDEN = tuple(ipaddress.ip_network(n) for n in ("192.0.0.0/24", "168.63.129.16/32", "192.88.99.0/24"))
# NAT64, local NAT64, IPv4-compatible
EMBEDDING = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))

NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]


def system_resolver(host: str, port: int) -> list[str]:
    """All addresses of a host."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def literal_address(host: str) -> Address | None:
    """The address that a host name spells itself: dotted, decimal, hex, octal, IPv6; None for a name that the DNS must
    answer for.
    """
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))  # 2130706433, 0x7f.1, 0177.0.0.1, 127.1
    except (OSError, ValueError):
        return None


def embedded_address(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64), where a packet would end up; else the address
    itself.
    """
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    inside = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inside is None and int(address) > 1 and any(address in network for network in EMBEDDING):
        inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inside or address


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet's hosts: not private, loopback, link-local, shared, multicast,
    reserved, a cloud's own.
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
class Allowed:
    """Hosts and networks that may be fetched from though they are not public: tests, intranets."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Sequence[str]) -> Allowed:
        """From names, addresses and CIDR networks."""
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                hosts.add(entry.lower().rstrip("."))
        return cls(frozenset(hosts), tuple(networks))

    def has(self, host: str, address: Address) -> bool:
        """Whether this host, or the address it resolved to, is allowed."""
        return host in self.hosts or any(
            address in network for network in self.networks if network.version == address.version
        )


@dataclass(frozen=True)
class Place:
    """One hop's URL, taken apart and normalised."""

    url: str
    scheme: str
    host: str
    port: int
    target: str  # path and query, percent-encoded

    @property
    def site(self) -> str:
        """scheme://host:port, what a robots.txt is for."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def place_of(url: str) -> Place:
    """Take a URL apart.

    Raises:
        Refused: unsafe, when it is no plain http(s) URL of a host.
    """
    if len(url) > MAX_URL_CHARS or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in url):
        raise Refused("unsafe", "a URL too long, or with control characters")
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise Refused("unsafe", f"no URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise Refused("unsafe", f"scheme '{parts.scheme}'; http and https are fetched")
    if parts.username is not None or parts.password is not None:
        raise Refused("unsafe", "a URL with a user name or password")
    if ":" not in host:
        try:
            # nameprep: full-width digits and dots become plain ones
            host = host.rstrip(".").encode("idna").decode().lower()
        except UnicodeError as error:
            raise Refused("unsafe", f"no host name: {error}") from error
        if not re.fullmatch(r"[a-z0-9_.\-]+", host):
            raise Refused("unsafe", "no host name")
    port = port or (443 if parts.scheme == "https" else 80)
    if port < 1024 and port not in (80, 443):
        raise Refused("unsafe", f"port {port}; 80, 443 and those from 1024 are fetched")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}" if parts.query else ""
    )
    return Place(url, parts.scheme, host, port, target)
