"""Cache of model replies: key -> reply, one small file each, outside git, which outlives crashes and runs.

The key is a SHA-256 over everything that decides a reply: the images' bytes, the text, the model, its revision, the
engine, sampling and seed. Two requests share an entry only if all of that is equal. A reply is on disk before it is
returned: a killed process loses at most the requests in flight.

    <folder>/replies/<first 3 digits of the key>/<key>.json

A file is written aside and renamed, so that any number of processes on any number of hosts may share the folder, also
on a network file system; no lock is needed. `replies.sqlite`, the form of earlier releases, is still read.

Where: MEGAPAIRS_CACHE names the folder (empty or `off`: no cache). Without it, a deployment keeps `request-cache`
beside the DVC cache that its worktrees share, and a plain clone keeps `.run/request-cache`. `prune_cache` removes old
replies. See docs/decisions/0040 and 0071.
"""

from __future__ import annotations

import configparser
import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from PIL.Image import Image

ENVIRONMENT_VARIABLE = "MEGAPAIRS_CACHE"
SHARD_DIGITS = 3  # of a key, the name of its folder: 4,096 folders
UNFINISHED_S = 86_400.0  # age from which a temporary file is one that a killed process left, s
LEGACY_NAME = "replies.sqlite"
log = logging.getLogger(__name__)


class RequestCache:
    """Replies by key; threads, processes and hosts may share the folder.

    Attributes:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is made where it is missing.

        Raises:
            ConfigError: it cannot be made or written into.
        """
        self.folder = folder
        self._replies = folder / "replies"
        try:
            self._replies.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _write_error(folder, error) from None
        self._suffix = f".{socket.gethostname()}.{os.getpid()}"
        self._legacy = LegacyReplies(folder / LEGACY_NAME)

    def get(self, key: str) -> Any:
        """The reply of a key, or None."""
        try:
            content = self._path(key).read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                raise TransientError(f"{self._path(key)}: a cached reply cannot be read ({error.strerror})") from None
            return self._from_legacy(key)
        try:
            return json.loads(content)
        except ValueError:  # a power cut may leave a file without its content
            self._path(key).unlink(missing_ok=True)
            return None

    def put(self, key: str, reply: Any) -> None:
        """Store a reply; an existing one stays as it is.

        Raises:
            ConfigError: the folder cannot be written into.
            TransientError: the disk is full, or does not answer.
        """
        path = self._path(key)
        temporary = path.with_name(f".{path.stem}{self._suffix}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(json.dumps(reply, ensure_ascii=False).encode())
            _link_or_replace(temporary, path)
        except OSError as error:
            raise _write_error(self.folder, error) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def __len__(self) -> int:
        return sum(1 for _ in _files(self._replies, ".json"))

    def close(self) -> None:
        """Close the file of an earlier release, where there is one."""
        self._legacy.close()

    def _path(self, key: str) -> Path:
        return self._replies / key[:SHARD_DIGITS] / f"{key}.json"

    def _from_legacy(self, key: str) -> Any:
        reply = self._legacy.get(key)
        if reply is not None:
            self.put(key, reply)
        return reply


class LegacyReplies:
    """The SQLite file of earlier releases, read only."""

    def __init__(self, path: Path) -> None:
        """`path`: of the file; there need not be one."""
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        if path.exists():
            with contextlib.suppress(sqlite3.Error):
                self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def get(self, key: str) -> Any:
        """The reply of a key, or None; also where the file cannot be read."""
        with self._lock:
            if self._db is None:
                return None
            try:
                row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (bytes.fromhex(key),)).fetchone()
            except sqlite3.Error as error:
                log.warning("%s: cannot be read (%s); replies of earlier releases are asked again", LEGACY_NAME, error)
                self._db.close()
                self._db = None
                return None
        return json.loads(row[0]) if row else None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


def _link_or_replace(temporary: Path, path: Path) -> None:
    """Give the file its name, unless another process was first; where there are no hard links, the last one wins."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        os.replace(temporary, path)


def _write_error(folder: Path, error: OSError) -> ConfigError | TransientError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return ConfigError(
            f"{ENVIRONMENT_VARIABLE}: {folder} cannot be written into ({error.strerror}); expected a folder for the "
            f"replies of model servers: name another one in {ENVIRONMENT_VARIABLE}, or `off`"
        )
    return TransientError(
        f"{folder}: a reply cannot be stored ({error.strerror}); free space (`python -m tasks runs --prune` removes "
        "old replies), then run the stage again"
    )


# --- retention ------------------------------------------------------------------------------------------------------


class PrunedReplies(NamedTuple):
    """What pruning removed: files, a count, and the bytes of disk that they took."""

    files: int
    size_bytes: int


class _File(NamedTuple):
    written_s: float
    size_bytes: int
    path: Path


def prune_cache(
    folder: Path,
    *,
    max_age_days: float,
    max_bytes: int | None = None,
    now_s: float | None = None,
    is_dry: bool = False,
) -> PrunedReplies:
    """Remove replies that are too old, then the oldest until the rest fits; other processes may go on working.

    Args:
        folder: of the cache; nothing happens where there is none.
        max_age_days: replies written longer ago are removed, days.
        max_bytes: most disk space of what stays, bytes; None for no limit.
        now_s: time since the epoch, s; the clock's when None.
        is_dry: only say what would be removed.
    """
    now = time.time() if now_s is None else now_s
    replies = sorted(_files(folder / "replies", ".json"))
    unfinished = [f for f in _files(folder / "replies", ".tmp") if now - f.written_s > UNFINISHED_S]
    legacy = [f for f in _files(folder, LEGACY_NAME) if now - f.written_s > max_age_days * 86_400]
    size = sum(file.size_bytes for file in replies)
    removed: list[_File] = []
    for file in replies:
        is_too_old = now - file.written_s > max_age_days * 86_400
        if not is_too_old and (max_bytes is None or size <= max_bytes):
            break
        removed.append(file)
        size -= file.size_bytes
    for file in () if is_dry else (*removed, *unfinished, *legacy):
        with contextlib.suppress(OSError):
            file.path.unlink(missing_ok=True)
    if legacy and not is_dry:
        for ending in ("-wal", "-shm"):
            (folder / f"{LEGACY_NAME}{ending}").unlink(missing_ok=True)
    gone = [*removed, *unfinished, *legacy]
    return PrunedReplies(len(gone), sum(file.size_bytes for file in gone))


def _files(folder: Path, ending: str) -> Iterator[_File]:
    """Files in a folder and its sub-folders whose name ends so; one that vanishes meanwhile is passed over."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), ending)
        elif entry.name.endswith(ending):
            with contextlib.suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                yield _File(stat.st_mtime, stat.st_blocks * 512, Path(entry.path))


# --- keys and place -------------------------------------------------------------------------------------------------


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
