"""Whether a PNG file is complete: chunk checksums, the end chunk, the palette, and all rows of pixels.

Pillow decodes a truncated PNG without an error where only rows are missing; this finds them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

# first column, first row, column step, row step of the seven interlacing passes
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PALETTE = 3  # the colour type of palette numbers
DECOMPRESS_BYTES = 1 << 20  # at a time


def read_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, body) of a PNG's chunks up to its end chunk.

    Raises:
        OSError: it ends before, or a critical chunk does not match its checksum.
    """
    view, at = memoryview(content), 8
    while at + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + size
        if end + 4 > len(content):
            break
        is_critical = kind[0] & 0x20 == 0  # a capital letter
        if is_critical and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise OSError(f"a PNG whose chunk {kind.decode('ascii', 'replace')} has another checksum")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise OSError("a PNG without its end")


def count_row_bytes(width: int, height: int, depth: int, colour: int, *, is_interlaced: bool) -> int:
    """Bytes that a PNG's rows decompress to, including one filter byte per row.

    Args:
        width, height: px.
        depth: bits a channel.
        colour: PNG colour type, a key of CHANNELS.
        is_interlaced: rows come in the seven passes of ADAM7.
    """
    bits = depth * CHANNELS[colour]
    total = 0
    for left, top, column_step, row_step in ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // column_step), -(-(height - top) // row_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def check_complete(image: Image.Image, content: bytes) -> None:
    """Raise unless a decoded PNG's file holds all of its rows, and its palette where it needs one.

    Missing rows decode to zeros. So only where the last row is zero, or rows are interlaced, are the rows decompressed
    again and counted.

    Args:
        image: what Pillow decoded from the file.
        content: the file.
    Raises:
        OSError: it is incomplete.
        zlib.error: its rows do not decompress.
    """
    chunks = [(kind, body) for kind, body in read_chunks(content) if kind in (b"IHDR", b"PLTE", b"IDAT")]
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1][:13])
    if colour == PALETTE and b"PLTE" not in [kind for kind, _ in chunks[:2]]:  # Pillow would make greys of its numbers
        raise OSError("a PNG of palette numbers without its palette")
    if not interlaced and np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return
    decompressor = zlib.decompressobj()
    expected = left = count_row_bytes(width, height, depth, colour, is_interlaced=bool(interlaced))
    for kind, body in chunks:
        piece: Any = body if kind == b"IDAT" else b""
        while piece and left > 0 and not decompressor.eof:
            left -= len(decompressor.decompress(piece, DECOMPRESS_BYTES))
            piece = decompressor.unconsumed_tail
    while left > 0 and not decompressor.eof and (rest := decompressor.decompress(b"", DECOMPRESS_BYTES)):
        left -= len(rest)
    if left > 0:
        raise OSError(f"a PNG with {expected - left} of its {expected} bytes of rows")
