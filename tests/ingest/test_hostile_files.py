"""Generated hostile files: each ends as the expected row, and a worker contains whatever a file does."""

import csv
import io
import json
import os
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, features

from tasks.ingest import stage as ingest
from tasks.ingest import workers as workers_module
from tasks.ingest.normalize import normalize_image
from tasks.ingest.png import ADAM7, CHANNELS, count_row_bytes
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.ingest.workers import ImageWorkers
from tasks.sources.files import clean_text
from tasks.store import Store
from tests.support.images import block_image, encode, without_palette
from tests.support.ingest import folder_params, read_drop_reasons, read_kept

KEPT = "kept"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    rows: int | None = None,
    fill: bytes = b"\0",
    interlaced: int = 0,
) -> bytes:
    """A PNG whose rows are all alike, truly there (a bomb: small file, many pixels)."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = height if rows is None else rows
    row = b"\0" + fill * ((width * channels * depth + 7) // 8) if rows else b""
    packer, body = zlib.compressobj(9), []
    for _ in range(rows):
        body.append(packer.compress(row))
    body.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(body)) + chunk(b"IEND", b"")


def with_chunk(content: bytes, extra: bytes) -> bytes:
    """The PNG with another chunk behind its header."""
    end = 8 + len(chunk(b"IHDR", b"\0" * 13))
    return content[:end] + extra + content[end:]


def jpeg_stating(width: int, height: int) -> bytes:
    """A JPEG whose header states another size."""
    content = bytearray(encode(block_image(700), "JPEG"))
    place = next(n for n in range(len(content)) if content[n : n + 2] in (b"\xff\xc0", b"\xff\xc2"))
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def webp_stating(width: int, height: int) -> bytes:
    """A lossless WebP's header alone, of another size."""
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + b"\0\0\0\0"
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def with_end_marker(jpeg: bytes, keep: int) -> bytes:
    """A truncated JPEG with an end marker appended."""
    assert keep < len(jpeg) - 100
    return jpeg[:keep] + b"\xff\xd9"


def riff(webp: bytes) -> bytes:
    """A truncated WebP of one chunk, with corrected lengths."""
    return webp[:4] + struct.pack("<I", len(webp) - 8) + webp[8:16] + struct.pack("<I", len(webp) - 20) + webp[20:]


def with_black_rows(image: Image.Image) -> Image.Image:
    """The image with its lower rows black."""
    image.paste((0, 0, 0), (0, image.height - 20, image.width, image.height))
    return image


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags.get_ifd(0x8825)[1] = "N"  # GPS
    return tags


def hostile_files() -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, KEPT or the drop reason). Images have different seeds, so that none is a copy of another."""
    seeds = iter(range(100, 200))
    new = lambda *size: block_image(next(seeds), *size)  # noqa: E731
    jpeg, png_, webp = encode(new((300, 200)), "JPEG"), encode(new((300, 200)), "PNG"), encode(new((300, 200)), "WEBP")
    tiff, gif, bmp = encode(new(), "TIFF"), encode(new(), "GIF"), encode(new(), "BMP")
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "<script>alert(1)</script>" * 100, zip=True)
    grey16 = Image.fromarray(
        np.random.default_rng(1).integers(0, 2**16, (6, 6)).repeat(20, 0).repeat(20, 1).astype(np.uint16)
    )
    frames = [new(), new(), new()]
    clear = new((120, 100)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    files: dict[str, tuple[bytes, str]] = {
        "empty.jpg": (b"", "undecodable"),
        "zeros.png": (b"\0" * 5_000, "undecodable"),
        "html.jpg": (b"<!doctype html><html><script>alert(1)</script>", "undecodable"),
        "json.webp": (b'{"error": 404}', "undecodable"),
        "notes.txt": (b"hello", "not_a_picture"),
        "code.pkl": (b"cos\nsystem\n(S'true'\ntR.", "not_a_picture"),
        "zip.jpg": (b"PK\x03\x04" + b"\0" * 500, "undecodable"),
        "elf.png": (b"\x7fELF" + b"\1" * 500, "undecodable"),
        "fits.jpg": (b"SIMPLE  =                    T".ljust(2880), "undecodable"),
        "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(%pipe%id) (r) file\n", "undecodable"),
        "pdf.png": (b"%PDF-1.7\n1 0 obj\n", "undecodable"),
        "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "undecodable"),
        "tiff.jpg": (tiff, "undecodable"),
        "gif.png": (gif, "undecodable"),
        "bmp.jpg": (bmp, "undecodable"),
        "psd.jpg": (b"8BPS\0\1" + b"\0" * 200, "undecodable"),
        "ico.png": (encode(new((64, 64)), "ICO"), "undecodable"),
        "ppm.jpg": (encode(new(), "PPM"), "undecodable"),
        "plain.tiff": (tiff, "unsupported_format"),
        "plain.gif": (gif, "unsupported_format"),
        # suffixes of another format: the bytes decide
        "png_named.jpg": (png_, KEPT),
        "jpeg_named.png": (jpeg, KEPT),
        "webp_named.txt": (webp, KEPT),
        # polyglots: a good image with something else behind it; what is stored holds the pixels alone
        "polyglot_zip.jpg": (encode(new(), "JPEG") + b"PK\x03\x04" + b"\0" * 300, KEPT),
        "polyglot_php.png": (encode(new(), "PNG") + b"<?php system($_GET[0]); ?>", KEPT),
        "polyglot_html.jpg": (encode(new(), "JPEG", comment=b"<script>alert(1)</script>"), KEPT),
        # cut and damaged
        "cut_half.jpg": (encode(new((400, 400)), "JPEG")[:4_000], "undecodable"),
        "cut_half.png": (png_[: len(png_) // 2], "undecodable"),
        "cut_half.webp": (webp[: len(webp) // 2], "undecodable"),
        "cut_header.jpg": (jpeg[:20], "undecodable"),
        "cut_header.png": (png_[:20], "undecodable"),
        "cut_header.webp": (webp[:14], "undecodable"),
        "magic_only.jpg": (b"\xff\xd8\xff", "undecodable"),
        "no_rows.png": (png(300, 300, rows=0), "undecodable"),
        "no_palette.png": (without_palette(), "undecodable"),
        "bad_crc.png": (png_[:40] + b"\xff" + png_[41:], "undecodable"),
        # truncated, with an end marker: decoders silently fill in what is missing
        "few_rows.png": (png(300, 300, rows=10), "undecodable"),
        "few_rows_interlaced.png": (png(300, 300, rows=299, fill=b"\x40", interlaced=1), "undecodable"),
        "no_end.png": (png_[:-12], "undecodable"),
        "bad_rows_crc.png": (png_[:-17] + bytes([png_[-17] ^ 1]) + png_[-16:], "undecodable"),
        "cut_mended.jpg": (with_end_marker(encode(new((400, 400)), "JPEG"), 5_000), "undecodable"),
        "cut_mended_progressive.jpg": (
            with_end_marker(encode(new((900, 900)), "JPEG", progressive=True), 20_000),
            "undecodable",
        ),
        "cut_mended_grey.jpg": (with_end_marker(encode(new((400, 400)).convert("L"), "JPEG"), 4_000), "undecodable"),
        "cut_mended_cmyk.jpg": (with_end_marker(encode(new((400, 400)).convert("CMYK"), "JPEG"), 5_000), "undecodable"),
        "cut_mended.webp": (riff(webp[: len(webp) // 4 * 2]), "undecodable"),
        "no_end.jpg": (jpeg[:-2], "undecodable"),
        "black_foot.png": (
            encode(with_black_rows(new((200, 200))), "PNG"),
            KEPT,
        ),  # a whole image may end in rows of zeros
        "black_foot_palette.png": (encode(with_black_rows(new((200, 200))).quantize(8), "PNG"), KEPT),
        "padded.jpg": (encode(new((200, 200)), "JPEG")[:-2] + b"\0\0\xff\xd9", KEPT),  # some encoders do
        # bombs
        "bomb_170mpx.png": (png(13_040, 13_040), "too_large"),
        "bomb_900mpx.png": (png(30_000, 30_000, colour=0, depth=1), "too_large"),
        "bomb_header.png": (png(2**31 - 1, 2**31 - 1, rows=0), "too_large"),
        "bomb_says.jpg": (jpeg_stating(65_000, 65_000), "too_large"),
        "bomb_says.webp": (webp_stating(16_383, 16_383), "too_large"),
        "bomb_says_more.webp": (webp_stating(1 << 24, 1 << 24), "too_large"),
        "bomb_text.png": (
            with_chunk(png(64, 64), chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 80_000_000, 9))),
            "undecodable",
        ),
        "bomb_profile.png": (
            with_chunk(png(64, 64), chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 9))),
            "undecodable",
        ),
        "says_zero.png": (png(0, 0, rows=0), "undecodable"),
        # an end marker in its place: libjpeg fills up with grey
        "says_more.jpg": (jpeg_stating(4_000, 4_000), "undecodable"),
        # sizes
        "one_pixel.png": (png(1, 1), "too_small"),
        "line.png": (png(1, 20_000), "too_small"),
        "flat.png": (png(20_000, 47), "too_small"),
        "long.png": (encode(new((3_000, 60)), "PNG"), KEPT),
        "large.png": (encode(new((5_000, 4_000)), "PNG"), KEPT),
        # modes
        "grey16.png": (encode(grey16, "PNG"), KEPT),
        "rgb16.png": (png(80, 80, depth=16, fill=b"\x80"), KEPT),
        "bilevel.png": (encode(new((90, 90)).convert("1"), "PNG"), KEPT),
        "palette.png": (encode(new((90, 90)).quantize(16), "PNG"), KEPT),
        "palette_clear.png": (encode(new((90, 90)).quantize(16), "PNG", transparency=3), KEPT),
        "alpha.png": (encode(clear, "PNG"), KEPT),
        "grey_alpha.png": (encode(new((90, 90)).convert("LA"), "PNG"), KEPT),
        "cmyk.jpg": (encode(new((90, 90)).convert("CMYK"), "JPEG"), KEPT),
        "grey.jpg": (encode(new((90, 90)).convert("L"), "JPEG"), KEPT),
        "progressive.jpg": (encode(new((900, 700)), "JPEG", progressive=True), KEPT),
        # animations: the first frame
        "animated.webp": (encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), KEPT),
        "animated.png": (encode(new(), "PNG", save_all=True, append_images=[new(), new()]), KEPT),
        # metadata
        "turned.jpg": (encode(new((200, 100)), "JPEG", exif=exif(6)), KEPT),
        "turned_9.jpg": (encode(new((200, 100)), "JPEG", exif=exif(9)), KEPT),
        "broken_exif.jpg": (encode(new((200, 100)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), KEPT),
        "text.png": (encode(new(), "PNG", pnginfo=text), KEPT),
        "profile_lab.jpg": (encode(new(), "JPEG", icc_profile=profile), KEPT),
        "profile_noise.jpg": (encode(new(), "JPEG", icc_profile=b"noise" * 50), KEPT),
        # names
        "new\nline.jpg": (encode(new(), "JPEG"), KEPT),
        "quote\"'<script>.jpg": (encode(new(), "JPEG"), KEPT),
        "\u202egpj.bidi.jpg": (encode(new(), "JPEG"), KEPT),
        "control\x07\x1b[31m.jpg": (encode(new(), "JPEG"), KEPT),
        "-rf.jpg": (encode(new(), "JPEG"), KEPT),
    }
    if features.check("avif"):
        avif = encode(new((120, 120)), "AVIF", quality=70)
        files |= {"image.avif": (avif, KEPT), "cut.avif": (avif[: len(avif) // 2], "undecodable")}
    return files


@pytest.mark.slow
def test_every_hostile_file_ends_as_the_expected_row(tmp_path: Path):
    files = hostile_files()
    assert len(files) >= 60
    source = tmp_path / "source"
    source.mkdir()
    for name, (content, _) in files.items():
        (source / name).write_bytes(content)
    with open(source / "captions.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(("path", "caption", "licence", "source"))
        writer.writerow(("turned.jpg", "a\r\nb\x00\x1b[31m\u202e<script>\"'", "CC0-1.0", "x"))
        writer.writerow(("alpha.png", "word " * 210_000, "CC0-1.0", "x"))  # 1 MiB
    store = Store(tmp_path / "run")
    report = ingest.run(folder_params(source, hash_distance_bits=0, thumbnail_distance=0.0), store)
    kept, dropped = read_kept(store), read_drop_reasons(store)
    ended = dict.fromkeys(kept, KEPT) | dropped
    wanted = {name: reason for name, (_, reason) in files.items()}
    plain = {name: reason for name, reason in wanted.items() if name.isprintable()}
    assert {name: reason for name, reason in ended.items() if name in plain and reason != plain[name]} == {}
    # control characters in names are written out
    odd = {name: reason for name, reason in ended.items() if name not in plain}
    assert (
        len(ended) == len(files)
        and len(odd) == 3
        and set(odd.values()) == {KEPT}
        and all(name.isprintable() for name in odd)
    ), odd
    assert set(dropped.values()) <= set(ingest.REASONS)
    assert report.read == len(files) == report.written + sum(report.dropped.values())
    for row in kept.values():
        content = store.read_image_bytes(row["image_id"])
        image = Image.open(io.BytesIO(content))
        assert (
            image.format == "JPEG"
            and max(image.size) <= 512
            and set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        )
        assert (
            not image.getexif()
            and b"<script" not in content
            and b"<?php" not in content
            and b"PK\x03\x04" not in content
        )
    assert (kept["turned.jpg"]["width_px"], kept["turned.jpg"]["height_px"]) == (100, 200)
    assert (kept["turned_9.jpg"]["width_px"], kept["turned_9.jpg"]["height_px"]) == (200, 100)
    assert kept["turned.jpg"]["caption"] == clean_text(kept["turned.jpg"]["caption"]) == "a b [31m<script>\"'"
    assert len(kept["alpha.png"]["caption"]) <= 2_000
    assert (
        kept["long.png"]["has_extreme_ratio"] and kept["rgb16.png"]["is_near_empty"] and kept["rgb16.png"]["is_blurry"]
    )
    for row in store.read_dropped("ingest").to_pylist():
        assert row["key"].startswith("mine:") and len(json.loads(row["detail"])["sha256"]) == 64


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), st.floats(0.3, 0.98), st.integers(0, 7))
def test_a_truncated_file_is_rejected_also_with_an_end_marker(which: int, share: float, bit: int):
    """And a PNG with one bit changed, for PNG alone has checksums."""
    format, options = (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    )[which]
    noise = Image.fromarray(np.random.default_rng(which).integers(0, 256, (60, 60, 3), dtype=np.uint8)).resize(
        (150, 150), Image.Resampling.BICUBIC
    )
    whole = encode(noise, format, **options)
    keep = int(share * len(whole)) // 2 * 2
    assert isinstance(normalize_image(whole, is_named_image=True, rules=NormalizationRules()), NormalizedImage)
    cut = {"JPEG": with_end_marker, "PNG": lambda w, k: w[:k] + chunk(b"IEND", b""), "WEBP": lambda w, k: riff(w[:k])}[
        format
    ](whole, keep)
    result = normalize_image(cut, is_named_image=True, rules=NormalizationRules())
    assert isinstance(result, Rejection) and result.reason == "undecodable"
    if format == "PNG":
        changed = whole[:keep] + bytes([whole[keep] ^ 1 << bit]) + whole[keep + 1 :]
        assert isinstance(normalize_image(changed, is_named_image=True, rules=NormalizationRules()), Rejection)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([(0, 1), (0, 4), (0, 16), (2, 8), (3, 2), (4, 8), (6, 16)])
)
def test_rows_of_interlaced_pngs_are_counted_as_the_format_lays_them_out(
    width: int, height: int, kind: tuple[int, int]
):
    """The naive form: every pixel belongs to the first of the seven passes that hits it."""
    colour, depth = kind
    pattern = np.zeros((8, 8), int)
    for number in reversed(range(7)):
        left, top, across, down = ADAM7[number]
        pattern[top::down, left::across] = number
    passes: dict[int, set[int]] = {}
    pixels: dict[int, int] = {}
    for y, x in np.ndindex(height, width):
        number = int(pattern[y % 8, x % 8])
        passes.setdefault(number, set()).add(y)
        pixels[number] = pixels.get(number, 0) + 1
    naive = sum(
        len(rows) * (1 + -(-(pixels[number] // len(rows)) * CHANNELS[colour] * depth // 8))
        for number, rows in passes.items()
    )
    assert count_row_bytes(width, height, depth, colour, is_interlaced=True) == naive
    assert count_row_bytes(width, height, depth, colour, is_interlaced=False) == height * (
        1 + -(-width * CHANNELS[colour] * depth // 8)
    )


def test_a_worker_limits_memory_and_time():
    """Twelve megapixels with alpha need more than 64 MiB; noise of the same size takes more than 30 ms."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (700, 700, 3), dtype=np.uint8))
    large, slow, good = (
        png(4_000, 3_000, colour=6),
        encode(noise.resize((2_800, 2_800)), "JPEG", quality=95),
        encode(block_image(1), "PNG"),
    )
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=64, cpu_s=20) as workers:
        result = workers.read(large, is_named_image=True)
        assert isinstance(result, Rejection) and result.reason == "too_costly" and "memory" in result.detail
        assert isinstance(workers.read(good, is_named_image=True), NormalizedImage)
        peak_kib = next(
            int(line.split()[1])
            for line in Path(f"/proc/{workers.pids()[0]}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        assert peak_kib < 200 * 1024
    with ImageWorkers(NormalizationRules(max_side_px=4_000), count=1, memory_mib=420, cpu_s=0.03) as workers:
        result = workers.read(slow, is_named_image=True)
        assert isinstance(result, Rejection) and result.reason == "too_costly" and "CPU-seconds" in result.detail
        assert isinstance(workers.read(good, is_named_image=True), NormalizedImage)  # by a new worker


def test_a_killed_worker_costs_only_a_second_try():
    good = encode(block_image(1), "PNG")
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        first = workers.read(good, is_named_image=True)
        os.kill(workers.pids()[0], signal.SIGKILL)
        assert workers.read(good, is_named_image=True) == first


def test_a_decoder_that_crashes_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every worker ends by SIGSEGV: the file is rejected with that reason."""
    package = tmp_path / "tasks" / "ingest"
    package.mkdir(parents=True)
    (package / "workers.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(workers_module, "ROOT", tmp_path)
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        result = workers.read(encode(block_image(1), "PNG"), is_named_image=True)
    assert result == Rejection("undecodable", "the decoder crashed over it, twice (SIGSEGV)", is_costly=True)


def test_workers_start_from_any_folder_and_import_nothing_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("tasks", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        assert isinstance(workers.read(encode(block_image(1), "PNG"), is_named_image=True), NormalizedImage)


def test_workers_have_neither_torch_nor_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        workers.read(encode(block_image(1), "PNG"), is_named_image=True)
        pid = workers.pids()[0]
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
