"""Which names or URLs were listed already, in constant memory."""

from __future__ import annotations

import hashlib
import sqlite3


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
