"""Captions, licences and attributions from a source's own table, looked up by path in constant memory.

Reads CSV, TSV, JSONL and Parquet, row by row; CSV and JSONL also compressed by gzip or Zstandard. A table of a million
rows is kept in a temporary SQLite file of the process (deleted with it), not in a dictionary.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from tasks.config import SourceConfig
from tasks.sources.columns import TableFormat, parse_metadata
from tasks.sources.counts import ListingCounts
from tasks.sources.files import Metadata
from tasks.sources.rows import read_rows

CAPTION_FILES = ("captions.parquet", "captions.csv")


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
            "CREATE TABLE metadata (path TEXT PRIMARY KEY, caption TEXT, license TEXT, "
            "attribution TEXT, license_stated TEXT) WITHOUT ROWID"
        )
        self.count = 0

    def add(
        self, path: Path, source: SourceConfig, name: str | None = None, counts: ListingCounts | None = None
    ) -> MetadataTable:
        """Add the rows of a captions.csv or captions.parquet.

        Args:
            path: the local file.
            source: its `columns` override the usual column names.
            name: what error messages call the file; its path by default.
            counts: where its rows are counted.
        Raises:
            DataError: see `read_rows`.
        """
        with self._rows:
            for row in read_rows(path, TableFormat(source, ("path",), name or str(path)), counts):
                inside = row.values.get("path")
                if isinstance(inside, str) and inside:
                    metadata = parse_metadata(row.values)
                    key = inside.replace("\\", "/").removeprefix("./").encode("utf-8", "backslashreplace").decode()
                    self._rows.execute(
                        "INSERT OR IGNORE INTO metadata VALUES (?, ?, ?, ?, ?)",
                        (
                            key,
                            metadata.caption,
                            metadata.license_code,
                            metadata.attribution,
                            metadata.license_stated,
                        ),
                    )
                    self.count += 1
        return self

    def get(self, path: str) -> Metadata:
        """What the table states about a path; empty Metadata when it has no such row."""
        if not self.count:
            return Metadata()
        row = self._rows.execute(
            "SELECT caption, license, attribution, license_stated FROM metadata WHERE path = ?",
            (path.encode("utf-8", "backslashreplace").decode(),),
        ).fetchone()
        return Metadata(*row) if row else Metadata()
