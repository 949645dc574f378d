"""Captions, licences and attributions from a source's own table, looked up by path in constant memory.

Reads CSV, TSV, JSONL and Parquet, row by row; CSV and JSONL also compressed by gzip or Zstandard. A table of a million
rows is kept in a temporary SQLite file of the process (deleted with it), not in a dictionary.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.sources.files import Metadata, clean_text

CAPTION_FILES = ("captions.parquet", "captions.csv")
FIELD_CHARS = 1 << 24  # longest field of a CSV, characters
BATCH_ROWS = 8_192
CHUNK_BYTES = 1 << 16  # decompressed at a time
# Decompression limit, as a multiple of the compressed size. Tables of URLs compress to about a fifth; deflate can reach
# 1,032 times, Zstandard more.
MAX_COMPRESSION_RATIO = 200
FREE_BYTES = 1 << 20  # allowed whatever the compressed size
# Field -> usual column names, best first; the source's `columns` overrides them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file_name", "filename"),
    "url": ("url", "URL", "image_url"),
    "caption": ("caption", "re_caption", "TEXT", "text"),
    "license": ("licence", "license", "LICENSE"),
    "attribution": ("source", "attribution", "author"),
    "sha256": ("sha256",),
}


@dataclass(frozen=True)
class TableFormat:
    """How the rows of one table are found.

    Attributes:
        source: its `columns` override the usual column names.
        key: the field that the table must have, 'path' or 'url'.
        name: what error messages call the table.
    """

    source: SourceConfig
    key: str
    name: str

    def find_columns(self, names: Sequence[str]) -> dict[str, str]:
        """Field of COLUMNS -> name of its column in a table with these column names.

        Raises:
            DataError: a column that the source names, or the key's column, is missing.
        """
        columns: dict[str, str] = {}
        for field, usual in COLUMNS.items():
            configured = self.source.columns.get(field)  # type: ignore[call-overload]
            if configured and configured not in names:
                raise DataError(
                    f"{self.name}: column '{configured}' is missing, found {list(names)}; "
                    f"correct ingest.sources '{self.source.name}' columns.{field}"
                )
            column = configured or next((name for name in usual if name in names), None)
            if column:
                columns[field] = column
        if self.key not in columns:
            raise DataError(
                f"{self.name}: column '{self.key}' is missing, found {list(names)}; "
                f"expected {self.key}, caption, licence, source; rename it, or set columns.{self.key} of the source"
            )
        return columns


def read_rows(path: Path, table: TableFormat) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, TSV, JSONL or Parquet file, a few thousand in memory: field of COLUMNS -> value as in the file.

    Args:
        path: the file; its suffix decides the format. CSV and JSONL may be compressed (.gz, .zst): decompressed as they
            are read, up to MAX_COMPRESSION_RATIO times their size.
        table: how its columns are found.
    Raises:
        DataError: it is unreadable, or the key's column is missing.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path, table)
            return
        with open_decompressed(path) as f:
            name = path.name.removesuffix(".gz").removesuffix(".zst")
            if name.endswith((".jsonl", ".ndjson")):
                yield from _jsonl_rows(f, table)
            else:
                yield from _csv_rows(f, table, delimiter="\t" if name.endswith(".tsv") else ",")
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(
            f"{table.name}: cannot be read ({error}); expected a table with columns {table.key}, caption, licence, "
            "source; correct or replace the file"
        ) from error


class _LimitedReader(io.RawIOBase):
    """A compressed table's text, read no further than MAX_COMPRESSION_RATIO times its compressed size."""

    def __init__(self, stream: Any, compressed_bytes: int) -> None:
        self._stream, self._left_bytes = stream, FREE_BYTES + MAX_COMPRESSION_RATIO * compressed_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(min(len(buffer), CHUNK_BYTES))
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            raise ValueError(
                f"it unpacks to more than {MAX_COMPRESSION_RATIO} times its size; unpack it, inspect it, and name the "
                "plain file"
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """A table's text as bytes, decompressed while it is read.

    Raises:
        OSError, EOFError, zlib.error, ValueError: by the reads: damaged, truncated, or a decompression bomb.
    """
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            yield io.BufferedReader(_LimitedReader(stream, path.stat().st_size), CHUNK_BYTES)  # type: ignore[misc]
    elif path.suffix == ".zst":
        import pyarrow as pa

        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
            yield io.BufferedReader(_LimitedReader(stream, path.stat().st_size), CHUNK_BYTES)  # type: ignore[misc]
    else:
        with open(path, "rb") as f:
            yield f


def _csv_rows(f: BinaryIO, table: TableFormat, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(FIELD_CHARS)
    text = io.TextIOWrapper(f, newline="", encoding="utf-8-sig", errors="replace")
    reader = csv.DictReader(read_lines(text), delimiter=delimiter)
    columns = table.find_columns([str(n) for n in reader.fieldnames or []])
    for row in reader:
        yield {field: row.get(column) for field, column in columns.items()}


def _parquet_rows(path: Path, table: TableFormat) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = table.find_columns(file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns.values()))):
            for row in batch.to_pylist():
                yield {field: row[column] for field, column in columns.items()}


def _jsonl_rows(f: BinaryIO, table: TableFormat) -> Iterator[dict[str, Any]]:
    columns: dict[str, str] = {}
    for number, line in enumerate(read_lines(f), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(
                f"{table.name}: line {number} is a {type(row).__name__}; expected one JSON object per line; correct it"
            )
        columns = columns or table.find_columns(list(row))
        yield {field: row.get(column) for field, column in columns.items()}


def read_lines(f: IO[AnyStr]) -> Iterator[AnyStr]:
    """Lines of at most FIELD_CHARS bytes (characters of a text stream), line ends kept.

    Raises:
        ValueError: a longer one.
    """
    while line := f.readline(FIELD_CHARS + 1):
        if len(line) > FIELD_CHARS:
            raise ValueError(
                f"a line of more than {FIELD_CHARS} {'bytes' if isinstance(line, bytes) else 'characters'}"
            )
        yield line


def parse_metadata(row: Mapping[str, Any]) -> Metadata:
    """A row's caption, licence and attribution as cleaned text."""
    return Metadata(
        clean_text(row.get("caption")),
        clean_text(row.get("license"), 200),
        clean_text(row.get("attribution"), 500),
    )


class SeenKeys:
    """Set of the names or URLs listed so far, as 16-byte hashes in a temporary SQLite file."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")
        self._rows.execute("BEGIN")

    def add(self, key: str) -> bool:
        """Add a key; returns whether it is new."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._rows.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1


class MetadataTable:
    """path inside the source -> Metadata; the first row of a path wins."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", check_same_thread=False)  # '': a temporary file that SQLite deletes
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE metadata (path TEXT PRIMARY KEY, caption TEXT, license TEXT, attribution TEXT) WITHOUT ROWID"
        )
        self.count = 0

    def add(self, path: Path, source: SourceConfig, name: str | None = None) -> MetadataTable:
        """Add the rows of a captions.csv or captions.parquet.

        Args:
            path: the local file.
            source: its `columns` override the usual column names.
            name: what error messages call the file; its path by default.
        Raises:
            DataError: see `read_rows`.
        """
        with self._rows:
            for row in read_rows(path, TableFormat(source, "path", name or str(path))):
                if isinstance(row["path"], str) and row["path"]:
                    metadata = parse_metadata(row)
                    key = row["path"].replace("\\", "/").removeprefix("./").encode("utf-8", "backslashreplace").decode()
                    self._rows.execute(
                        "INSERT OR IGNORE INTO metadata VALUES (?, ?, ?, ?)",
                        (key, metadata.caption, metadata.license_code, metadata.attribution),
                    )
                    self.count += 1
        return self

    def get(self, path: str) -> Metadata:
        """What the table states about a path; empty Metadata when it has no such row."""
        if not self.count:
            return Metadata()
        row = self._rows.execute(
            "SELECT caption, license, attribution FROM metadata WHERE path = ?",
            (path.encode("utf-8", "backslashreplace").decode(),),
        ).fetchone()
        return Metadata(*row) if row else Metadata()
