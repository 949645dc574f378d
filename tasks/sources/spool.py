"""Bytes that wait on disk instead of in memory until they are read.

The file has no name, and goes with its last use.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import BinaryIO


class Spool:
    """A temporary file without a name; it goes when nothing refers to it any more, or when the process ends."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="megapairs-")  # type: ignore[assignment]  # noqa: SIM115
        self.size_bytes = 0

    def append(self, content: bytes) -> SpooledBytes:
        """Write bytes behind those that are there."""
        self._file.write(content)
        self._file.flush()
        start, self.size_bytes = self.size_bytes, self.size_bytes + len(content)
        return SpooledBytes(self, start, len(content))

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the end; safe in threads."""
        return os.pread(self._file.fileno(), stop - start, start)


@dataclass(frozen=True)
class SpooledBytes:
    """A piece of a spool."""

    spool: Spool
    start: int
    size_bytes: int

    def read(self, limit_bytes: int) -> bytes:
        """The bytes, at most one more than the limit."""
        return self.spool.read(self.start, self.start + min(self.size_bytes, limit_bytes + 1))

    def __call__(self, limit_bytes: int) -> bytes:
        """As `read`: a piece is a file's reader."""
        return self.read(limit_bytes)

    def __reduce__(self) -> tuple[type[HeldBytes], tuple[bytes]]:
        """Pickled as the bytes themselves: another process has no such file."""
        return HeldBytes, (self.spool.read(self.start, self.start + self.size_bytes),)


@dataclass(frozen=True)
class HeldBytes:
    """A piece of a spool that another process has written."""

    content: bytes

    def __call__(self, limit_bytes: int) -> bytes:
        """The bytes, at most one more than the limit."""
        return self.content[: limit_bytes + 1]
