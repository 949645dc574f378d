"""Colours as the file states them, in numbers: ICC profiles, PNG's chunks, AVIF's colour box, transparent colours."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tasks.ingest.colour import srgb_transform
from tasks.ingest.colour_signals import PRIMARIES, ColourSignal, clean_aperture, rgb_to_xyz, to_srgb_pixels
from tasks.ingest.decode import decode_image
from tasks.ingest.rules import NormalizationRules
from tests.support.images import encode

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "ingest"
RAMP = np.arange(256, dtype=np.uint8).repeat(4).reshape(1, -1).repeat(48, 0)[:, ::2]  # (48, 512)


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(Image.open(io.BytesIO(content)), content, NormalizationRules())).astype(int)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    return png[:33] + b"".join(chunks) + png[33:]


def srgb_level(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055) * 255


def icc(gamma: float, name: str, *, primaries: tuple[float, ...] = PRIMARIES[1], is_grey: bool = False) -> bytes:
    """A minimal ICC profile, version 2: a curve of one exponent, D50 as its connection space asks."""
    d50 = (0.3457, 0.3585)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    fixed = lambda v: struct.pack(">i", round(v * 65536))  # noqa: E731
    xyz = lambda v: b"XYZ \0\0\0\0" + b"".join(map(fixed, v))  # noqa: E731
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 79
    tags = {b"desc": description, b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"cprt": b"text\0\0\0\0CC0\0"}
    if is_grey:
        tags[b"kTRC"] = curve
    else:
        bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
        white, target = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in ((0.3127, 0.329), d50))
        adapt = np.linalg.inv(bradford) @ np.diag((bradford @ target) / (bradford @ white)) @ bradford
        matrix = adapt @ rgb_to_xyz(primaries)
        for number, letter in enumerate((b"r", b"g", b"b")):
            tags[letter + b"XYZ"], tags[letter + b"TRC"] = xyz(matrix[:, number]), curve
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += tag + struct.pack(">II", at + len(body), len(value))
        body += value
    rest = struct.pack(">I", len(tags)) + table + body
    space = b"GRAY" if is_grey else b"RGB "
    header = struct.pack(">I", 128 + len(rest)) + b"lcms\x02\x10\0\0mntr" + space + b"XYZ " + b"\0" * 12 + b"acsp"
    header = (header + b"\0" * 28).ljust(68, b"\0") + xyz((0.9642, 1.0, 0.8249))[8:]
    return header.ljust(128, b"\0") + rest


@pytest.mark.parametrize("name", ["sRGB", "GIMP built-in Linear sRGB", "Adobe RGB"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_linear_profile_is_converted_whatever_its_name(name: str, kind: str):
    image = Image.fromarray(np.stack([RAMP] * 3, -1))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(encode(image, kind, icc_profile=icc(1.0, name), **options))
    assert np.abs(found[0] - srgb_level(RAMP[0] / 255)[:, None]).max() <= 3


def test_a_profile_that_is_srgb_by_its_numbers_changes_no_pixel():
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert srgb_transform(own, "RGB") is None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    assert np.array_equal(decoded(encode(image, "PNG", icc_profile=own)), np.asarray(image))


def test_a_grey_profile_and_a_grey_image_with_a_colour_profile_are_converted():
    grey = Image.fromarray(RAMP)
    expected = srgb_level(RAMP[0] / 255)[:, None]
    for profile in (icc(1.0, "grey", is_grey=True), icc(1.0, "camera")):
        assert np.abs(decoded(encode(grey, "PNG", icc_profile=profile))[0] - expected).max() <= 3
        assert np.abs(decoded(encode(grey, "JPEG", quality=100, icc_profile=profile))[0] - expected).max() <= 8


@pytest.mark.parametrize(
    "profile",
    [b"noise" * 50, icc(1.0, "x")[:200], ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()],
    ids=["noise", "cut", "Lab"],
)
def test_a_damaged_profile_and_one_of_another_space_count_as_srgb(profile: bytes):
    image = Image.fromarray(np.stack([RAMP] * 3, -1))
    assert np.array_equal(decoded(encode(image, "PNG", icc_profile=profile)), np.asarray(image))


def test_cmyk_jpegs_of_both_transforms_are_told_by_their_marker():
    """Pillow writes Adobe's inverted CMYK; transform 2 (YCCK) is told by the same marker."""
    colour = Image.new("RGB", (64, 64), (200, 60, 40)).convert("CMYK")
    found = decoded(encode(colour, "JPEG", quality=98))
    assert np.abs(found[32, 32] - np.array([200, 60, 40])).max() <= 4


@pytest.mark.parametrize("gamma", [1.0, 0.55, 0.7])
def test_gama_is_converted(gamma: float):
    image = Image.fromarray(np.stack([RAMP] * 3, -1))
    content = with_chunks(encode(image, "PNG"), chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))))
    assert np.abs(decoded(content)[0] - srgb_level((RAMP[0] / 255) ** (1 / gamma))[:, None]).max() <= 1


def test_gama_of_srgb_and_gama_beside_srgb_or_a_profile_change_nothing():
    image = Image.fromarray(np.stack([RAMP] * 3, -1))
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    for content in (
        with_chunks(encode(image, "PNG"), chunk(b"gAMA", struct.pack(">I", 45_455))),
        with_chunks(encode(image, "PNG"), chunk(b"sRGB", b"\0"), linear),
        with_chunks(encode(image, "PNG"), chunk(b"gAMA", struct.pack(">I", 0))),
    ):
        assert np.array_equal(decoded(content), np.asarray(image))


def test_primaries_of_chrm_and_cicp_are_converted():
    """P3's red is outside sRGB and clipped; a mixed colour has the value of the matrices."""
    image = Image.new("RGB", (64, 64), (150, 120, 90))
    linear = ((np.array([150, 120, 90]) / 255 + 0.055) / 1.055) ** 2.4
    matrix = np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]])  # P3 to sRGB
    expected = srgb_level(matrix @ linear)
    chrm = chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in PRIMARIES[12])))
    for extra in (chrm, chunk(b"cICP", bytes([12, 13, 0, 1]))):
        assert np.abs(decoded(with_chunks(encode(image, "PNG"), extra))[30, 30] - expected).max() <= 1
    assert np.array_equal(decoded(with_chunks(encode(image, "PNG"), chunk(b"cICP", bytes([1, 13, 0, 1])))), image)


@pytest.mark.parametrize(("curve", "level"), [(16, 0.5807), (18, 0.75)])
def test_hdr_shows_its_reference_white_as_white(curve: int, level: float):
    """203 cd/m2 is 58% of PQ and 75% of HLG (BT.2408)."""
    value = round(level * 255)
    image = Image.new("RGB", (64, 64), (value,) * 3)
    found = decoded(with_chunks(encode(image, "PNG"), chunk(b"cICP", bytes([9, curve, 0, 1]))))
    assert found.min() >= 250
    darker = to_srgb_pixels(np.full((1, 1, 3), value // 2, np.uint8), ColourSignal(PRIMARIES[9], curve))
    assert 20 < darker.max() < 200 and np.ptp(darker) <= 1, "grey stays grey"


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_a_transparent_grey_level_of_every_depth_is_white(depth: int):
    rows = b""
    for _ in range(64):
        levels = [1 if x < 32 else 0 for x in range(64)]
        if depth == 16:
            rows += b"\0" + b"".join(struct.pack(">H", level * 0x1234) for level in levels)
        else:
            bits = "".join(format(level, f"0{depth}b") for level in levels)
            rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    clear = 0x1234 if depth == 16 else 1
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, depth, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", struct.pack(">H", clear))
    found = decoded(content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert found[:, :32].min() == 255 and found[:, 32:].max() == 0


def test_a_transparent_colour_of_16_bits_is_white():
    pixel, other = struct.pack(">3H", 0x1200, 0x3400, 0x5600), struct.pack(">3H", 0x8000, 0x8000, 0x8000)
    rows = (b"\0" + pixel * 32 + other * 32) * 64
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", pixel) + chunk(b"IDAT", zlib.compress(rows))
    found = decoded(content + chunk(b"IEND", b""))
    assert found[:, :32].min() == 255 and found[:, 32:].max() == 128


def test_a_clean_aperture_is_read():
    """Its numbers are fractions: width, height, and how far its middle lies from the image's."""
    box = struct.pack(">I4s8i", 40, b"clap", 60, 1, 40, 1, -10, 1, 5, 1)
    assert clean_aperture(b"ftyp" + box, 100, 80) == (10, 25, 70, 65)
    assert clean_aperture(b"ftyp", 100, 80) is None
    assert clean_aperture(b"ftyp" + box, 50, 30) is None, "outside the image"


def test_the_cases_are_converted():
    if not CASES.exists():
        pytest.skip(f"cases 11 and 17: {CASES} is not there; the generated files above are their twins")
    truth = np.asarray(Image.open(CASES / "truth_ramp.png").convert("RGB")).astype(int)
    found = decoded((CASES / "11_icc_gimp_linear.png").read_bytes())
    assert np.abs(found - truth).mean() <= 2
    plain = np.asarray(Image.open(CASES / "17_png_gama_1.png").convert("RGB")).astype(int)
    assert np.abs(decoded((CASES / "17_png_gama_1.png").read_bytes()) - srgb_level(plain / 255)).max() <= 1
    grey = np.asarray(Image.open(CASES / "17_avif_pq.avif").convert("RGB")).astype(int)
    assert np.abs(decoded((CASES / "17_avif_pq.avif").read_bytes()) - grey).max() > 20
