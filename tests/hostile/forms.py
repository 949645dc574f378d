"""Hostile files and forms, each with the row that it must end as: format x colour x damage, sizes, names, tars, tables.

Everything is drawn here. An expected row is 'kept' or a drop reason; where a damage may or may not be seen (a changed
bit in the middle of a scan), the case says which rows are right.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, features

from tests.support.images import block_image, encode
from tests.support.tars import make_tar

KEPT = "kept"
SIZE = (160, 120)
NUMBERS = itertools.count(1_000)  # every image another one: no near duplicates


def draw(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """An image that no other call gives."""
    return block_image(next(NUMBERS), size, mode)


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: inside the source.
        content: its bytes.
        rows: what it may end as.
    """

    name: str
    content: bytes
    rows: tuple[str, ...]


# --- format x colour --------------------------------------------------------------------------------------------------

Encoder = Callable[[], bytes]


def encoders() -> dict[str, Encoder]:
    """Name, its suffix last -> a new image in that form."""

    def jpeg(mode: str = "RGB", **options: object) -> Encoder:
        return lambda: encode(draw(mode=mode), "JPEG", **options)

    def png(mode: str = "RGB", **options: object) -> Encoder:
        return lambda: encode(draw(mode=mode), "PNG", **options)

    def webp(mode: str = "RGB", **options: object) -> Encoder:
        return lambda: encode(draw(mode=mode), "WEBP", **options)

    forms: dict[str, Encoder] = {
        "rgb.jpg": jpeg(),
        "grey.jpg": jpeg("L"),
        "cmyk.jpg": jpeg("CMYK"),
        "progressive.jpg": jpeg(progressive=True),
        "progressive_grey.jpg": jpeg("L", progressive=True),
        "subsampled.jpg": jpeg(subsampling=2, quality=50),
        "optimised.jpg": jpeg(optimize=True, quality=98),
        "restarts.jpg": jpeg(restart_marker_rows=1),
        "rgb.png": png(),
        "grey.png": png("L"),
        "bilevel.png": png("1"),
        "alpha.png": png("RGBA"),
        "grey_alpha.png": png("LA"),
        "palette.png": lambda: encode(draw().quantize(16), "PNG"),
        "palette_clear.png": lambda: encode(draw().quantize(16), "PNG", transparency=1),
        "uncompressed.png": png(compress_level=0),
        "lossy.webp": webp(),
        "lossless.webp": webp(lossless=True),
        "alpha.webp": webp("RGBA"),
        "low.webp": webp(quality=20),
    }
    if features.check("avif"):
        forms["rgb.avif"] = lambda: encode(draw(), "AVIF", quality=70)
        forms["alpha.avif"] = lambda: encode(draw(mode="RGBA"), "AVIF", quality=70)
    return forms


# --- damage -----------------------------------------------------------------------------------------------------------

BROKEN, SOUND = ("undecodable",), (KEPT,)
ANY = (KEPT, "undecodable", "too_small", "too_large", "too_costly", "extreme_ratio")


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


def changed(share: float, bits: int = 0xFF) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        place = min(len(content) - 1, int(len(content) * share))
        return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]

    return change


def zeroed(first: float, last: float) -> Callable[[bytes], bytes]:
    def zero(content: bytes) -> bytes:
        start, stop = int(len(content) * first), int(len(content) * last)
        return content[:start] + bytes(stop - start) + content[stop:]

    return zero


# Damage -> how, and what a file of a known image's name may end as.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "whole": (lambda content: content, SOUND),
    "appended": (lambda content: content + b"<?php echo 1 ?>" * 9, SOUND),
    "zeros_appended": (lambda content: content + bytes(5_000), SOUND),
    "empty": (lambda _: b"", BROKEN),
    "first_bytes": (lambda content: content[:12], BROKEN),
    "cut_10": (cut(0.10), BROKEN),
    "cut_50": (cut(0.50), BROKEN),
    "cut_90": (cut(0.90), BROKEN),
    "prefixed": (lambda content: b"\n" + content, BROKEN),
    "text_prefixed": (lambda content: b"HTTP/1.1 200 OK\r\n\r\n" + content, BROKEN),
    "magic_changed": (changed(0.0), BROKEN),
    "zeroed_start": (zeroed(0.0, 0.2), BROKEN),
    "zeroed_middle": (zeroed(0.4, 0.6), ANY),
    "bit_in_header": (changed(0.03, 0x10), ANY),
    "bit_in_middle": (changed(0.5, 0x01), ANY),
    "byte_near_end": (changed(0.97), ANY),
    "base64_text": (lambda content: content.hex().encode(), BROKEN),
    "utf8_text": (lambda content: content.decode("latin-1").encode(), BROKEN),
    "line_ends": (lambda content: content.replace(b"\n", b"\r\n") + b"\n", ANY),
}


def damaged_files() -> Iterator[Case]:
    """Every form with every damage."""
    for form, make in encoders().items():
        for damage, (apply, rows) in DAMAGES.items():
            yield Case(f"damage/{damage}_{form}", apply(make()), rows)


# --- sizes ------------------------------------------------------------------------------------------------------------

SIZES: dict[tuple[int, int], str] = {
    (1, 1): "too_small",
    (1, 500): "too_small",
    (47, 48): "too_small",
    (48, 47): "too_small",
    (48, 48): KEPT,
    (48, 512): KEPT,
    (511, 513): KEPT,
    (513, 64): KEPT,
    (64, 2_049): KEPT,
    (51, 3_264): KEPT,
    (3_264, 51): KEPT,
    (8_192, 48): "extreme_ratio",
    (48, 8_192): "extreme_ratio",
    (16_000, 100): "extreme_ratio",
    (4_000, 3_000): KEPT,
    (8_000, 6_300): "too_large",
}


def sized_files() -> Iterator[Case]:
    """Sizes around every limit, in each format."""
    for (width, height), row in SIZES.items():
        for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")):
            if kind == "WEBP" and width * height > 13_000_000:
                continue  # seconds to encode, and nothing that PNG does not show
            options = {"compress_level": 1} if kind == "PNG" else {"method": 0} if kind == "WEBP" else {}
            yield Case(f"size/{width}x{height}.{suffix}", encode(draw((width, height)), kind, **options), (row,))


# --- names ------------------------------------------------------------------------------------------------------------

IMAGE_NAMES = (
    "a..",
    "..a.png",
    "...png",
    "a b.jpg",
    " leading.jpg",
    "trailing .jpg",
    "-rf.jpg",
    "$(id).jpg",
    "`id`.jpg",
    "%2e%2e.jpg",
    "a%00b.jpg",
    "quote'.jpg",
    'double".jpg',
    "<script>.jpg",
    "a&amp;b.jpg",
    "semi;colon.jpg",
    "pipe|.jpg",
    "star*.jpg",
    "question?.jpg",
    "[brackets].jpg",
    "{braces}.jpg",
    "hash#1.jpg",
    "colon:here.jpg",
    "back\\slash.jpg",
    "..\\up.jpg",
    "tab\there.jpg",
    "new\nline.jpg",
    "bell\x07.jpg",
    "e\u0301 decomposed.jpg",
    "\u00e9 composed.jpg",
    "\u202ereversed.jpg",
    "\U0001f408 cat.jpg",
    "\u4e2d\u6587.jpg",
    "UPPER.JPG",
    "Mixed.JpEg",
    "no_suffix",
    "two.dots.in.it.jpg",
    ".hidden.jpg",
    "con.jpg",
    "nul",
    "x" * 200 + ".jpg",
    "wrong.gif",
    "wrong.png",
    "wrong.webp",
    "page.html",
    "table.txt",
    "captions.jpg",
)


def named_files() -> Iterator[Case]:
    """Sound JPEGs under every kind of name; and other files under names of images."""
    for name in IMAGE_NAMES:
        yield Case(f"names/{name}", encode(draw(), "JPEG"), SOUND)
    others = {
        "text": b"a text, no image",
        "json": b"{}",
        "pdf": b"%PDF-1.7\n",
        "zip": b"PK\x03\x04" + bytes(60),
        "gzip": b"\x1f\x8b\x08" + bytes(40),
        "elf": b"\x7fELF" + bytes(90),
        "html": b"<!doctype html><html></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "xml": b"<?xml version='1.0'?>",
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(50),
        "gif": encode(draw(mode="P"), "GIF"),
        "bmp": encode(draw(), "BMP"),
        "tiff": encode(draw(), "TIFF"),
        "ico": encode(draw(), "ICO"),
        "ppm": encode(draw(), "PPM"),
    }
    for kind, content in others.items():
        yield Case(f"others/{kind}.jpg", content, BROKEN)
        is_unread = kind in ("gif", "bmp", "tiff")
        yield Case(f"others/{kind}.bin", content, ("unsupported_format" if is_unread else "not_a_picture",))


def files() -> list[Case]:
    """All files of the hostile folder."""
    return [*damaged_files(), *sized_files(), *named_files()]


# --- tars -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarCase:
    """One tar.

    Attributes:
        name: of the case.
        content: the tar.
        kept: its images that must be kept, in order: member names.
        damaged: whether a row must say that the tar is damaged.
    """

    name: str
    content: bytes
    kept: tuple[str, ...]
    damaged: bool


def tar_cases() -> Iterator[TarCase]:
    """Formats of tars, each whole, cut at every kind of place, changed, doubled."""
    names = tuple(f"{n}.jpg" for n in range(4))
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    for kind, number in formats.items():
        members = [(name, encode(draw(), "JPEG")) for name in names]
        content = make_tar(members, number)
        block = 512
        starts, offset = [], 0
        for _, body in members:
            starts.append(offset)
            offset += block + -(-len(body) // block) * block
        yield TarCase(f"{kind}_whole", content, names, False)
        yield TarCase(f"{kind}_no_end", content[:offset], names, True)  # cut at a border
        yield TarCase(f"{kind}_junk_behind", content + b"junk" * 200, names, True)
        yield TarCase(f"{kind}_cut_in_header", content[: starts[2] + 100], names[:2], True)
        yield TarCase(f"{kind}_cut_in_member", content[: starts[2] + block + 700], names[:2], True)
        flipped = bytearray(content)
        flipped[starts[2] + 3] ^= 0x40  # the name: the checksum no longer holds
        yield TarCase(f"{kind}_header_bit", bytes(flipped), (*names[:2], names[3]), True)  # read on behind it
        others = [(f"b{name}", encode(draw(), "JPEG")) for name in names]
        yield TarCase(
            f"{kind}_two_in_one", content + make_tar(others, number), names + tuple(n for n, _ in others), False
        )
        yield TarCase(
            f"{kind}_twice_a_name", make_tar([*members, ("0.jpg", encode(draw(), "JPEG"))], number), names, False
        )
        packed = gzip.compress(content, mtime=0)
        yield TarCase(f"{kind}_gzip", packed, names, False)
        yield TarCase(
            f"{kind}_gzip_in_pieces", gzip.compress(content[:700]) + gzip.compress(content[700:]), names, False
        )
        yield TarCase(f"{kind}_gzip_wrong_sum", packed[:-8] + b"\xff" * 4 + packed[-4:], names, True)
        yield TarCase(f"{kind}_gzip_without_its_sum", packed[:-8], names, True)
        yield TarCase(f"{kind}_gzip_of_a_cut_tar", gzip.compress(content[: starts[2] + 100]), names[:2], True)
        yield TarCase(f"{kind}_gzip_twice", gzip.compress(packed), (), True)
        yield TarCase(f"{kind}_xz", lzma.compress(content), names, False)
        yield TarCase(f"{kind}_bzip2", bz2.compress(content), names, False)
        yield TarCase(
            f"{kind}_hostile_names", make_tar([("../up.jpg", b"x"), ("/abs.jpg", b"x"), *members], number), names, False
        )
    yield TarCase("empty", b"", (), True)
    yield TarCase("text", b"no tar at all" * 99, (), True)
    yield TarCase("zeros", bytes(10_240), (), False)


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableCase:
    """One table of URLs.

    Attributes:
        name: of the file; its suffix says the format.
        content: the file.
        urls: rows with a URL that must be listed.
        rejected: rows that must be listed as rejected ones.
    """

    name: str
    content: bytes
    urls: int
    rejected: int


def table_cases() -> Iterator[TableCase]:
    """Formats of tables with every kind of bad row."""
    urls = [f"https://{n}.example.org/{n}.jpg" for n in range(6)]

    def text(separator: str, rows: list[str], head: str = "url{}caption") -> bytes:
        return "\n".join([head.format(separator), *rows, ""]).encode()

    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        rows = [f"{url}{separator}caption {n}" for n, url in enumerate(urls)]
        yield TableCase(f"whole.{suffix}", text(separator, rows), 6, 0)
        yield TableCase(f"bom.{suffix}", b"\xef\xbb\xbf" + text(separator, rows), 6, 0)
        yield TableCase(f"crlf.{suffix}", text(separator, rows).replace(b"\n", b"\r\n"), 6, 0)
        yield TableCase(f"utf16.{suffix}", text(separator, rows).decode().encode("utf-16"), 6, 0)
        yield TableCase(f"no_url.{suffix}", text(separator, [*rows[:3], f"{separator}no url", *rows[3:]]), 6, 1)
        yield TableCase(f"short_row.{suffix}", text(separator, [*rows, urls[0] + "9"]), 7, 0)
        yield TableCase(f"blank_lines.{suffix}", text(separator, [rows[0], "", *rows[1:]]), 6, 0)
        yield TableCase(f"head_only.{suffix}", text(separator, []), 0, 0)
        yield TableCase(f"head_blanks.{suffix}", text(separator, rows, " url {} caption "), 6, 0)
    lines = [json.dumps({"url": url, "caption": f"c{n}"}) for n, url in enumerate(urls)]

    def jsonl(*more: str, at: int = 3) -> bytes:
        return "\n".join([*lines[:at], *more, *lines[at:], ""]).encode("utf-8", "surrogatepass")

    yield TableCase("whole.jsonl", jsonl(), 6, 0)
    bad_lines = {
        "cut": '{"url": "https://x',
        "array": "[1, 2]",
        "number": "7",
        "text": '"a"',
        "null": "null",
        "not_json": "no json",
        "no_url": '{"caption": "x"}',
        "null_url": '{"url": null}',
        "number_url": '{"url": 7}',
        "empty_url": '{"url": " "}',
        "deep": "[" * 4000 + "]" * 4000,
        "two_objects": '{"url": "a"} {"url": "b"}',
    }
    for name, line in bad_lines.items():
        yield TableCase(f"{name}.jsonl", jsonl(line), 6, 1)
        yield TableCase(f"{name}_last.jsonl", jsonl(line, at=6), 6, 1)
    yield TableCase("invalid_utf8.jsonl", jsonl().replace(b"c4", b"c\xff\xfe"), 5, 1)
    yield TableCase("late_caption.jsonl", b'{"url": "https://a.example/1"}\n' + jsonl(), 7, 0)
    table = pa.table({"url": urls, "caption": pa.array(["a", "b"] * 3).dictionary_encode()})
    for kind, open_writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        for packing in (None, "zstd"):
            sink = pa.BufferOutputStream()
            with open_writer(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=packing)) as writer:
                writer.write_table(table, max_chunksize=2)
            content = bytes(sink.getvalue())
            yield TableCase(f"{kind}_{packing}.arrow", content, 6, 0)
    for packing in ("none", "zstd"):
        parquet = io.BytesIO()
        pq.write_table(table, parquet, row_group_size=2, compression=packing)
        yield TableCase(f"{packing}.parquet", parquet.getvalue(), 6, 0)
    yield TableCase("offset_out_of_the_file.arrow", _with_wild_offset(urls), 5, 1)


def _with_wild_offset(urls: list[str]) -> bytes:
    """An Arrow stream of URLs of which the last one claims to end far behind the file: reading it would crash."""
    sink, column = pa.BufferOutputStream(), pa.array(urls)
    with pa.ipc.new_stream(sink, pa.schema([("url", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([column], names=["url"]))
    content = bytes(sink.getvalue())
    last = len("".join(urls)).to_bytes(4, "little")
    at = content.rindex(last, 0, content.index(urls[0].encode()))
    return content[:at] + (1 << 30).to_bytes(4, "little") + content[at + 4 :]
