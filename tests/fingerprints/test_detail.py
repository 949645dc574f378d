"""Fine textures that differ only in detail are no copies of each other; copies of each are."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tasks.fingerprints.detail import differ_in_detail
from tasks.fingerprints.perceptual import perceptual_hash, thumbnail, thumbnail_distance

Y, X = np.mgrid[0:512, 0:512]


def wave(values: np.ndarray) -> np.ndarray:
    return np.sign(np.sin((values + 0.5) * np.pi))


TEXTURES = {
    "checks of 8 px": wave(X / 8) * wave(Y / 8),
    "checks of 4 px": wave(X / 4) * wave(Y / 4),
    "checks of 1 px": (X + Y) % 2 * 2 - 1,
    "stripes": wave(Y / 4),
    "upright stripes": wave(X / 4),
    "wide upright stripes": wave(X / 8),
    "twill": np.sin((X + Y) * np.pi / 4),
    "twill to the left": np.sin((X - Y) * np.pi / 4),
    "one colour": X * 0,
}


def draw(texture: np.ndarray) -> Image.Image:
    return Image.fromarray((128 + 50 * texture).astype(np.uint8)).convert("RGB")


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


IMAGES = {name: draw(texture) for name, texture in TEXTURES.items()}


@pytest.mark.parametrize(("one", "other"), combinations(IMAGES, 2))
def test_textures_that_agree_in_everything_coarse_are_told_apart(one: str, other: str):
    a, b = IMAGES[one], IMAGES[other]
    cells = thumbnail_distance(thumbnail(a), np.frombuffer(thumbnail(b), np.uint8)[None])
    bits = (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()
    assert cells[0] <= 8.0, "the thumbnails see no difference"
    assert differ_in_detail(jpeg(a), jpeg(b), thumbnail(a)), f"{bits} bits"


@pytest.mark.parametrize("name", IMAGES)
def test_copies_of_a_texture_are_copies(name: str):
    image = IMAGES[name]
    copies = [
        Image.open(io.BytesIO(jpeg(image, 70))),
        image.resize((384, 384), Image.Resampling.LANCZOS),
        image.resize((200, 200), Image.Resampling.LANCZOS),
        image.resize((24, 24), Image.Resampling.LANCZOS),
        image.crop((3, 2, 509, 512)),
    ]
    for copy in copies:
        assert not differ_in_detail(jpeg(image), jpeg(copy), thumbnail(image)), copy.size


def test_a_copy_that_lost_its_detail_is_a_copy_where_something_coarse_agrees():
    shade = np.clip(128 + 60 * np.sin(X / 90) * np.cos(Y / 70) + 40 * TEXTURES["stripes"], 0, 255).astype(np.uint8)
    image = Image.fromarray(shade).convert("RGB")
    soft = image.filter(ImageFilter.GaussianBlur(6))
    assert not differ_in_detail(jpeg(image), jpeg(soft), thumbnail(image))
    other = Image.fromarray(np.clip(shade - 40 * TEXTURES["stripes"] + 40 * TEXTURES["twill"], 0, 255).astype(np.uint8))
    assert differ_in_detail(jpeg(image), jpeg(other.convert("RGB")), thumbnail(image)), "the same cloth, another weave"
