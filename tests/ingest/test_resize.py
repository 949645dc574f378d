"""The stored image is as near to a float Lanczos filter of the full decode as Pillow's `thumbnail`, or nearer."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks.ingest.decode import decode_image
from tasks.ingest.normalize import normalize_image
from tasks.ingest.resize import shrink
from tasks.ingest.rules import NormalizationRules, NormalizedImage

CASE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "ingest" / "08_detail_1040x784.jpg"


def detailed(width: int, height: int, seed: int = 0) -> Image.Image:
    """Lines, letters and noise at every scale, most of it finer than the stored image can show."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width), 128, np.uint8)
    for _ in range(width * height // 600):
        start = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        end = (start[0] + int(rng.integers(-30, 31)), start[1] + int(rng.integers(-30, 31)))
        cv2.line(pixels, start, end, int(rng.integers(0, 256)), int(rng.integers(1, 4)), cv2.LINE_AA)
    noisy = pixels + rng.normal(0, 6, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB")


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def psnr_db(image: Image.Image, content: bytes) -> float:
    """Against a float Lanczos filter of the file's full decode."""
    source = Image.open(io.BytesIO(content)).convert("RGB")
    reference = [np.asarray(c.convert("F").resize(image.size, Image.Resampling.LANCZOS)) for c in source.split()]
    error = np.asarray(image.convert("RGB"), np.float64) - np.stack(reference, -1).clip(0, 255)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def thumbnail(content: bytes, side: int) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.thumbnail((side, side))
    return image


def area(content: bytes, size: tuple[int, int]) -> Image.Image:
    """As img2dataset shrinks."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


# width, height: factors to 256 px of 1.25 to 8; odd sizes, which no decoder's scale divides; upright
SHAPES = ((320, 240), (400, 300), (520, 392), (513, 385), (640, 480), (801, 601), (900, 675), (1030, 771), (600, 1000))
RULES = {
    "pillow": NormalizationRules(max_side_px=256),
    "simd": NormalizationRules(max_side_px=256, resampler="simd", jpeg_subsampling="4:2:0"),
}


@pytest.mark.parametrize("resampler", RULES)
@pytest.mark.parametrize("shape", [*SHAPES, (1601, 1203), (2048, 1536)])
def test_pixels_are_nearer_to_lanczos_than_those_of_thumbnail_and_area(shape: tuple[int, int], resampler: str):
    content = jpeg(detailed(*shape))
    made = decode_image(Image.open(io.BytesIO(content)), content, RULES[resampler])
    ours = psnr_db(made, content)
    assert ours >= psnr_db(thumbnail(content, 256), content) - 0.01, "Pillow's own filter may be the same decode"
    assert ours >= psnr_db(area(content, made.size), content) + 1


@pytest.mark.parametrize("kind", ["grey", "progressive", "4:4:4", "turned", "PNG"])
def test_every_kind_of_file_is_shrunk_as_well(kind: str):
    image = detailed(801, 601)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"progressive": {"progressive": True}, "4:4:4": {"subsampling": "4:4:4"}, "turned": {"exif": exif}}
    out = io.BytesIO()
    source = image.convert("L") if kind == "grey" else image
    source.save(out, "PNG" if kind == "PNG" else "JPEG", **options.get(kind, {}))
    content = out.getvalue()
    for rules in RULES.values():
        made = decode_image(Image.open(io.BytesIO(content)), content, rules)
        if kind == "turned":
            assert made.size == (192, 256)
            made = made.transpose(Image.Transpose.ROTATE_90)
        assert psnr_db(made, content) >= psnr_db(thumbnail(content, 256), content) - 0.01


def test_case_08_is_stored_nearer_to_lanczos_than_pillows_thumbnail():
    if not CASE.exists():
        pytest.skip(f"case 08: {CASE} is not there; the generated files above are its twins")
    content = CASE.read_bytes()
    for rules in (NormalizationRules(), NormalizationRules(resampler="simd", jpeg_subsampling="4:2:0")):
        stored = normalize_image(content, is_named_image=True, rules=rules)
        assert isinstance(stored, NormalizedImage)
        assert psnr_db(Image.open(io.BytesIO(stored.content)), content) > 37  # thumbnail: 32.9; before: 25.3


@pytest.mark.parametrize("factor", [1.01, 1.25, 1.5625, 2.0, 2.03, 3.0, 3.9])
def test_the_filter_is_pillows_lanczos_filter(factor: float):
    """Grey and colour, the whole image and a part of it; the same bytes whatever the processor can do."""
    import cykooz_resizer as library

    from tasks.ingest.resize import _resizer

    image = detailed(round(200 * factor), round(150 * factor), seed=3)
    for source in (image, image.convert("L")):
        for extent in (source.size, (source.width - 0.5, source.height - 0.25)):
            wanted = np.asarray(source.resize((200, 150), Image.Resampling.LANCZOS, box=(0, 0, *extent)), np.int16)
            made = np.asarray(shrink(source, (200, 150), extent), np.int16)
            difference = np.abs(made - wanted)  # both round between their two passes
            assert difference.mean() < 0.5 and np.mean(difference > 1) < 0.01
        resizer, _ = _resizer()
        able = resizer.cpu_extensions
        resizer.cpu_extensions = library.CpuExtensions.none
        assert np.array_equal(np.asarray(shrink(source, (200, 150), extent)), made)
        resizer.cpu_extensions = able


def test_an_image_that_needs_no_shrinking_is_stored_as_before():
    """The pixels are the decoder's own, whatever the resampler."""
    content = jpeg(detailed(200, 150))
    for rules in RULES.values():
        made = decode_image(Image.open(io.BytesIO(content)), content, rules)
        assert np.array_equal(np.asarray(made), np.asarray(Image.open(io.BytesIO(content))))
