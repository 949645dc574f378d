"""Compressed tars, unpacked to a temporary file, so that their members are read where they lie.

What a tar is packed with its first bytes say, not its name: a `.tar.gz` that is none is read as it is, and so is a
`.tar` that is packed. Compressed data that is cut or damaged gives what lies before the damage. Unpacking ends at
MAX_COMPRESSION_RATIO times the packed size (tasks/sources/lines.py).

A process keeps the KEPT tars that were used last. Another process, to which members are listed, unpacks a tar again.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.sources.files import FileRejected
from tasks.sources.lines import READ_ERRORS, LimitedReader
from tasks.sources.spool import Spool

ReadAt = Callable[[int, int], bytes]  # (start, stop) -> these bytes, fewer at the end

MAGIC = {  # first bytes -> what packed the rest
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
CHUNK_BYTES = 1 << 16  # read and unpacked at a time; LimitedReader repeats a failed read, so it must be short
KEPT = 4  # unpacked tars on disk: small ones may be read side by side


class UnpackedTar(NamedTuple):
    """What came out of a packed tar: its bytes, and why there are no more ('' where all is there)."""

    spool: Spool
    damage: str


class OpenedTar(NamedTuple):
    """A tar whose members can be read: a reader of its bytes, its size, and the damage of what it was packed in."""

    read_at: ReadAt
    size_bytes: int
    damage: str = ""


class _Bytes(io.RawIOBase):
    """The packed bytes as a file that is read from its beginning."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at, self._size_bytes, self._position = read_at, size_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size_bytes)
        content = self._read_at(self._position, stop) if stop > self._position else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


@contextmanager
def _decompressed(packing: str, read_at: ReadAt, size_bytes: int) -> Iterator[Any]:
    """The unpacked stream, from its beginning."""
    with io.BufferedReader(_Bytes(read_at, size_bytes), CHUNK_BYTES) as packed:
        if packing == "gzip":
            with gzip.GzipFile(fileobj=packed) as stream:
                yield stream
        elif packing == "bz2":
            with bz2.BZ2File(packed) as stream:
                yield stream
        elif packing == "xz":
            with lzma.LZMAFile(packed) as stream:
                yield stream
        else:
            import pyarrow as pa

            with pa.CompressedInputStream(pa.PythonFile(packed, "r"), packing) as stream:
                yield stream


def _unpack(tar: PackedTar) -> UnpackedTar:
    """Unpack a tar.

    Raises:
        FileRejected: it takes more than half of the free disk; a later batch tries again.
    """
    spool, limit_bytes = Spool(), shutil.disk_usage(tempfile.gettempdir()).free // 2

    def open_stream() -> Any:
        return _decompressed(tar.packing, tar.read_at, tar.size_bytes)

    try:
        with LimitedReader(open_stream, tar.size_bytes) as stream:
            buffer = bytearray(CHUNK_BYTES)
            while count := stream.readinto(buffer):
                spool.append(bytes(buffer[:count]))
                if spool.size_bytes > limit_bytes:
                    raise FileRejected("unreachable", "it unpacks to more than half of the free disk", is_lasting=False)
    except READ_ERRORS as error:
        return UnpackedTar(spool, f"its compressed data ({tar.packing}) ends early or is damaged: {error}")
    return UnpackedTar(spool, "")


_unpacked: OrderedDict[tuple[str, int], UnpackedTar] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class PackedTar:
    """Reads a packed tar's unpacked bytes; picklable.

    Attributes:
        read_at: reads the packed bytes.
        size_bytes: of the packed tar.
        packing: one of MAGIC.
        fingerprint: of the packed bytes.
    """

    read_at: ReadAt
    size_bytes: int
    packing: str
    fingerprint: str

    def unpack(self) -> UnpackedTar:
        """The unpacked tar, from this process's latest ones where it is among them."""
        key = (self.fingerprint, self.size_bytes)
        with _lock:
            unpacked = _unpacked.pop(key, None) or _unpack(self)
            _unpacked[key] = unpacked
            while len(_unpacked) > KEPT:
                _unpacked.popitem(last=False)
        return unpacked

    def __call__(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the unpacked tar, fewer at its end."""
        return self.unpack().spool.read(start, stop)


def open_tar(read_at: ReadAt, size_bytes: int, fingerprint: str) -> OpenedTar:
    """Open a tar, packed or not.

    Args:
        read_at: reads its bytes.
        size_bytes: of it.
        fingerprint: of its bytes.
    Raises:
        FileRejected: as of the reads; it takes too much disk.
    """
    start = read_at(0, min(size_bytes, max(map(len, MAGIC)))) if size_bytes else b""
    packing = next((packing for magic, packing in MAGIC.items() if start.startswith(magic)), "")
    if not packing:
        return OpenedTar(read_at, size_bytes)
    tar = PackedTar(read_at, size_bytes, packing, fingerprint)
    spool, damage = tar.unpack()
    return OpenedTar(tar, spool.size_bytes, damage)
