"""Two JPEG decoders give the same pixels; what one warns about, the other names."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.ingest import jpeg
from tasks.ingest.jpeg import decode_jpeg, image_from_pixels

SAMPLING = ("4:4:4", "4:2:2", "4:2:0")


def make_jpeg(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 256, (size[1] // 3 + 1, size[0] // 3 + 1, 3), np.uint8))
    out = io.BytesIO()
    noise.resize(size, Image.Resampling.BICUBIC).convert(mode).save(out, "JPEG", quality=88, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", SAMPLING)
@pytest.mark.parametrize("is_progressive", [False, True])
def test_the_two_decoders_agree_bit_for_bit_at_every_scale(
    mode: str, subsampling: str, is_progressive: bool, monkeypatch: pytest.MonkeyPatch
):
    for size in ((64, 48), (331, 203), (1023, 769)):
        content = make_jpeg(mode, size, subsampling=subsampling, progressive=is_progressive)
        for part in (1, 4, 8, 16):
            wanted = (max(1, size[0] // part), max(1, size[1] // part))
            one, extent = decode_jpeg(Image.open(io.BytesIO(content)), content, wanted)
            with monkeypatch.context() as patch:
                patch.setattr(jpeg, "_decode_clean", lambda *_: None)
                other, other_extent = decode_jpeg(Image.open(io.BytesIO(content)), content, wanted)
            assert extent == other_extent and np.array_equal(np.asarray(one), np.asarray(other))
            assert one.shape[0] == -(-size[1] // round(size[1] / extent[1]))


@pytest.mark.parametrize("stray", [0, 3, 16])
def test_a_few_stray_bytes_behind_the_pixels_cost_nothing(stray: int):
    content = make_jpeg("RGB", (120, 90))
    padded = content[:-2] + bytes([1]) * stray + content[-2:]
    pixels, _ = decode_jpeg(Image.open(io.BytesIO(padded)), padded, (120, 90))
    assert not isinstance(pixels, Image.Image)
    assert np.array_equal(np.asarray(image_from_pixels(pixels)), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("cut", [0.6, 0.8, 0.95])
def test_pixels_that_are_missing_are_an_error(cut: float):
    content = make_jpeg("RGB", (120, 90))
    short = content[: int(len(content) * cut)]
    with pytest.raises(OSError, match="[Pp]remature end|truncated"):
        decode_jpeg(Image.open(io.BytesIO(short)), short, (120, 90))
