"""The takedown list: which images must leave the dataset, and never come in again.

A text file, UTF-8 or UTF-16, one entry a line; empty lines and comments (`#` at the start of a line or after a blank)
are skipped. An entry is one of:

    64 hexadecimal digits       SHA-256 of the stored bytes (the image id) or of the source's file
    16 hexadecimal digits       perceptual hash; with 384 more digits (the 8x8 RGB thumbnail) a match is confirmed on it
    shop:photos/1.jpg           a `source_uri`, as the images table has it
    https://example.org/1.jpg   the address that the image was downloaded from
    source:shop                 all images of a source

Beside it a line may hold the day of the request (YYYY-MM-DD) and a reason code of tasks/reasons.py (`privacy`), after a
comma, a semicolon or a tab; a JSON object a line has them by name: {"sha256": ..., "date": ..., "reason": "privacy"}
(also phash, thumbnail, source_uri, url, source). A first line with the names of columns is skipped. Any other line is
an error that names it: an entry that is not understood must not pass for none.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from tasks.errors import ConfigError
from tasks.fingerprints.list_text import decode_object, decode_text
from tasks.fingerprints.perceptual import hash_hits, thumbnail_distance
from tasks.reasons import WITHDRAWAL_REASONS

Kind = Literal["sha256", "phash", "source_uri", "url", "source"]
DEFAULT_REASON = "request"
NEAR_HITS = 20  # of an entry that are reported, the nearest ones
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{384}|[0-9a-fA-F]{64}|[0-9a-fA-F]{16})(?![0-9A-Za-z])")
_FILE_NAME = re.compile(r"[^\s,;\t]*(?:[/\\][^\s,;\t]*|\.[A-Za-z][A-Za-z0-9]{1,4}(?=[\s,;\t\"']|$))")
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_IN_ADDRESSES = "%/?:@!$&'()*+,;=~[]"
_URI = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*:\S.*")
_DATE = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)")
_NAMES: dict[str, Kind] = {
    "sha256": "sha256",
    "sha-256": "sha256",
    "image_id": "sha256",
    "source_sha256": "sha256",
    "phash": "phash",
    "source_uri": "source_uri",
    "uri": "source_uri",
    "url": "url",
    "source": "source",
}
_OTHER_NAMES = {"thumbnail", "date", "reason", "asked_on", "requested_on", "id", "note", "comment"}


@dataclass(frozen=True)
class Entry:
    """One entry of a list.

    Attributes:
        where: file and line.
        kind: what `value` is.
        value: lower case for hashes.
        thumbnail: 192 bytes that confirm a perceptual hash; None where the line has none.
        spellings: of an address or a source_uri: what it may be, shortest first, where the line goes on after a comma
            (an address: after a blank too); also the whole line, where a source may bear a column's name (`url:1.jpg`).
        date: of the request, ISO; empty where the line states none.
        reason: a code of WITHDRAWAL_REASONS.
    """

    where: str
    kind: Kind
    value: str
    thumbnail: bytes | None = None
    spellings: tuple[str, ...] = ()
    date: str = ""
    reason: str = DEFAULT_REASON

    def to_json(self) -> str:
        """As a line of a list."""
        names = {"where": self.where, self.kind: self.value, "date": self.date, "reason": self.reason}
        more: dict[str, Any] = {"thumbnail": self.thumbnail.hex()} if self.thumbnail else {}
        if self.spellings not in ((), (self.value,)):
            more["spellings"] = list(self.spellings)
        return json.dumps({**names, **more}, ensure_ascii=False)


class Facts(NamedTuple):
    """What a line says beside its entries: the day of the request, ISO or empty, and the reason code."""

    date: str = ""
    reason: str = DEFAULT_REASON


class Limits(NamedTuple):
    """Distances within which a perceptual hash matches: bits and levels of 0..255, as `ingest` has them."""

    confirmed_bits: int
    thumbnail_max: float
    alone_bits: int


class NearHit(NamedTuple):
    """An image that resembles a perceptual hash, yet not enough to be withdrawn without a person."""

    image_id: str
    bits: int


@dataclass
class Matches:
    """What a list names among the stored images.

    Attributes:
        entries: image id -> number of the first entry that names it.
        near: number of an entry -> its near hits, nearest first.
    """

    entries: dict[str, int] = field(default_factory=dict)
    near: dict[int, list[NearHit]] = field(default_factory=dict)


def parse_lines(
    lines: Iterable[str], name: str, parameter: str = "ingest.takedown", *, may_be_empty: bool = False
) -> list[Entry]:
    """The entries of a list.

    Args:
        lines: of the list.
        name: of the list, for `where` and errors.
        parameter: that names the list, for errors.
        may_be_empty: whether a list without an entry is one.
    Raises:
        ConfigError: a line is no entry, or there is none at all.
    """
    entries: list[Entry] = []
    is_first = True
    for number, line in enumerate(lines, 1):
        text = line.strip().lstrip("\ufeff")
        if not text or text.startswith("#"):
            continue
        if is_first and _is_header(text):
            is_first = False
            continue
        is_first = False
        found = _entries_of(text, f"{name}, line {number}", parameter)
        if not found:
            raise ConfigError(
                f"{parameter}: {name}, line {number}: {text[:80]!r} is no entry; expected a SHA-256 (64 hexadecimal "
                "digits), a perceptual hash (16), a source_uri (name:path), an address (https://...) or source:NAME; "
                "write the line so, or put # before what is for people only"
            )
        entries += found
    if not entries and not may_be_empty:
        raise ConfigError(
            f"{parameter}: {name} has no entry; expected at least one line with a SHA-256, a perceptual hash, a "
            "source_uri, an address or source:NAME; leave the parameter out where nothing is to be taken down"
        )
    return entries


def _is_header(text: str) -> bool:
    names = [name.strip().strip('"').lower() for name in re.split(r"[,;\t]", text)]
    return all(name in _NAMES or name in _OTHER_NAMES for name in names)


def _entries_of(text: str, where: str, parameter: str) -> list[Entry]:
    """The entries of one line; none where it is not understood."""
    if text.startswith("{"):
        return _json_entries(text, where, parameter)
    text = _COMMENT.sub("", text).strip()
    plain = re.split(r"[,;\t]", text)[1:]
    dated = next((m[0] for part in plain for m in [_DATE.search(part)] if m), "")
    if not dated and _HEX.match(text) and (day := _DATE.search(text)):
        dated = day[0]
    reason = next((code for part in plain if (code := part.strip().lower()) in WITHDRAWAL_REASONS), DEFAULT_REASON)
    facts = Facts(dated, reason)
    quoted = re.match(r'"((?:[^"]|"")*)"', text)
    whole = quoted[1].replace('""', '"') if quoted else text
    if _ADDRESS.match(whole):
        return [_located("url", whole, where, facts, is_whole=bool(quoted))]
    name, separator, value = whole.partition(":")
    name, separator, value = (name, separator, value) if separator else whole.partition("=")
    key = _NAMES.get(name.strip().lower()) if separator else None
    value = value.strip()
    is_uri = separator == ":" and bool(_URI.match(whole)) and not _HEX.match(whole)
    if key in ("source_uri", "url", "source") and value:
        entry = _located(key, value, where, facts, is_whole=bool(quoted))  # type: ignore[arg-type]
        if key == "source":
            entry = replace(entry, value=re.split(r"[,;\t\s]", value)[0], spellings=())
        if not is_uri:
            return [entry]
        own = _located("source_uri", whole, where, facts, is_whole=bool(quoted))  # of a source that bears that name
        return [replace(entry, spellings=(*entry.spellings, *own.spellings))]
    if is_uri and (key is None or not _HEX.search(value)):
        return [_located("source_uri", whole, where, facts, is_whole=bool(quoted))]
    return _hash_entries(whole.partition("#")[0] if not quoted else whole, where, facts)


def _hash_entries(text: str, where: str, facts: Facts) -> list[Entry]:
    words = [word.lower() for word in _HEX.findall(text)]
    beside = [word.lower() for word in _HEX.findall(_FILE_NAME.sub(" ", text))]  # 0000000000000001.jpg is no hash
    thumbnail = next((bytes.fromhex(word) for word in words if len(word) == 384), None)
    sums = [Entry(where, "sha256", word, None, (), *facts) for word in words if len(word) == 64]
    return sums + [Entry(where, "phash", word, thumbnail, (), *facts) for word in beside if len(word) == 16]


def _located(kind: Kind, text: str, where: str, facts: Facts, *, is_whole: bool) -> Entry:
    """An entry of a source_uri or an address, both of which may hold commas and blanks.

    What follows an address after a blank may be a part of it or a remark: each is one of its spellings.
    """
    breaks = r"[,;\t]|\s+" if kind == "url" else r"[,;\t]|\s+\d{4}-\d{2}-\d{2}"
    ends = [] if is_whole else [m.start() for m in re.finditer(breaks, text)]
    spellings = tuple(dict.fromkeys(text[:end].strip().strip('"') for end in [*ends, len(text)]))
    return Entry(where, kind, spellings[0], None, spellings, *facts)


def _json_entries(text: str, where: str, parameter: str) -> list[Entry]:
    row = decode_object(text, where, parameter)
    if row is None:
        return []
    reason = str(row.get("reason") or DEFAULT_REASON)
    if reason not in WITHDRAWAL_REASONS:
        raise ConfigError(
            f"{parameter}: {where}: reason {reason!r} is unknown; expected one of {sorted(WITHDRAWAL_REASONS)}"
        )
    days = (str(row.get(name) or "") for name in ("date", "asked_on", "requested_on"))
    facts = Facts(next((m[0] for day in days if (m := _DATE.search(day))), ""), reason)
    where = str(row.get("where") or where)
    thumbnail = str(row.get("thumbnail") or "")
    entries: list[Entry] = []
    for name, kind in _NAMES.items():
        value = str(row.get(name) or "").strip()
        if not value:
            continue
        if kind in ("sha256", "phash"):
            digits = {"sha256": 64, "phash": 16}[kind]
            if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", value):
                raise ConfigError(f"{parameter}: {where}: {name} {value[:80]!r}; expected {digits} hexadecimal digits")
            if kind == "phash" and thumbnail and not re.fullmatch(r"[0-9a-fA-F]{384}", thumbnail):
                raise ConfigError(
                    f"{parameter}: {where}: thumbnail {thumbnail[:80]!r}; expected 384 hexadecimal digits, or none"
                )
            confirmed = bytes.fromhex(thumbnail) if kind == "phash" and thumbnail else None
            entries.append(Entry(where, kind, value.lower(), confirmed, (), *facts))
        else:
            spellings = tuple(map(str, row.get("spellings") or (() if kind == "source" else [value])))
            entries.append(Entry(where, kind, value, None, spellings, *facts))
    return entries


def normalize_address(address: str) -> str:
    """An address for comparison: of http or https without scheme and fragment, its host in lower case.

    A blank and other characters that no address may have are percent-encoded, as a client asks for them.
    """
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port not in (None, 80, 443) else "")
    except ValueError:
        return address
    if parts.scheme.lower() not in ("http", "https"):
        return address
    return quote(f"//{host}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else ""), safe=_IN_ADDRESSES)


class TakedownList:
    """The entries of a list, and what they name."""

    def __init__(self, entries: Sequence[Entry], sources: Mapping[str, str] | None = None) -> None:
        """Index the entries.

        Args:
            entries: of one or more lists.
            sources: name of a source -> its path: an address below a bucket's is one of its images.
        """
        self.entries, self.refused = list(entries), Counter[int]()
        self._sources = {name: path.rstrip("/") for name, path in (sources or {}).items() if "://" in path}
        self._sums: dict[str, int] = {}
        self._uris: dict[str, int] = {}
        self._addresses: dict[str, int] = {}
        self._names: dict[str, int] = {}
        for number, entry in enumerate(self.entries):
            if entry.kind == "sha256":
                self._sums.setdefault(entry.value, number)
            elif entry.kind == "source_uri":
                for spelling in entry.spellings:
                    self._uris.setdefault(spelling, number)
            elif entry.kind == "url":
                for spelling in entry.spellings:  # a source_uri among them: open_run's, of an address in a bucket
                    self._addresses.setdefault(normalize_address(spelling), number)
                    self._uris.setdefault(spelling, number)
            elif entry.kind == "source":
                self._names.setdefault(entry.value, number)
                for spelling in (f"source:{entry.value}", *entry.spellings):  # of a source that is called `source`
                    self._uris.setdefault(spelling, number)
        self._hashed = [n for n, entry in enumerate(self.entries) if entry.kind == "phash"]
        self._hashes = np.array([int(self.entries[n].value, 16) for n in self._hashed], np.uint64)

    @property
    def sha256s(self) -> set[str]:
        """The sums that the list names."""
        return set(self._sums)

    @property
    def has_hashes(self) -> bool:
        """Whether any entry is a perceptual hash."""
        return bool(self._hashed)

    def find_exact(self, sha256s: Iterable[str], uri: str) -> int | None:
        """Number of the entry that names an image by a sum, its source_uri, its address or its source."""
        for sha256 in sha256s:
            if (number := self._sums.get(sha256)) is not None:
                return number
        name, _, inside = uri.partition(":")
        if (number := self._uris.get(uri, self._names.get(name))) is not None:
            return number
        if not self._addresses:
            return None
        below = self._sources.get(name)
        addresses = [inside, *([f"{below}/{inside}"] if below else [])]
        return next((n for a in addresses if (n := self._addresses.get(normalize_address(a))) is not None), None)

    def find_alike(self, phash: int, thumbnail: bytes, limits: Limits) -> tuple[int | None, list[tuple[int, int]]]:
        """(entry that an image is a copy of, [(entry that it merely resembles, bits)])."""
        if not self._hashed:
            return None, []
        widest = max(limits.confirmed_bits, limits.alone_bits)
        _, hits = next(hash_hits(np.array([phash], np.uint64), self._hashes, distance_bits=widest))
        near: list[tuple[int, int]] = []
        for row in hits.tolist():
            number = self._hashed[row]
            bits = (int(self._hashes[row]) ^ phash).bit_count()
            if self._is_copy(self.entries[number], bits, thumbnail, limits):
                return number, []
            near.append((number, bits))
        return None, near

    @staticmethod
    def _is_copy(entry: Entry, bits: int, thumbnail: bytes, limits: Limits) -> bool:
        if entry.thumbnail is None:
            return bits <= limits.alone_bits
        if bits > limits.confirmed_bits or not thumbnail:
            return False
        distance = thumbnail_distance(thumbnail, np.frombuffer(entry.thumbnail, np.uint8)[None])[0]
        return float(distance) <= limits.thumbnail_max

    def match(self, rows: Iterable[Mapping[str, Any]], limits: Limits) -> Matches:
        """What the list names among rows of the images table.

        Args:
            rows: with image_id, source_sha256, source_uri, and, where the list has perceptual hashes, phash and
                thumbnail.
            limits: within which a perceptual hash matches.
        """
        matches = Matches()
        near: dict[int, list[NearHit]] = {}
        for row in rows:
            number = self.find_exact((row["image_id"], row["source_sha256"] or ""), row["source_uri"] or "")
            if number is None and self._hashed and row["phash"]:
                number, alike = self.find_alike(int(row["phash"], 16), row["thumbnail"] or b"", limits)
                for entry, bits in alike:
                    near.setdefault(entry, []).append(NearHit(row["image_id"], bits))
            if number is not None:
                matches.entries[row["image_id"]] = number
        for entry, hits in near.items():
            matches.near[entry] = sorted(hits, key=lambda hit: (hit.bits, hit.image_id))[:NEAR_HITS]
        return matches


def read_entries(paths: Iterable[Path], parameter: str, *, may_be_empty: bool = False) -> Iterator[Entry]:
    """The entries of the lists that one parameter names.

    Args:
        paths: of the lists.
        parameter: their name, for errors.
        may_be_empty: as of `parse_lines`.

    Raises:
        ConfigError: a list cannot be read, has a line that is no entry, or no entry at all.
    """
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{parameter}: {path} cannot be read ({error.strerror}); give the list's path, or leave it out"
            ) from error
        lines = decode_text(content, path.name, parameter)
        yield from parse_lines(lines, path.name, parameter, may_be_empty=may_be_empty)
