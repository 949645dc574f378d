"""Columns of a source's own table, found by their usual names, and their values as cleaned text.

Names are compared without case, blanks around them, and with '-' and ' ' as '_'. Where a row states nothing in the best
column of a field, the next known one of the table counts; `columns` of the source names exactly one. A column may hold
text, a list (its first text counts), a struct (its caption counts), or bytes in UTF-8. Texts that stand for nothing
(NOTHING) are nothing. Entities of HTML are decoded once.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.sources.files import Metadata, clean_text
from tasks.sources.licences import normalize_license

# Field -> usual column names, best first; the source's `columns` overrides them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file_name", "filename", "file_path", "filepath", "image_path", "image_name", "image"),
    "url": ("url", "image_url", "img_url", "image_link", "content_url", "image", "img"),
    "image": ("image", "img", "picture", "image_bytes", "jpg", "jpeg", "png", "webp"),
    "caption": (
        "caption",
        "captions",
        "re_caption",
        "text",
        "texts",
        "alt_text",
        "alt",
        "title",
        "description",
        "comment",
        "prompt",
    ),
    "license": ("licence", "license", "license_code"),
    "attribution": ("source", "attribution", "author", "credit"),
    "sha256": ("sha256",),
}
IMAGE_LISTS = ("images", "image", "jpg", "png")  # columns that may hold several images a row, which are refused
NOTHING = ("", "?", "-", "nan", "none", "null", "n/a", "<na>", "#n/a", "nat", "undefined")  # casefolded
_ENTITY = re.compile(r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SCHEME = re.compile(r"\s*(https?|s3|ftp)://", re.IGNORECASE)


class UnreadableText(ValueError):
    """A caption whose bytes are no UTF-8."""


def plain_name(name: object) -> str:
    """A column's name as it is compared: 'Image URL ' and 'image_url' are one."""
    return re.sub(r"[\s-]+", "_", str(name).strip("\ufeff \t\r\n\"'").casefold())


def looks_like_url(text: object) -> bool:
    """Whether a text begins as an address does."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


@dataclass(frozen=True)
class TableFormat:
    """How the rows of one table are found.

    Attributes:
        source: its `columns` override the usual column names.
        keys: fields of which the table must have one, e.g. ('image', 'url').
        name: what error messages call the table.
    """

    source: SourceConfig
    keys: tuple[str, ...]
    name: str
    _found: dict[tuple[str, ...], dict[str, list[str]]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def positions(self) -> dict[str, int]:
        """Field -> position of its column, counted from 0, where `columns` names columns by position."""
        return {
            name: int(column)
            for name, column in self.source.columns.items()
            if isinstance(column, int) or column.isdecimal()
        }

    def find_columns(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Field of COLUMNS -> names of its columns in a table with these column names, best first."""
        signature = tuple(names)
        if signature not in self._found:
            if len(self._found) > 1_000:  # of JSON lines that differ in their keys
                self._found.clear()
            self._found[signature] = self._find(names)
        return self._found[signature]

    def _find(self, names: Sequence[str]) -> dict[str, list[str]]:
        by_plain_name: dict[str, str] = {}
        for name in names:
            by_plain_name.setdefault(plain_name(name), name)
        columns: dict[str, list[str]] = {}
        for field_name, usual in COLUMNS.items():
            configured = self.source.columns.get(field_name)  # type: ignore[call-overload]
            if configured is not None:
                wanted = str(configured)
                found = [wanted] if wanted in names else [by_plain_name.get(plain_name(wanted), "")]
            else:
                found = [by_plain_name[name] for name in usual if name in by_plain_name]
            if any(found):
                columns[field_name] = found
        return columns

    def check(self, columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
        """Refuse a table without a column that it must have.

        Raises:
            DataError: a column that the source names, or all of `keys`, are missing.
        """
        for field_name, configured in self.source.columns.items():
            if field_name not in columns and (field_name in self.keys or field_name not in ("path", "url", "image")):
                raise DataError(
                    f"{self.name}: column '{configured}' is missing, found {list(names)}; "
                    f"correct ingest.sources '{self.source.name}' columns.{field_name}"
                )
        if not any(key in columns for key in self.keys):
            key = self.keys[-1]
            raise DataError(
                f"{self.name}: column '{key}' is missing, found {list(names)}; "
                f"expected {key}, caption, licence, source; rename it, or set columns.{key} of the source"
                f"{self._suggest_positions(names)}"
            )

    def _suggest_positions(self, names: Sequence[str]) -> str:
        """The `columns` of a table whose first line is a row already; '' for other tables."""
        at = next((number for number, name in enumerate(names) if looks_like_url(name)), None)
        if at is None:
            return ""
        caption = next((number for number in range(len(names)) if number != at), None)
        positions = {"url": at} if caption is None else {"url": at, "caption": caption}
        return f"; without a header, name columns by position: columns: {json.dumps(positions)}"

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Field of COLUMNS -> the first value that a row states for it; None for none.

        Raises:
            UnreadableText: bytes that are no UTF-8.
        """
        return {
            name: first_stated(name, (row.get(column) for column in columns))
            for name, columns in self.find_columns(list(row)).items()
        }


def first_stated(field_name: str, values: Iterable[object]) -> Any:
    """The first value that states something: bytes or a struct with bytes for `image`, else text."""
    for value in values:
        if field_name == "image":
            stated: Any = image_bytes(value)
        elif field_name in ("url", "path", "sha256") and isinstance(value, Mapping | list | bytes):
            continue  # an image column of this name
        else:
            stated = state_text(value, numbers=field_name not in ("caption", "url"))
        if stated is not None:
            return stated
    return None


def image_bytes(value: object) -> bytes | None:
    """The bytes of an image column's value: bytes, or Hugging Face's struct of `bytes` and `path`."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def state_text(value: object, *, numbers: bool = True) -> str | None:
    """What a value states as text; None for nothing.

    Args:
        value: a text, bytes, a list or a struct of them.
        numbers: whether a number is text.
    Raises:
        UnreadableText: bytes that are no UTF-8.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UnreadableText(f"bytes that are no UTF-8: {error.reason}") from error
    if isinstance(value, str):
        return None if value.strip().casefold() in NOTHING else value
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return None if not numbers or isinstance(value, float) and not math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        by_plain_name = {plain_name(name): item for name, item in value.items()}
        known = [by_plain_name[name] for name in COLUMNS["caption"] if name in by_plain_name]
        return first_stated("caption", known or list(value.values()))
    if isinstance(value, Sequence):
        return next((text for item in value if (text := state_text(item, numbers=numbers)) is not None), None)
    return None


def decode_entities(text: str) -> str:
    """Entities of HTML with their semicolon, decoded once; those of no character stay."""

    def decode(match: re.Match[str]) -> str:
        decoded = html.unescape(match[0])
        return match[0] if "\ufffd" in decoded or not decoded.strip("\0") else decoded

    return _ENTITY.sub(decode, text) if "&" in text else text


def parse_metadata(row: Mapping[str, Any]) -> Metadata:
    """A row's caption, licence and attribution as cleaned text; the licence also as it is spelled."""
    caption, stated, attribution = (
        clean_text(decode_entities(text)[: 16 * limit], limit) if text else None
        for text, limit in (
            (state_text(row.get("caption"), numbers=False), 2_000),
            (state_text(row.get("license")), 200),
            (state_text(row.get("attribution")), 500),
        )
    )
    return Metadata(caption, normalize_license(stated) if stated else None, attribution, stated)
