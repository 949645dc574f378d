"""Cache of model replies: key -> reply, in one SQLite file outside git that outlives crashes and runs.

The key is a SHA-256 over everything that decides a reply: the images' bytes, the text, the model, its revision, the
engine, sampling and seed. Two requests share an entry only if all of that is equal. A reply is on disk before it is
returned: a killed process loses at most the requests in flight.

Where: MEGAPAIRS_CACHE names the folder (empty or `off`: no cache). Without it, a deployment keeps `request-cache`
beside the DVC cache that its worktrees share, and a plain clone keeps `.run/request-cache`. See docs/decisions/0040.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

ENVIRONMENT_VARIABLE = "MEGAPAIRS_CACHE"
LOCK_TIMEOUT_S = 60.0  # how long one process waits while another one writes


class RequestCache:
    """Replies by key; threads and processes of one machine may share the file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "replies.sqlite"
        self._lock = threading.Lock()
        self._db = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        # survives a killed process; a power cut may lose the last replies, never the file
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID")
        # when a reply was stored, days since 1970; a reply of before this table is as old as its first pruning
        self._db.execute("CREATE TABLE IF NOT EXISTS days (key BLOB PRIMARY KEY, day INTEGER NOT NULL) WITHOUT ROWID")

    def get(self, key: str) -> Any:
        """The reply of a key, or None."""
        with self._lock:
            row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (bytes.fromhex(key),)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, reply: Any) -> None:
        """Store a reply; an existing one stays as it is."""
        with self._lock:
            stored = self._db.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?)",
                (bytes.fromhex(key), json.dumps(reply, ensure_ascii=False)),
            )
            if stored.rowcount:
                self._db.execute("INSERT OR REPLACE INTO days VALUES (?, ?)", (bytes.fromhex(key), today()))

    def prune(self, before_day: int, *, is_dry: bool) -> int:
        """Remove the replies that were stored before a day, and give their room back to the disk.

        Args:
            before_day: days since 1970.
            is_dry: count only.
        Returns:
            replies removed, or that would be, a count.
        """
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO days SELECT key, ? FROM replies", (today(),))
            old = "FROM days WHERE day < ?"
            count = int(self._db.execute(f"SELECT count(*) {old}", (before_day,)).fetchone()[0])
            if count and not is_dry:
                self._db.execute(f"DELETE FROM replies WHERE key IN (SELECT key {old})", (before_day,))
                self._db.execute(f"DELETE {old}", (before_day,))
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def today() -> int:
    """Days since 1970, UTC."""
    return int(time.time() // 86_400)


def request_key(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of values as canonical JSON: equal exactly for equal values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def image_key(image: Image) -> str:
    """SHA-256 (hex) of an image as a model gets it: mode, size and every pixel."""
    return hashlib.sha256(f"{image.mode} {image.width} {image.height}\n".encode() + image.tobytes()).hexdigest()


def image_keys(images: Iterable[Image]) -> dict[int, str]:
    """`image_key` by id(), each image hashed once."""
    return {i: image_key(image) for i, image in {id(image): image for image in images}.items()}


def cache_folder(root: Path, environment: Mapping[str, str] | None = None) -> Path | None:
    """The cache's folder for a run in worktree `root`, None without a cache; see the module's docstring."""
    named = (os.environ if environment is None else environment).get(ENVIRONMENT_VARIABLE)
    if named is not None:
        return None if named.strip().lower() in ("", "off", "0") else Path(named)
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / ".dvc" / "config.local")
    for section in config.sections():
        if section.strip("'\"") == "cache" and config.has_option(section, "dir"):
            return Path(config.get(section, "dir")).parent / "request-cache"
    return root / ".run" / "request-cache"


def open_cache(root: Path, *, served: bool) -> RequestCache | None:
    """The cache of a run in worktree `root`, or None.

    Models in process (`served` is False) use a cache only where MEGAPAIRS_CACHE names it: finished chunks are skipped
    anyway, and nothing is billed.
    """
    if not served and os.environ.get(ENVIRONMENT_VARIABLE) is None:
        return None
    folder = cache_folder(root)
    return RequestCache(folder) if folder else None
