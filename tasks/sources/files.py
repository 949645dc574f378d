"""What every image source offers: files with a name, a change fingerprint, metadata and a way to read their bytes.

A source module lists its files as `SourceFile` objects. Reading one returns its bytes or raises `FileRejected` with one
of REASONS. `make_source_file` applies the defaults that a source has for licence and attribution.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from tasks.config import SourceConfig
from tasks.sources.licences import normalize_license

CAPTION_CHARS = 2_000
URI_CHARS = 2_000
USERINFO = re.compile(r"(?<=://)[^/\s?#]*@")  # a user and a password in a URL
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif")  # of names that claim to be an image
# What macOS, Windows and network storages leave among files; names are compared without case.
LITTER_NAMES = (".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".localized", ".apdisk")
LITTER_FOLDERS = frozenset(
    ("__macosx", ".spotlight-v100", ".trashes", ".fseventsd", ".appledouble", "@eadir", "$recycle.bin")
)

# Why a source does not deliver a file; closed list. Ingest counts them among its own drop reasons.
REASONS = (
    "not_a_picture",  # not a regular file, or a file type that is not decoded
    "too_large",  # more bytes than the limit
    "unreachable",  # missing, unreadable or timed out; a later batch tries again unless `is_lasting`
    "unsafe",  # a private address, a hostile name, a link or a device: never followed
    "opted_out",  # robots.txt, X-Robots-Tag or a page's meta tag disallows it
    "changed",  # the bytes do not have the sha256 that the source's table states
)


class FileRejected(Exception):
    """A file that its source does not deliver.

    Attributes:
        reason: one of REASONS.
        detail: one sentence for a person; it may quote the source, so it must be escaped wherever it is displayed.
        is_lasting: False when a later batch should try again although the file's fingerprint is unchanged.
        robots: the site's robots state, see `Content.robots`.
    """

    def __init__(self, reason: str, detail: str = "", *, is_lasting: bool = True, robots: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"reason '{reason}' is unknown; expected one of {REASONS}")
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = clean_text(detail, 300) or ""
        self.is_lasting = is_lasting
        self.robots = robots

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Content(bytes):
    """A file's bytes with the robots state of its site.

    Attributes:
        robots: '' for sources without robots rules (folders, buckets, tars); else 'allowed' (robots.txt allows the
            URL), 'absent' (no robots.txt), 'ignored' (the source's setting), 'disallowed', 'header:<directive>' or
            'meta:<directive>'.
    """

    robots: str = ""

    @classmethod
    def with_robots(cls, content: bytes, robots: str) -> Self:
        """These bytes with that robots state."""
        instance = cls(content)
        instance.robots = robots
        return instance


@dataclass(frozen=True)
class Metadata:
    """What the source's table states about a file, as cleaned text; None where it states nothing.

    Attributes:
        caption: one line of text.
        license_code: the SPDX identifier of the licence, where it has one.
        attribution: whom to name.
        license_stated: the licence as the source spells it.
    """

    caption: str | None = None
    license_code: str | None = None
    attribution: str | None = None
    license_stated: str | None = None


def _no_bytes(limit_bytes: int) -> bytes:
    """The reader of a file that has none yet."""
    return b""


def _reject(reason: str, detail: str, is_lasting: bool, limit_bytes: int) -> bytes:
    """The reader of a file that its source does not deliver."""
    raise FileRejected(reason, detail, is_lasting=is_lasting)


@dataclass(frozen=True)
class SourceFile:
    """A file that a source offers.

    Attributes:
        uri: `<source name>:<path inside the source>`, for URL tables `<source name>:<URL>`; never a path of this
            machine.
        fingerprint: changes when the bytes do, and costs no read: an ETag, a tar's hash with the member's number, a
            URL. Empty where nothing so cheap is the same on every machine (files of a folder: a modification time is
            not): then compare `sha256()`.
        metadata: what the source's table states about it.
        license_code, attribution: the table's values, else the source's defaults.
        is_rejected: reading raises FileRejected, as its listing has decided.
        claims_image: whether it counts as an image whatever its name is.
        is_remote: reading waits for the network, so many are read at a time, in threads. All of them run in the process
            that listed the files, because request limits per host hold within one process.
        reader: (limit in bytes) -> the bytes; picklable, since another process may read the file that this one listed
            (tasks/ingest/staging.py); may return one byte more than the limit, which `read` refuses.
        open_chunks: the bytes in chunks, for hashing local files without loading them; None for other files.
    """

    uri: str
    fingerprint: str
    metadata: Metadata
    license_code: str
    attribution: str
    is_remote: bool = False
    is_rejected: bool = False
    claims_image: bool = False
    reader: Callable[[int], bytes] = field(default=_no_bytes, repr=False, compare=False)
    open_chunks: Callable[[], Iterator[bytes]] | None = field(default=None, repr=False, compare=False)

    def read(self, limit_bytes: int) -> Content:
        """The bytes, never more than the limit.

        Raises:
            FileRejected: they are unavailable, or more than the limit.
            TransientError: the storage behind it fails; the stage must be run again.
        """
        content = self.reader(limit_bytes)
        if len(content) > limit_bytes:
            raise FileRejected("too_large", f"{len(content)} bytes, at most {limit_bytes}")
        return content if isinstance(content, Content) else Content(content)

    def sha256(self) -> str:
        """sha256 (hex) of a local file, read in chunks; of no bytes where it is unreadable or not local."""
        digest = hashlib.sha256()
        if self.open_chunks is not None:
            try:
                for chunk in self.open_chunks():
                    digest.update(chunk)
            except (OSError, FileRejected):
                return hashlib.sha256().hexdigest()
        return digest.hexdigest()

    @property
    def is_named_image(self) -> bool:
        """Whether its name claims an image, so that bytes of an unknown format count as damaged; true for all URLs."""
        return self.claims_image or self.uri.lower().endswith(SUFFIXES) or "://" in self.uri

    @property
    def is_litter(self) -> bool:
        """Whether an operating system left it: no image, and part of no sample."""
        return is_litter(self.uri.partition(":")[2])

    def rejected(self, reason: str, detail: str, *, is_lasting: bool = True) -> SourceFile:
        """The same file, but reading it raises FileRejected with this reason."""
        reader = partial(_reject, reason, detail, is_lasting)
        return replace(self, reader=reader, open_chunks=None, is_rejected=True)

    def with_metadata(self, metadata: Metadata, source: SourceConfig) -> SourceFile:
        """The same file with other metadata; the source's defaults apply where it states nothing."""
        return replace(
            self,
            metadata=metadata,
            license_code=metadata.license_code or normalize_license(source.license_code),
            attribution=metadata.attribution or source.attribution,
        )


def is_litter(path: str) -> bool:
    """Whether macOS, Windows or a network storage left a file of this path: `._x.jpg`, `__MACOSX/`, `Thumbs.db` ..."""
    *folders, name = path.replace("\\", "/").casefold().split("/")
    return name.startswith("._") or name in LITTER_NAMES or not LITTER_FOLDERS.isdisjoint(folders)


def count_litter(uris: Iterable[str]) -> int:
    """How many of these files an operating system left: they are part of no share."""
    return sum(is_litter(uri.partition(":")[2]) for uri in uris)


def make_source_file(
    source: SourceConfig, path_inside: str, fingerprint: str, metadata: Metadata, **attributes: Any
) -> SourceFile:
    """A file of a source with the source's defaults applied.

    Args:
        source: where the file is listed.
        path_inside: its path (or URL) inside the source.
        fingerprint: of its bytes, '' for none; it is bound to the name, since the same bytes under a new name are a new
            file.
        metadata: what the source's table states about it.
        attributes: others of `SourceFile`, e.g. its reader; `own_fingerprint` stands for one that is taken as it is.
    """
    # a user and a password in a URL of somebody's table (such a file is refused) would be published with its row
    uri = f"{source.name}:{escape_name(USERINFO.sub('', path_inside) if '@' in path_inside else path_inside)}"
    bound = bind_fingerprint(fingerprint, uri) if fingerprint else ""
    license_code = metadata.license_code or normalize_license(source.license_code)
    attribution = metadata.attribution or source.attribution
    return SourceFile(uri, attributes.pop("own_fingerprint", bound), metadata, license_code, attribution, **attributes)


def bind_fingerprint(fingerprint: str, uri: str) -> str:
    """A fingerprint that is unique to this name: the same bytes under another URI have another one."""
    return f"{fingerprint}/{hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()}"


def escape_name(name: str) -> str:
    """A name as one printable line: control, bidirectional and lone surrogate characters become escape sequences.

    A name longer than URI_CHARS is cut and gets its hash appended. Different names stay different.
    """
    if len(name) <= URI_CHARS and name.isprintable() and "\\" not in name:
        return name
    escaped = "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name[:URI_CHARS]
    )
    if len(name) <= URI_CHARS:
        return escaped
    return f"{escaped}...{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def clean_text(text: object, max_chars: int = CAPTION_CHARS) -> str | None:
    """One line of text without control characters, bidirectional marks or lone surrogates; None when nothing is left.

    Args:
        text: a caption as a source gives it; anything but a string gives None.
        max_chars: longest result, characters.
    """
    if not isinstance(text, str):
        return None
    text = text[: 16 * max_chars]
    if text.isascii() and text.isprintable():  # fast path: most captions
        return " ".join(text.split())[:max_chars].strip() or None
    chars = []
    for char in unicodedata.normalize("NFC", text):
        category = unicodedata.category(char)
        if category == "Cc" or category.startswith("Z"):
            chars.append(" ")
        # zero-width joiners shape letters and emoji: they stay
        elif category in ("Cs", "Co", "Cn") or (category == "Cf" and char not in "\u200c\u200d"):
            continue
        else:
            chars.append(char)
    return " ".join("".join(chars).split())[:max_chars].strip() or None
