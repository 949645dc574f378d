"""The fast preparation against the processor that it replaces."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.models.encoders.preprocess import preparation_from_processor


def image(width: int, height: int, kind: str, mode: str = "RGB") -> bytes:
    cells = np.random.default_rng(width).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(
        out, kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    return out.getvalue()


def processor(**changes: Any) -> Any:
    from transformers import BitImageProcessor

    settings = {
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
    }
    return BitImageProcessor(**{**settings, **changes})


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 90), (90, 201), (40, 50), (113, 67)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"crop_size": {"height": 56, "width": 48}}, {"size": {"height": 64, "width": 72}, "do_center_crop": False}],
)
def test_without_a_scaled_decode_the_pixels_are_the_processors(width: int, height: int, changes: dict[str, Any]):
    stock = processor(**changes)
    preparation = preparation_from_processor(stock)
    assert preparation is not None
    content = image(width, height, "PNG")
    ours = preparation.normalize([preparation.prepare(content)], "cpu").numpy()
    theirs = stock(images=[Image.open(io.BytesIO(content))], return_tensors="np")["pixel_values"]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 2.5 / 255 / 0.2  # roundings of the two passes


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resample", [1, 2, 3])
def test_a_jpeg_decoded_in_full_gives_the_processors_pixels_whatever_its_filter(mode: str, resample: int):
    stock = processor(resample=resample)
    preparation = preparation_from_processor(stock)
    assert preparation is not None
    content = image(100, 130, "JPEG", mode)
    ours = preparation.normalize([preparation.prepare(content)], "cpu").numpy()
    theirs = stock(images=[Image.open(io.BytesIO(content)).convert("RGB")], return_tensors="np")["pixel_values"]
    assert np.abs(ours - theirs).max() < 2.5 / 255 / 0.2  # two roundings


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_its_pixels_are_close(mode: str):
    stock = processor()
    preparation = preparation_from_processor(stock)
    content = image(900, 700, "JPEG", mode)
    ours = preparation.normalize([preparation.prepare(content)], "cpu").numpy().ravel()
    theirs = stock(images=[Image.open(io.BytesIO(content)).convert("RGB")], return_tensors="np")["pixel_values"].ravel()
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999


def test_processors_that_do_something_else_have_no_preparation():
    assert preparation_from_processor(processor(do_resize=False)) is None
    assert preparation_from_processor(processor(crop_size={"height": 80, "width": 80})) is None
    assert preparation_from_processor(processor(do_center_crop=False)) is None
