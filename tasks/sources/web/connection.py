"""Bounded reads of an HTTP response: every socket read within a deadline, every decompressed byte within a limit."""

from __future__ import annotations

import http.client
import io
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

from tasks.sources.files import FileRejected


def seconds_left(deadline_s: float) -> float:
    """Seconds to a deadline on the monotonic clock.

    Raises:
        TimeoutError: it has passed.
    """
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline is past")
    return left_s


class _DeadlineReader(io.RawIOBase):
    """Reads of a socket, each within the time that is left to the deadline."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock, self._deadline_s = sock, deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(seconds_left(self._deadline_s))
        return self._sock.recv_into(buffer)


class DeadlineSocket:
    """The part of a socket that http.client.HTTPResponse uses, with a deadline over all reads."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock, self._deadline_s = sock, deadline_s

    def makefile(self, mode: str) -> io.BufferedReader:
        """A buffered reader of the response."""
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline_s), 64 * 1024)


def decompress(chunks: Iterator[bytes], encoding: str, limit_bytes: int) -> Iterator[bytes]:
    """Chunks of a body with this Content-Encoding, decompressed up to one byte past the limit.

    Args:
        chunks: the body as sent.
        encoding: '', identity, gzip, x-gzip or deflate.
        limit_bytes: most bytes of the decompressed body.
    Raises:
        FileRejected: another encoding, or a damaged body.
        http.client.IncompleteRead: the body ends before its compressed stream does.
    """
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FileRejected("unreachable", f"content encoding '{encoding}', though none was asked for")
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)
    left_bytes = limit_bytes + 1
    try:
        for chunk in chunks:
            while chunk and left_bytes > 0:
                out = decompressor.decompress(chunk, left_bytes)
                left_bytes -= len(out)
                yield out
                chunk = decompressor.unconsumed_tail
            if left_bytes <= 0 or decompressor.eof:
                return
        raise http.client.IncompleteRead(b"")
    except zlib.error as error:
        raise FileRejected("unreachable", f"a damaged {encoding} body: {error}") from error
