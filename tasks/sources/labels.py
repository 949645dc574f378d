"""Captions, licences and attributions that a source's own table gives its files, looked up by path in constant memory.

A table of a million rows is a temporary SQLite file of the process (removed with it), not a dictionary.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.sources.files import Label, cleaned_text

CAPTION_FILES = ("captions.parquet", "captions.csv")
FIELD_CHARS = 1 << 24  # longest field of a CSV, characters
BATCH_ROWS = 8_192
PIECE_BYTES = 1 << 16  # unpacked at a time
PACKED_TIMES = 200  # tables of URLs pack to a fifth or so; deflate reaches 1,032, Zstandard more
PACKED_FREE_BYTES = 1 << 20
# What a table may call a thing, best first; `columns` of the source names another.
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file_name", "filename"),
    "url": ("url", "URL", "image_url"),
    "caption": ("caption", "re_caption", "TEXT", "text"),
    "license": ("licence", "license", "LICENSE"),
    "attribution": ("source", "attribution", "author"),
    "sha256": ("sha256",),
}


def columns_of(source: SourceConfig, known: list[str], *, key: str, where: str) -> dict[str, str]:
    """thing -> name of its column in this table. What the source names must be there; the rest is found by its usual
    names.

    Raises:
        DataError: a column that the source names, or the column of the key, is missing.
    """
    found: dict[str, str] = {}
    for thing, usual in COLUMNS.items():
        named = source.columns.get(thing)  # type: ignore[call-overload]
        if named and named not in known:
            raise DataError(
                f"{where}: column '{named}' is missing, found {known}; correct ingest.sources '{source.name}' columns.{thing}"
            )
        column = named or next((name for name in usual if name in known), None)
        if column:
            found[thing] = column
    if key not in found:
        raise DataError(
            f"{where}: column '{key}' is missing, found {known}; expected {key}, caption, licence, source, or columns.{key} of the source"
        )
    return found


def rows_of(path: Path, source: SourceConfig, *, key: str, where: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, JSONL or Parquet file, a few thousand at a time: thing (see COLUMNS) -> value as the file has it.

    Args:
        path: the file; its suffix says the format. CSV and JSONL may be packed by gzip or Zstandard: unpacked as they
            are read, up to PACKED_TIMES their size.
        source: whose column names count.
        key: the column without which the table is of no use, 'path' or 'url'.
        where: what errors call the file.
    Raises:
        DataError: it cannot be read, or the key's column is missing.
    """
    where = where or str(path)
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path, source, key, where)
            return
        with unpacked(path) as f:
            name = path.name.removesuffix(".gz").removesuffix(".zst")
            if name.endswith((".jsonl", ".ndjson")):
                yield from _jsonl_rows(f, source, key, where)
            else:
                csv.field_size_limit(FIELD_CHARS)
                text = io.TextIOWrapper(f, newline="", encoding="utf-8-sig", errors="replace")
                reader = csv.DictReader(lines_of(text), delimiter="\t" if name.endswith(".tsv") else ",")
                columns = columns_of(source, [str(n) for n in reader.fieldnames or []], key=key, where=where)
                for row in reader:
                    yield {thing: row.get(column) for thing, column in columns.items()}
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(
            f"{where}: cannot be read ({error}); expected columns {key}, caption, licence, source"
        ) from error


class Unpacked(io.RawIOBase):
    """A packed table's text as it is read, no further than a file of its size may honestly hold."""

    def __init__(self, stream: Any, packed_bytes: int) -> None:
        self._stream, self._room = stream, PACKED_FREE_BYTES + PACKED_TIMES * packed_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(min(len(buffer), PIECE_BYTES))
        self._room -= len(piece)
        if self._room < 0:
            raise ValueError(
                f"it unpacks to more than {PACKED_TIMES} times its size; unpack it, look at it, and name the plain file"
            )
        buffer[: len(piece)] = piece
        return len(piece)


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """A table's text as bytes, unpacked while it is read.

    Raises:
        OSError, EOFError, zlib.error, ValueError: of the reads: damage, an end too early, or a bomb.
    """
    if path.suffix == ".gz":
        with gzip.open(path) as packed:
            yield io.BufferedReader(Unpacked(packed, path.stat().st_size), PIECE_BYTES)  # type: ignore[misc]
    elif path.suffix == ".zst":
        import pyarrow as pa

        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as packed:
            yield io.BufferedReader(Unpacked(packed, path.stat().st_size), PIECE_BYTES)  # type: ignore[misc]
    else:
        with open(path, "rb") as f:
            yield f


def _parquet_rows(path: Path, source: SourceConfig, key: str, where: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        columns = columns_of(source, table.schema_arrow.names, key=key, where=where)
        for batch in table.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns.values()))):
            for row in batch.to_pylist():
                yield {thing: row[column] for thing, column in columns.items()}


def _jsonl_rows(f: BinaryIO, source: SourceConfig, key: str, where: str) -> Iterator[dict[str, Any]]:
    columns: dict[str, str] = {}
    for number, line in enumerate(lines_of(f), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(f"{where}: line {number} is {type(row).__name__}, expected one JSON object a line")
        columns = columns or columns_of(source, list(row), key=key, where=where)
        yield {thing: row.get(column) for thing, column in columns.items()}


def lines_of(f: IO[AnyStr]) -> Iterator[AnyStr]:
    """Lines of at most FIELD_CHARS bytes (characters of a text), ends of lines kept.

    Raises:
        ValueError: a longer one.
    """
    while line := f.readline(FIELD_CHARS + 1):
        if len(line) > FIELD_CHARS:
            raise ValueError(
                f"a line of more than {FIELD_CHARS} {'bytes' if isinstance(line, bytes) else 'characters'}"
            )
        yield line


def label_of(row: Mapping[str, Any]) -> Label:
    """A row's words, cleaned."""
    return Label(
        cleaned_text(row.get("caption")),
        cleaned_text(row.get("license"), 200),
        cleaned_text(row.get("attribution"), 500),
    )


class Once:
    """Which names or URLs a listing has had, as hashes in a temporary file of SQLite's."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE had (hash BLOB PRIMARY KEY) WITHOUT ROWID")
        self._rows.execute("BEGIN")

    def is_new(self, text: str) -> bool:
        """True the first time."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._rows.execute("INSERT OR IGNORE INTO had VALUES (?)", (digest,)).rowcount == 1


class Labels:
    """path inside the source -> Label; the first row of a path counts."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", check_same_thread=False)  # '': a temporary file of SQLite's own
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE labels (path TEXT PRIMARY KEY, caption TEXT, license TEXT, attribution TEXT) WITHOUT ROWID"
        )
        self.count = 0

    def add(self, table: Path, source: SourceConfig, where: str | None = None) -> Labels:
        """Take in the rows of a captions.csv or captions.parquet.

        Raises:
            DataError: see `rows_of`.
        """
        with self._rows:
            for row in rows_of(table, source, key="path", where=where):
                path = row["path"]
                if isinstance(path, str) and path:
                    label = label_of(row)
                    name = path.replace("\\", "/").removeprefix("./").encode("utf-8", "backslashreplace").decode()
                    self._rows.execute(
                        "INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?)",
                        (name, label.caption, label.license_code, label.attribution),
                    )
                    self.count += 1
        return self

    def get(self, path: str) -> Label:
        """What the table says about a path; an empty label when nothing."""
        if not self.count:
            return Label()
        row = self._rows.execute(
            "SELECT caption, license, attribution FROM labels WHERE path = ?",
            (path.encode("utf-8", "backslashreplace").decode(),),
        ).fetchone()
        return Label(*row) if row else Label()
