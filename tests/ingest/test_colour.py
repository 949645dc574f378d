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
from tasks.ingest.decode import TRANSPOSES, decode_image
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


PRINTED = (200, 60, 40)


def cmyk_jpeg(colour: tuple[int, int, int], *, is_ycck: bool = False, **options: object) -> bytes:
    """A JPEG of four channels in one colour, with Adobe's marker; Pillow writes no YCCK, so its numbers are ours."""
    image = Image.new("RGB", (64, 64), colour).convert("CMYK")
    if is_ycck:  # of C, M, Y as if they were R, G, B; Pillow inverts what it writes
        *ink, black = (np.asarray(channel) for channel in image.split())
        ycc = Image.fromarray(np.stack(ink, -1)).convert("YCbCr").split()
        planes = [*(255 - np.asarray(plane) for plane in ycc), black]
        image = Image.merge("CMYK", [Image.fromarray(plane.astype(np.uint8)) for plane in planes])
    content = encode(image, "JPEG", quality=98, subsampling=0, **options)
    at = content.index(b"Adobe") + 11
    return content[:at] + bytes([2 if is_ycck else 0]) + content[at + 1 :]


@pytest.mark.parametrize("is_ycck", [False, True])
def test_cmyk_jpegs_of_both_transforms_are_told_by_their_marker(is_ycck: bool):
    assert np.abs(decoded(cmyk_jpeg(PRINTED, is_ycck=is_ycck))[32, 32] - PRINTED).max() <= 4


def press_profile() -> tuple[bytes, np.ndarray]:
    """An ICC profile of a press, a table of two points an ink, and the Lab of its 16 overprints, (2, 2, 2, 2, 3).

    Paper is yellowish, black a dark grey: far from Pillow's formula.
    """
    ink = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1)
    lightness = 93 - ink @ np.array([30, 35, 5, 60])
    a, b = ink @ np.array([-20, 45, -3, 0]), 8 + ink @ np.array([-28, -5, 40, -6])
    lab = np.stack([lightness.clip(12), a.clip(-90, 90), b.clip(-90, 90)], -1)
    table = np.stack([lab[..., 0] * 2.55, lab[..., 1] + 128, lab[..., 2] + 128], -1).round().astype(np.uint8)
    ramp = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 if n % 4 == 0 else 0) for n in range(9))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + table.tobytes() + ramp * 3
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 6) + b"press\0" + b"\0" * 79,
        b"A2B0": lut,
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
    }
    at, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        entries += tag + struct.pack(">II", at + len(body), len(value))
        body += value
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + white
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body, lab


@pytest.mark.parametrize("is_ycck", [False, True])
def test_cmyk_and_ycck_with_a_profile_have_its_colours(is_ycck: bool):
    profile, lab = press_profile()
    for ink, rgb in (((1, 0, 0, 0), (0, 255, 255)), ((0, 1, 1, 0), (255, 0, 0)), ((0, 0, 1, 0), (255, 255, 0))):
        space = ImageCms.createProfile("LAB")
        to_rgb = ImageCms.buildTransform(space, ImageCms.createProfile("sRGB"), "LAB", "RGB")
        level = (round(lab[ink][0] * 2.55), round(lab[ink][1]) + 128, round(lab[ink][2]) + 128)
        expected = ImageCms.applyTransform(Image.new("LAB", (1, 1), level), to_rgb)
        assert expected is not None
        found = decoded(cmyk_jpeg(rgb, is_ycck=is_ycck, icc_profile=profile))[32, 32]
        assert np.abs(found - np.asarray(expected, int)[0, 0]).max() <= 20  # perceptual: black is stretched
        assert np.abs(found - rgb).max() > 30, "not Pillow's formula"


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


def find_boxes(content: bytes, start: int, stop: int) -> dict[bytes, tuple[int, int]]:
    """Kind -> (begin, end) of the boxes of ISO BMFF in this range."""
    boxes = {}
    while start + 8 <= stop:
        end = start + int.from_bytes(content[start : start + 4], "big")
        boxes[content[start + 4 : start + 8]] = (start, end)
        start = end
    return boxes


def with_aperture(avif: bytes, box: bytes) -> bytes:
    """An AVIF as Pillow writes it, with a clean aperture before its rotation and mirror."""
    outer = find_boxes(avif, 0, len(avif))
    inner = find_boxes(avif, outer[b"meta"][0] + 12, outer[b"meta"][1])
    lists = find_boxes(avif, inner[b"iprp"][0] + 8, inner[b"iprp"][1])
    properties = find_boxes(avif, lists[b"ipco"][0] + 8, lists[b"ipco"][1])
    first = lists[b"ipma"][0] + 19  # the first association; before it, how many
    count = avif[first - 1]
    turns = sum(kind in (b"irot", b"imir") for kind in properties)
    own = list(avif[first : first + count])
    links = bytes([*own[: count - turns], 0x80 | (len(properties) + 1), *own[count - turns :]])
    out = bytearray(avif[: lists[b"ipco"][1]] + box + avif[lists[b"ipco"][1] : first - 1])
    out += bytes([count + 1]) + links + avif[first + count :]
    added = len(box) + 1
    for at, grown in (
        (lists[b"ipma"][0] + len(box), 1),
        (lists[b"ipco"][0], len(box)),
        (inner[b"iprp"][0], added),
        (outer[b"meta"][0], added),
        (inner[b"iloc"][1] - 8, added),  # of its only item, the offset
    ):
        out[at : at + 4] = (int.from_bytes(out[at : at + 4], "big") + grown).to_bytes(4, "big")
    return bytes(out)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("has_aperture", [False, True])
def test_an_avif_is_cropped_turned_and_mirrored_as_its_boxes_say(orientation: int, has_aperture: bool):
    """Pillow writes EXIF's orientation as `irot` and `imir`; the aperture is that of the image before them."""
    image = Image.new("RGB", (160, 100), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 70, 50))
    image.paste((255, 255, 255), (100, 60, 160, 100))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(image, "AVIF", exif=exif, quality=95)
    assert (b"irot" in content or b"imir" in content) == (orientation > 1)
    if has_aperture:
        content = with_aperture(content, struct.pack(">I4s8i", 40, b"clap", 100, 1, 80, 1, 10, 1, -10, 1))
        image = image.crop((40, 0, 140, 80))
    upright = image.transpose(TRANSPOSES[orientation]) if orientation > 1 else image
    found = decoded(content)
    assert found.shape == np.asarray(upright).shape
    assert np.abs(found - np.asarray(upright, int)).mean() < 8  # colour at edges is coarse


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
