"""Lanes: how a batch's files are divided over parts, so that every host belongs to one part.

A file's lane is decided by the file and its place in the listing alone, so a batch may be fetched by 1 to LANES parts,
in any order and by another number of parts after a crash: what is stored belongs to lanes, not to parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from tasks.sources.files import SourceFile

LANES = 64  # also the most parts
RUN_FILES = 64  # adjacent files without a host that share a lane


@dataclass(frozen=True)
class PlacedFile:
    """A file with its place.

    Attributes:
        file: as its source listed it.
        lane: 0 to LANES - 1.
        number: of the file in its lane, from 0.
        position: of the file in the listing, from 0.
    """

    file: SourceFile
    lane: int
    number: int
    position: int


def host_of(uri: str) -> str | None:
    """The host of a URL in a source_uri, in lower case; None where it names none."""
    address = uri.partition(":")[2]
    if "://" not in address:
        return None
    try:
        return urlsplit(address).hostname or address
    except ValueError:  # not a URL: refused when it is fetched, by whichever part
        return address


def lane_of(file: SourceFile, position: int) -> int:
    """The lane of a file: by a hash of its host, else by its place in the listing."""
    host = host_of(file.uri) if file.is_remote else None
    if host is None:
        return position // RUN_FILES % LANES
    return int.from_bytes(hashlib.blake2b(host.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") % LANES


def place(files: Iterable[SourceFile]) -> Iterator[PlacedFile]:
    """Each file of a listing with its place."""
    counts = [0] * LANES
    for position, file in enumerate(files):
        lane = lane_of(file, position)
        yield PlacedFile(file, lane, counts[lane], position)
        counts[lane] += 1


def lanes_of_part(part: tuple[int, int] | None) -> list[int]:
    """The lanes of the i-th of n parts, 1-based; all for None."""
    return [lane for lane in range(LANES) if part is None or lane % part[1] == part[0] - 1]
