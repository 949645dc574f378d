"""Texts that lie beside images and caption them: x.txt, x.json or x.caption of x.jpg, in tars, folders and buckets.

Which texts belong to an image, best first:

1. those of its own name without the suffix, or with it: x.txt, x.jpg.txt of x.jpg (dots within a name are its own);
2. of x.seg.png, where there is none of those: x.txt, by WebDataset's key (the name up to its first dot);
3. of x.jpg: x.<anything>.txt, names of caption columns first (x.caption.txt); never one that is an image's own;
4. the one text whose name differs by case or Unicode form alone.

A .txt that holds an address is no caption. Of several, the first that states something counts, for caption, licence and
attribution each; .txt before .json.
"""

from __future__ import annotations

import json
import posixpath
import sqlite3
import unicodedata
from dataclasses import dataclass
from typing import Any

from tasks.config import SourceConfig
from tasks.sources.columns import COLUMNS, TableFormat, UnreadableText, looks_like_url, parse_metadata
from tasks.sources.counts import ListingCounts
from tasks.sources.files import Metadata
from tasks.sources.lines import decode_text

CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # best first
MAX_CAPTION_BYTES = 1 << 20


def is_caption_name(name: str) -> bool:
    """Whether a name is that of a text which may caption an image."""
    return name.lower().endswith(CAPTION_SUFFIXES)


def webdataset_key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def stem(name: str) -> str:
    """A path without its last suffix."""
    return posixpath.splitext(name)[0]


def fold(name: str) -> str:
    """A name as file systems without case and Unicode forms compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def parse_caption(suffix: str, content: bytes, table: TableFormat) -> dict[str, Any]:
    """Fields of COLUMNS that a text states; none of a .json that is no object.

    Args:
        suffix: of its name, in lower case.
        content: of the file.
        table: how the columns of a .json are found.
    Raises:
        UnicodeDecodeError, UnreadableText: its bytes are of another encoding.
    """
    text = decode_text(content, table.source.encoding)
    if suffix != ".json":
        return {"caption": text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(values, list):
        values = {"caption": values}
    return table.values(values) if isinstance(values, dict) else {}


def _to_blob(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class _Text:
    """A text beside images."""

    number: int
    metadata: Metadata
    suffix: str
    stem: str


class Sidecars:
    """The texts and the names of the images of one tar or one folder, on disk.

    Args:
        source: whose columns name what a .json states.
        counts: where captions are counted.
        where: before a text's name in what is told of it.
    """

    def __init__(self, source: SourceConfig, counts: ListingCounts, where: str = "") -> None:
        self._counts, self._where = counts, where
        self._table = TableFormat(source, ("caption",), where)
        self._rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)  # '': a temporary file
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE images (stem BLOB PRIMARY KEY) WITHOUT ROWID")
        self._rows.execute(
            "CREATE TABLE texts (number INTEGER PRIMARY KEY, name BLOB, stem BLOB, key BLOB, folded BLOB, suffix TEXT, "
            "caption TEXT, license TEXT, attribution TEXT, license_stated TEXT, is_used INTEGER DEFAULT 0)"
        )
        for column in ("stem", "key", "folded"):
            self._rows.execute(f"CREATE INDEX texts_{column} ON texts ({column})")
        self._rows.execute("BEGIN")
        self.count = 0

    def add_image(self, name: str) -> None:
        """Add an image's name, of which `find` may be asked later."""
        self._rows.execute("INSERT OR IGNORE INTO images VALUES (?)", (_to_blob(stem(name)),))

    def add_text(self, name: str, content: bytes) -> None:
        """Add a text; one that cannot be read is told."""
        suffix = posixpath.splitext(name)[1].lower()
        try:
            metadata = parse_metadata(parse_caption(suffix, content[:MAX_CAPTION_BYTES], self._table))
        except (UnicodeDecodeError, UnreadableText):
            self._counts.note(
                f"{self._where}{name}: its bytes are not UTF-8; mend it, or set 'encoding' of the source, e.g. cp1252"
            )
            return
        if suffix != ".json" and looks_like_url(metadata.caption):
            return  # an address is no caption
        self.count += 1
        self._counts.read += metadata.caption is not None
        self._rows.execute(
            "INSERT INTO texts (name, stem, key, folded, suffix, caption, license, attribution, license_stated) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(_to_blob(n) for n in (name, stem(name), webdataset_key(name), fold(stem(name)))),
                suffix,
                metadata.caption,
                metadata.license_code,
                metadata.attribution,
                metadata.license_stated,
            ),
        )

    def find(self, name: str, *, is_stated: bool = False) -> Metadata:
        """What the texts of an image state; the texts count as used.

        Args:
            name: of the image.
            is_stated: whether a table states its caption, which the texts then only repeat.
        """
        if not self.count:
            return Metadata()
        texts = self._texts_of(name)
        first = next((text.number for text in texts if text.metadata.caption), -1)
        for text in texts:
            is_used = 1 if text.number == first and not is_stated else 2  # 2: what it states was stated already
            self._rows.execute("UPDATE texts SET is_used = ? WHERE number = ? AND is_used != 1", (is_used, text.number))
        stated = [text.metadata for text in texts]
        with_license = next((m for m in stated if m.license_code), Metadata())
        return Metadata(
            next((m.caption for m in stated if m.caption), None),
            with_license.license_code,
            next((m.attribution for m in stated if m.attribution), None),
            with_license.license_stated,
        )

    def _select(self, column: str, value: str) -> list[_Text]:
        rows = self._rows.execute(
            f"SELECT number, caption, license, attribution, license_stated, suffix, stem FROM texts WHERE {column} = ? "
            "ORDER BY number",
            (_to_blob(value),),
        )
        texts = [_Text(row[0], Metadata(*row[1:5]), row[5], row[6].decode("utf-8", "surrogatepass")) for row in rows]
        return sorted(texts, key=lambda text: CAPTION_SUFFIXES.index(text.suffix))

    def _texts_of(self, name: str) -> list[_Text]:
        own, key = stem(name), webdataset_key(name)
        texts = self._select("stem", own) + (self._select("stem", name) if name != own else [])
        if own == key:
            numbers = {text.number for text in texts}
            others = [text for text in self._select("key", key) if text.number not in numbers and self._is_free(text)]
            others.sort(key=lambda text: (CAPTION_SUFFIXES.index(text.suffix), _column_rank(text.stem[len(key) + 1 :])))
            texts += others
        elif not texts:
            texts = self._select("stem", key)
        if texts:
            return texts
        alike = self._select("folded", fold(own)) or self._select("folded", fold(name))
        return alike if len({text.stem for text in alike}) == 1 else []

    def _is_free(self, text: _Text) -> bool:
        """Whether a text of an image's key is not another image's own."""
        taken = self._rows.execute("SELECT 1 FROM images WHERE stem = ?", (_to_blob(text.stem),)).fetchone()
        return taken is None

    def count_captions(self) -> None:
        """Count the captions, when `find` was asked for every image: those that met one, and those that met none."""
        query = "SELECT count(*) FROM texts WHERE caption IS NOT NULL AND is_used = ?"
        self._counts.matched += self._rows.execute(query, (1,)).fetchone()[0]
        self._counts.repeated += self._rows.execute(query, (2,)).fetchone()[0]
        for (name,) in self._rows.execute("SELECT name FROM texts WHERE caption IS NOT NULL AND is_used = 0"):
            where = f"{self._where}{name.decode('utf-8', 'surrogatepass')}"
            self._counts.count_caption(where, is_matched=False, why="no image beside it")


def _column_rank(name: str) -> int:
    """Place of a name among the usual columns of captions."""
    usual = COLUMNS["caption"]
    return usual.index(name.lower()) if name.lower() in usual else len(usual)
