"""HTTP connections pinned to a checked address, with a deadline and a byte limit."""

from __future__ import annotations

import http.client
import io
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

from tasks.sources.files import Refused


class _Pieces(io.RawIOBase):
    """Reads of a socket, each within what is left of the deadline."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(left_of(self._until))
        return self._sock.recv_into(buffer)


def left_of(until: float) -> float:
    """Seconds to a deadline.

    Raises:
        TimeoutError: it is past.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline is past")
    return left


class _Response:
    """What http.client asks of a socket, with the deadline inside."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Pieces(self._sock, self._until), 64 * 1024)


def unpacked(pieces: Iterator[bytes], encoding: str, limit_bytes: int) -> Iterator[bytes]:
    """Pieces of a gzip or deflate body, unpacked no further than a byte past the limit.

    Raises:
        Refused: another encoding, or damage.
    """
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refused("unreachable", f"content encoding '{encoding}', though none was asked for")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    room = limit_bytes + 1
    try:
        for piece in pieces:
            while piece and room > 0:
                out = unpacker.decompress(piece, room)
                room -= len(out)
                yield out
                piece = unpacker.unconsumed_tail
            if room <= 0 or unpacker.eof:
                return
        raise http.client.IncompleteRead(b"")
    except zlib.error as error:
        raise Refused("unreachable", f"a damaged {encoding} body: {error}") from error
