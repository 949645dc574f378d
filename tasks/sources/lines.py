"""Lines of a text table, decompressed and decoded as they are read; what cannot be read is a line that says why.

A byte-order mark, or the zero bytes of UTF-16 without one, decides the encoding; else `encoding` of the source, else
UTF-8. Decoding is strict: a line with other bytes is damaged, and no character is ever replaced. A file that is cut, or
compressed data that is damaged, ends with one damaged line; all lines before it are read.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FIELD_CHARS = 1 << 24  # longest line, characters
CHUNK_BYTES = 1 << 16  # decompressed at a time
# Decompression limit, as a multiple of the compressed size. Tables of URLs compress to about a fifth; deflate can reach
# 1,032 times, Zstandard more.
MAX_COMPRESSION_RATIO = 200
FREE_BYTES = 1 << 20  # allowed whatever the compressed size
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)

# A decoder that meets bytes of another encoding writes a lone surrogate, which no strict decoder ever writes itself.
codecs.register_error("megapairs-mark", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Line:
    """One line of a text table.

    Attributes:
        number: counted from 1.
        text: without its line end; '' when it is damaged.
        damage: why it cannot be read; '' for a good line.
        is_end: whether the file cannot be read any further.
    """

    number: int
    text: str
    damage: str = ""
    is_end: bool = False


class LimitedReader(io.RawIOBase):
    """A compressed file's content, read no further than MAX_COMPRESSION_RATIO times its compressed size.

    Args:
        open_stream: the decompressed stream from its beginning.
        compressed_bytes: of the file.
    """

    def __init__(self, open_stream: Callable[[], AbstractContextManager[Any]], compressed_bytes: int) -> None:
        self._open_stream = open_stream
        self._context = open_stream()
        self._stream = self._context.__enter__()
        self._limit_bytes = FREE_BYTES + MAX_COMPRESSION_RATIO * compressed_bytes
        self._position = 0
        self._step = CHUNK_BYTES

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as io.RawIOBase.readinto does.

        Raises:
            OSError, EOFError, zlib.error, lzma.LZMAError, ValueError: damaged, truncated, or a decompression bomb.
        """
        chunk = self._read(len(buffer))
        self._position += len(chunk)
        if self._position > self._limit_bytes:
            raise ValueError(
                f"it unpacks to more than {MAX_COMPRESSION_RATIO} times its size; unpack it, inspect it, and name the "
                "plain file"
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _read(self, size: int) -> bytes:
        """The next bytes. A failed read discards what it had: it is repeated from there, a byte at a time."""
        try:
            return bytes(self._stream.read(min(size, self._step)))
        except READ_ERRORS:
            if self._step == 1:
                raise
        self._context.__exit__(None, None, None)
        self._context = self._open_stream()
        self._stream = self._context.__enter__()
        left = self._position
        while left:
            left -= len(self._stream.read(min(left, CHUNK_BYTES)))
        self._step = 1
        return bytes(self._stream.read(1))

    def close(self) -> None:
        """End the decompressed stream."""
        if not self.closed:
            self._context.__exit__(None, None, None)
        super().close()


@contextmanager
def _open_zstandard(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
        yield stream


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, of .gz and .zst decompressed while they are read.

    Raises:
        OSError, EOFError, zlib.error, ValueError: also by the reads: damaged, truncated, or a decompression bomb.
    """
    if path.suffix == ".gz":
        raw = LimitedReader(lambda: gzip.open(path), path.stat().st_size)  # noqa: SIM115
    elif path.suffix == ".zst":
        raw = LimitedReader(lambda: _open_zstandard(path), path.stat().st_size)
    else:
        with open(path, "rb") as f:
            yield f
        return
    with io.BufferedReader(raw, CHUNK_BYTES) as stream:
        yield stream


def detect_encoding(start: bytes, encoding: str = "") -> str:
    """Python's name of the encoding of a text.

    Args:
        start: its first bytes.
        encoding: of a text without a byte-order mark, as the source states it; '' for UTF-8.
    """
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
    for mark, name in (*marks, (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if start.startswith(mark):
            return name
    if encoding:
        return encoding
    sample = start[:64]
    if len(sample) >= 4 and sample[1:4:2] == b"\0\0" and sample[0]:
        return "utf-16-le"
    if len(sample) >= 4 and sample[0:3:2] == b"\0\0" and sample[1]:
        return "utf-16-be"
    return "utf-8"


def decode_text(content: bytes, encoding: str = "") -> str:
    """A short text as it stands in a file of its own.

    Raises:
        UnicodeDecodeError: its bytes are of another encoding.
    """
    return content.decode(detect_encoding(content, encoding)).removeprefix("\ufeff")


def read_text_lines(path: Path, encoding: str = "") -> Iterator[Line]:
    """Lines of a text table, blank ones included; never raises for what the file holds.

    Args:
        path: the file; .gz and .zst are decompressed.
        encoding: of a table without a byte-order mark, as the source states it; '' for UTF-8.
    """
    number = 0
    try:
        with open_decompressed(path) as f:
            start = f.peek(CHUNK_BYTES)  # type: ignore[attr-defined]
            name = detect_encoding(start, encoding)
            newline = "\r" if b"\r" in start and b"\n" not in start else "\n"
            text = io.TextIOWrapper(f, encoding=name, errors="megapairs-mark", newline=newline)
            while line := text.readline(FIELD_CHARS + 1):
                number += 1
                if len(line) > FIELD_CHARS:
                    while line and not line.endswith(newline):
                        line = text.readline(CHUNK_BYTES)
                    yield Line(number, "", f"a line of more than {FIELD_CHARS} characters")
                elif "\udcff" in line:
                    yield Line(number, "", _not_in_encoding(line, name))
                else:
                    yield Line(number, line.rstrip("\r\n"))
    except READ_ERRORS as error:
        yield Line(number + 1, "", f"the file is damaged after line {number}: {error}", is_end=True)


def _not_in_encoding(line: str, encoding: str) -> str:
    where = line.index("\udcff")
    before, name = line[max(0, where - 20) : where], encoding.removesuffix("-sig")
    return (
        f"its character {where + 1}, after '{before}', is not {name}; mend it, or set 'encoding' of the source, "
        "e.g. cp1252"
    )
