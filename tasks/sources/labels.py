"""Captions, licences and attributions that a source's own table gives its files, looked up by path in constant memory.

A table of a million rows is a temporary SQLite file of the process (removed with it), not a dictionary.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.sources.files import Label, cleaned_text

CAPTION_FILES = ("captions.parquet", "captions.csv")
FIELD_CHARS = 1 << 24  # longest field of a CSV, characters
BATCH_ROWS = 8_192
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
    """thing -> name of its column in this table. What the source names must be there; the rest is found by its usual names.

    Raises:
        DataError: a column that the source names, or the column of the key, is missing.
    """
    found: dict[str, str] = {}
    for thing, usual in COLUMNS.items():
        named = source.columns.get(thing)  # type: ignore[call-overload]
        if named and named not in known:
            raise DataError(f"{where}: column '{named}' is missing, found {known}; correct ingest.sources '{source.name}' columns.{thing}")
        column = named or next((name for name in usual if name in known), None)
        if column:
            found[thing] = column
    if key not in found:
        raise DataError(f"{where}: column '{key}' is missing, found {known}; expected {key}, caption, licence, source, or columns.{key} of the source")
    return found


def rows_of(path: Path, source: SourceConfig, *, key: str, where: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, JSONL or Parquet file, a few thousand at a time: thing (see COLUMNS) -> value as the file has it.

    Args:
        path: the file; its suffix says the format (.gz is not read: a table that unpacks has no honest size).
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
        elif path.suffix in (".jsonl", ".ndjson"):
            yield from _jsonl_rows(path, source, key, where)
        else:
            csv.field_size_limit(FIELD_CHARS)
            with open(path, newline="", encoding="utf-8-sig", errors="replace") as f:
                reader = csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ",")
                columns = columns_of(source, [str(n) for n in reader.fieldnames or []], key=key, where=where)
                for row in reader:
                    yield {thing: row.get(column) for thing, column in columns.items()}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{where}: cannot be read ({error}); expected columns {key}, caption, licence, source") from error


def _parquet_rows(path: Path, source: SourceConfig, key: str, where: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        columns = columns_of(source, table.schema_arrow.names, key=key, where=where)
        for batch in table.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns.values()))):
            for row in batch.to_pylist():
                yield {thing: row[column] for thing, column in columns.items()}


def _jsonl_rows(path: Path, source: SourceConfig, key: str, where: str) -> Iterator[dict[str, Any]]:
    columns: dict[str, str] = {}
    with open(path, "rb") as f:
        for number, line in enumerate(lines_of(f), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{where}: line {number} is {type(row).__name__}, expected one JSON object a line")
            columns = columns or columns_of(source, list(row), key=key, where=where)
            yield {thing: row.get(column) for thing, column in columns.items()}


def lines_of(f: BinaryIO) -> Iterator[bytes]:
    """Lines of at most FIELD_CHARS bytes.

    Raises:
        ValueError: a longer one.
    """
    while line := f.readline(FIELD_CHARS + 1):
        if len(line) > FIELD_CHARS:
            raise ValueError(f"a line of more than {FIELD_CHARS} bytes")
        yield line


def label_of(row: Mapping[str, Any]) -> Label:
    """A row's words, cleaned."""
    return Label(cleaned_text(row.get("caption")), cleaned_text(row.get("license"), 200), cleaned_text(row.get("attribution"), 500))


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
        self._rows.execute("CREATE TABLE labels (path TEXT PRIMARY KEY, caption TEXT, license TEXT, attribution TEXT) WITHOUT ROWID")
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
                    self._rows.execute("INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?)", (name, label.caption, label.license_code, label.attribution))
                    self.count += 1
        return self

    def get(self, path: str) -> Label:
        """What the table says about a path; an empty label when nothing."""
        if not self.count:
            return Label()
        row = self._rows.execute(
            "SELECT caption, license, attribution FROM labels WHERE path = ?", (path.encode("utf-8", "backslashreplace").decode(),)
        ).fetchone()
        return Label(*row) if row else Label()
