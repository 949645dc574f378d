"""What a JPEG's markers say, without decoding: stray bytes between its headers, and scans that never came.

libjpeg skips bytes that belong to no segment, and fills with grey what a missing scan would have refined; it prints the
first of its warnings only, so that one about a stray byte hides one about a missing pixel. Format: ITU-T T.81, annexes
B and G.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SOI, EOI, SOS, PIXELS = 0xD8, 0xD9, 0xDA, 0x00
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # TEM and RST0 to RST7 have no length
END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # the first marker behind a scan's pixels
MARKER = re.compile(rb"\xff+[^\x00\xff]")
COEFFICIENTS = 64  # of a block


@dataclass(frozen=True)
class _Segment:
    """One piece of a JPEG that belongs to it.

    Attributes:
        marker: its second byte; PIXELS for a scan's pixels, which follow its header without one.
        start, end: in the file, the marker included.
        body: the header's body, without its length.
    """

    marker: int
    start: int
    end: int
    body: bytes


def _segments(content: bytes) -> Iterator[_Segment]:
    """The segments of a JPEG up to its end marker; what lies between them belongs to none. Ends early where cut."""
    at = 0
    while found := MARKER.search(content, at):
        marker, start, at = content[found.end() - 1], found.end() - 2, found.end()
        if marker in STANDALONE:
            continue
        if marker in (SOI, EOI):
            yield _Segment(marker, start, at, b"")
            if marker == EOI:
                return
            continue
        size = int.from_bytes(content[at : at + 2], "big")
        body, at = content[at + 2 : at + size], at + max(2, size)
        yield _Segment(marker, start, min(at, len(content)), body)
        if marker == SOS:
            start, behind = at, END_OF_SCAN.search(content, at)
            at = behind.start() if behind else len(content)
            yield _Segment(PIXELS, start, at, b"")


def without_stray_bytes(content: bytes) -> bytes:
    """The same JPEG without what lies between its segments; pixels are never touched."""
    return b"".join(content[segment.start : segment.end] for segment in _segments(content))


@dataclass
class _Scans:
    """Which bits of which coefficients the scans have brought so far.

    Attributes:
        components: ids in the frame header.
        is_progressive: as the frame header says.
        missing_bits: component -> for each coefficient how many of its lowest bits are missing; None: all.
    """

    components: tuple[int, ...]
    is_progressive: bool
    missing_bits: dict[int, list[int | None]] = field(default_factory=dict)

    def add(self, body: bytes) -> None:
        """Count one scan by its header's body; a malformed one counts as none."""
        count = body[0] if body else 0
        if len(body) < 4 + 2 * count:
            return
        first, last, low = body[1 + 2 * count], body[2 + 2 * count], body[3 + 2 * count] & 15
        if not self.is_progressive:
            first, last, low = 0, COEFFICIENTS - 1, 0
        for number in range(count):
            bits = self.missing_bits.setdefault(body[1 + 2 * number], [None] * COEFFICIENTS)
            bits[first : last + 1] = [low] * max(0, min(last, COEFFICIENTS - 1) + 1 - first)

    def missing(self) -> str | None:
        """What has not come, as a sentence; None where every bit of every coefficient has."""
        for number, component in enumerate(self.components, start=1):
            bits = self.missing_bits.get(component)
            if bits is None:
                return f"no scan holds component {number} of {len(self.components)}"
            if any(missing != 0 for missing in bits):
                detail = sum(missing != 0 for missing in bits)
                return f"{detail} of {COEFFICIENTS} coefficients of component {number} never came in full"
        return None


def missing_scans(content: bytes) -> str | None:
    """Which part of the image no scan of a JPEG brings, as a sentence; None where the scans are complete."""
    scans: _Scans | None = None
    for segment in _segments(content):
        if segment.marker in FRAMES and len(segment.body) >= 6:
            count = segment.body[5]
            ids = tuple(segment.body[6 + 3 * number] for number in range(min(count, (len(segment.body) - 6) // 3)))
            scans = _Scans(ids, segment.marker in PROGRESSIVE)
        elif segment.marker == SOS and scans:
            if not scans.is_progressive and segment.body[:1] == bytes([len(scans.components)]):
                return None  # one scan of all: nearly every file; its pixels need not be walked through
            scans.add(segment.body)
    return scans.missing() if scans else None
