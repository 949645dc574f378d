"""Lists of images that must not be taken in: blocklists and benchmark hashes. One reader for both.

A list is a text file of any form (plain lines, CSV, JSONL). Only its hexadecimal words count; all other text is for
people, and a `#` starts a comment:

    64 digits    sha256 of a file as the source has it, or of the stored bytes
    16 digits    perceptual hash (column phash of the images table): refuses everything within the list's distance, bits
    384 digits   8x8 RGB thumbnail (column thumbnail, in hex) of the same line's perceptual hash: a match of the hash
                 must then be confirmed on it

`python -m tasks decontaminate build FOLDER --out FILE` writes such a list with all three for each image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks.errors import ConfigError
from tasks.fingerprints.list_text import utf16_encoding
from tasks.fingerprints.perceptual import hash_hits, thumbnail_distance

HEX_WORD = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{384}|[0-9a-fA-F]{64}|[0-9a-fA-F]{16})(?![0-9A-Za-z])")


@dataclass
class HashList:
    """The entries of one or more lists that refuse images for the same reason.

    Attributes:
        reason: drop reason of the rows that the list refuses.
        sha256s: lower case.
        hashes, thumbnails: of equal length; the thumbnail is None where a line has a perceptual hash alone.
    """

    reason: str
    sha256s: set[str] = field(default_factory=set)
    hashes: list[int] = field(default_factory=list)
    thumbnails: list[bytes | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._hash_array = np.array(self.hashes, np.uint64)

    def add_lines(self, lines: Iterable[str]) -> None:
        """Add the entries of a list's lines."""
        for line in lines:
            words = [w.lower() for w in HEX_WORD.findall(line.partition("#")[0])]
            self.sha256s.update(w for w in words if len(w) == 64)
            thumbnails = [bytes.fromhex(w) for w in words if len(w) == 384]
            for word in words:
                if len(word) == 16:
                    self.hashes.append(int(word, 16))
                    self.thumbnails.append(thumbnails[0] if thumbnails else None)
        self._hash_array = np.array(self.hashes, np.uint64)

    def find_match(
        self,
        sha256s: Iterable[str],
        phash: int,
        thumbnail: bytes,
        *,
        confirmed_bits: int,
        thumbnail_max: float,
        alone_bits: int,
    ) -> str | None:
        """The first entry that refuses an image, in words; None when there is none.

        Args:
            sha256s: of its source bytes and of its stored bytes.
            phash, thumbnail: of the image.
            confirmed_bits, thumbnail_max: distances for entries with a thumbnail, bits and levels of 0..255.
            alone_bits: distance for entries without one, bits.
        """
        if exact := next((s for s in sha256s if s in self.sha256s), None):
            return f"sha256 {exact}"
        if not self.hashes:
            return None
        _, hits = next(
            hash_hits(np.array([phash], np.uint64), self._hash_array, distance_bits=max(confirmed_bits, alone_bits))
        )
        for row in hits.tolist():
            entry, bits = self.thumbnails[row], (self.hashes[row] ^ phash).bit_count()
            if entry is None and bits <= alone_bits:
                return f"phash {self.hashes[row]:016x}, {bits} bits away"
            if entry is not None and bits <= confirmed_bits:
                distance = float(thumbnail_distance(thumbnail, np.frombuffer(entry, np.uint8)[None])[0])
                if distance <= thumbnail_max:
                    return f"phash {self.hashes[row]:016x}, {bits} bits and {distance:.1f} levels away"
        return None


def read_lists(reason: str, parameter: str, paths: Iterable[Path]) -> HashList:
    """Read the lists that one parameter names.

    Args:
        reason: drop reason of the images that they refuse.
        parameter: its name, for the error.
        paths: of the lists.
    Raises:
        ConfigError: a list cannot be read, or has lines and no entry; it must not pass for an empty one.
    """
    entries = HashList(reason)
    for path in paths:
        try:
            lines = decode_loosely(path.read_bytes()).splitlines()
        except OSError as error:
            raise ConfigError(
                f"{parameter}: {path} cannot be read ({error.strerror}); give the list's path, or leave it out"
            ) from error
        own = HashList(reason)
        own.add_lines(lines)
        if not own.sha256s and not own.hashes and any(line.partition("#")[0].strip() for line in lines):
            raise ConfigError(
                f"{parameter}: {path} has no entry; expected SHA-256 sums (64 hexadecimal digits) or perceptual hashes "
                "(16) in UTF-8 or UTF-16; write them so, or put # before what is for people only"
            )
        entries.add_lines(lines)
    return entries


def decode_loosely(content: bytes) -> str:
    """A list's text, UTF-8 or UTF-16; other bytes are replaced, for only the hexadecimal words count."""
    encoding = utf16_encoding(content) or "utf-8-sig"
    return content.decode(encoding, errors="replace")
