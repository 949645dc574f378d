"""What every source offers: files with a name, a change marker, a label and a way to read them, or a reason why not."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self

CAPTION_CHARS = 2_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")  # of names that claim to be an image

# Why a source does not hand a file over; closed. ingest counts them among its own reasons.
REASONS = (
    "not_a_picture",  # no regular file, or a kind of file that nobody decodes
    "too_large",  # more bytes than the limit
    "unreachable",  # not there, not readable, or not within the time; tried again by a later batch unless `is_lasting`
    "unsafe",  # a private address, a hostile name, a link or a device: never followed
    "opted_out",  # robots.txt, X-Robots-Tag or a page's meta tag says no
    "changed",  # not the bytes whose sha256 the source's table states
)


class Refused(Exception):
    """A file that its source does not hand over.

    Attributes:
        reason: one of REASONS.
        detail: a sentence for a person; it may quote the source, so it is escaped wherever it is shown.
        is_lasting: False when a later batch should try again though the file's fingerprint is the same.
        robots: what the site says about machine readers, see `Content.robots`.
    """

    def __init__(self, reason: str, detail: str = "", *, is_lasting: bool = True, robots: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"'{reason}' is none of {REASONS}")
        super().__init__(reason, detail)
        self.reason, self.detail, self.is_lasting, self.robots = (
            reason,
            cleaned_text(detail, 300) or "",
            is_lasting,
            robots,
        )

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Content(bytes):
    """A file's bytes, with what its site says about machine readers.

    Attributes:
        robots: '' where nobody was asked (folders, buckets, tars); else 'allowed' (a robots.txt allows it), 'absent'
            (no robots.txt),
            'ignored' (the source's setting), 'disallowed', 'header:<directive>' or 'meta:<directive>'.
    """

    robots: str = ""

    @classmethod
    def of(cls, content: bytes, robots: str = "") -> Self:
        """These bytes with that state."""
        made = cls(content)
        made.robots = robots
        return made


@dataclass(frozen=True)
class Label:
    """A row of the source's table, cleaned; None where the source says nothing."""

    caption: str | None = None
    license_code: str | None = None
    attribution: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """A file that a source offers.

    Attributes:
        uri: `<source name>:<path inside the source>`, for tables of addresses `<source name>:<URL>`; never the
            machine's own path.
        fingerprint: changes when the bytes do, and costs no read: an ETag, a tar's own hash with the member's number, a
            URL. Empty where
            nothing so cheap is the same on every machine (files of a folder: a time of change is not): then compare
            `sha256()`.
        label: what the source's table says about it.
        license_code, attribution: the label's, else the source's default.
        is_remote: reading waits for a network: many at a time in threads. Always of the process that listed, for hosts
            have limits.
    """

    uri: str
    fingerprint: str
    label: Label
    license_code: str
    attribution: str
    is_remote: bool = False
    reader: Callable[[int], bytes] = field(default=lambda _: b"", repr=False, compare=False)
    pieces: Callable[[], Iterator[bytes]] | None = field(default=None, repr=False, compare=False)

    def read(self, limit_bytes: int) -> Content:
        """The bytes, never more than the limit.

        Raises:
            Refused: they cannot be had, or are more.
            TransientError: the store behind it fails; the stage is to be run again.
        """
        content = self.reader(limit_bytes)
        if len(content) > limit_bytes:
            raise Refused("too_large", f"{len(content)} bytes, at most {limit_bytes}")
        return content if isinstance(content, Content) else Content(content)

    def sha256(self) -> str:
        """sha256 of all bytes of a local file, read in pieces; of nothing where it cannot be read or is not local."""
        digest = hashlib.sha256()
        if self.pieces is not None:
            try:
                for piece in self.pieces():
                    digest.update(piece)
            except (OSError, Refused):
                return hashlib.sha256().hexdigest()
        return digest.hexdigest()

    @property
    def is_named_image(self) -> bool:
        """Its name says that it is an image: then bytes of no known format are damage, not a stray file. All URLs are
        such.
        """
        return self.uri.lower().endswith(SUFFIXES) or "://" in self.uri

    def refused(self, reason: str, detail: str, *, is_lasting: bool = True) -> SourceFile:
        """The same file, but reading it raises this."""

        def refuse(_: int) -> bytes:
            raise Refused(reason, detail, is_lasting=is_lasting)

        return replace(self, reader=refuse, pieces=None)


def cleaned_text(text: object, max_chars: int = CAPTION_CHARS) -> str | None:
    """One line of text without control characters, writing-direction marks or lone surrogates; None when nothing is
    left.

    Args:
        text: a caption as a source gives it.
        max_chars: longest result, characters.
    """
    if not isinstance(text, str):
        return None
    text = text[: 16 * max_chars]
    if text.isascii() and text.isprintable():  # most of a million captions
        return " ".join(text.split())[:max_chars].strip() or None
    kept = []
    for char in unicodedata.normalize("NFC", text):
        category = unicodedata.category(char)
        if category == "Cc" or category.startswith("Z"):
            kept.append(" ")
        # joiners shape letters and emoji
        elif category in ("Cs", "Co", "Cn") or (category == "Cf" and char not in "\u200c\u200d"):
            continue
        else:
            kept.append(char)
    return " ".join("".join(kept).split())[:max_chars].strip() or None
