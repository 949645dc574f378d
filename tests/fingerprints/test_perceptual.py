"""A re-encoded or resized copy is found; an image with one edit is no copy."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.config import load_params
from tasks.fingerprints.perceptual import hash_hits, perceptual_hash, thumbnail, thumbnail_distance
from tasks.ingest.dedup import DuplicateIndex
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage
from tasks.sample.scenes import difference, draw_image, family


def encoded(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def is_copy(a: Image.Image, b: Image.Image) -> bool:
    config = load_params().ingest
    near_hash = (perceptual_hash(a) ^ perceptual_hash(b)).bit_count() <= config.hash_distance_bits
    distance = thumbnail_distance(thumbnail(a), np.frombuffer(thumbnail(b), np.uint8)[None])
    return near_hash and bool(distance[0] <= config.thumbnail_distance)


@pytest.mark.slow
def test_copies_are_found_and_images_with_one_edit_are_not_called_copies():
    """A small form of the measurement in tasks/fingerprints/perceptual.py: 300 copies, at least 300 relatives."""
    rng, caught, lost, relatives = random.Random(3), 0, 0, 0
    for _ in range(100):
        scenes = family(rng, "corpus", 5)
        images = [encoded(draw_image(s, rendering=rng.getrandbits(24)), 90) for s in scenes]
        for image in images[:3]:
            side = rng.choice((96, 80, 104, 144, 160))
            resized = image if side == 96 else image.resize((side, side), Image.Resampling.BICUBIC)
            caught += is_copy(image, encoded(resized, rng.randint(65, 88)))
        for n, scene in enumerate(scenes):
            for m in range(n):
                if len(difference(scene, scenes[m])) == 1:
                    relatives += 1
                    lost += is_copy(images[n], images[m])
    assert relatives >= 300
    assert caught >= 0.99 * 300
    assert lost <= 0.005 * relatives


def test_the_hash_distinguishes_shapes_and_the_thumbnail_colours():
    red, blue = (Image.new("RGB", (96, 96), c) for c in ((200, 60, 60), (60, 83, 230)))  # the same grey, almost
    for image in (red, blue):
        image.paste((255, 255, 255), (10, 10, 40, 40))
    assert (perceptual_hash(red) ^ perceptual_hash(blue)).bit_count() <= 16
    assert not is_copy(red, blue)
    assert is_copy(red, encoded(red, 75))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.integers(0, 64),
    st.integers(1, 40),
)
def test_hash_hits_equal_the_naive_form_whatever_the_block(new: list[int], known: list[int], bits: int, block: int):
    found = hash_hits(np.array(new, np.uint64), np.array(known, np.uint64), distance_bits=bits, block=block)
    naive = [(n, [m for m, k in enumerate(known) if (h ^ k).bit_count() <= bits]) for n, h in enumerate(new)]
    assert [(row, hits.tolist()) for row, hits in found] == naive


def recoloured(image: Image.Image, rng: random.Random) -> Image.Image:
    """What differs from the image's corners in another colour, every grey level as it was: the perceptual hash is the
    same.
    """
    pixels = np.asarray(image.convert("YCbCr")).astype(np.int16)
    rgb = np.asarray(image.convert("RGB")).astype(np.int16)
    ground = np.median(np.concatenate([rgb[:8, :8].reshape(-1, 3), rgb[:8, -8:].reshape(-1, 3)]), axis=0)
    object_at = np.abs(rgb - ground).max(axis=2) > 40
    angle = rng.uniform(0, 2 * np.pi)
    pixels[..., 1:] += (object_at[..., None] * np.round(45 * np.array([np.cos(angle), np.sin(angle)]))).astype(np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "YCbCr").convert("RGB")


def cropped(image: Image.Image, most: float, rng: random.Random) -> Image.Image:
    w, h = image.size
    return image.crop(
        (
            round(w * rng.uniform(0, most)),
            round(h * rng.uniform(0, most)),
            w - round(w * rng.uniform(0, most)),
            h - round(h * rng.uniform(0, most)),
        )
    )


def scaled(image: Image.Image, by: float) -> Image.Image:
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


CHANGES = {
    "re-encoded": lambda image, rng: encoded(image, rng.randint(60, 88)),
    "resized": lambda image, rng: scaled(image, rng.uniform(0.5, 0.9)),
    "cropped by 2%": lambda image, rng: encoded(cropped(image, 0.02, rng), 85),
    "cropped by 5%": lambda image, rng: encoded(cropped(image, 0.05, rng), 85),
    "recoloured": recoloured,
}


def called_copies(originals: list[Image.Image], crop_margin: float, seed: int = 1) -> dict[str, float]:
    """Share of the images that ingest calls a copy of another one: of the originals among themselves ('another image'),
    and after each of CHANGES.
    """
    rules, rng = NormalizationRules(has_grid=True, min_side_px=32), random.Random(seed)

    def read(image: Image.Image) -> NormalizedImage:
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=1)
        found = normalize_image(out.getvalue(), is_named_image=True, rules=rules)
        assert isinstance(found, NormalizedImage)
        return found

    none: dict[str, list] = {"image_id": [], "source_sha256": [], "phash": [], "thumbnail": []}
    index = DuplicateIndex(none, hash_distance_bits=16, thumbnail_max=8.0, crop_margin=crop_margin)
    counts = dict.fromkeys(["another image", *CHANGES], 0)
    for n, image in enumerate(originals):
        stored = read(image)
        counts["another image"] += index.find(f"s{n}", f"i{n}", stored) is not None
        index.add(f"s{n}", f"i{n}", stored)
    for name, change in CHANGES.items():
        for image in originals:
            counts[name] += index.find("new", "new", read(change(image, rng))) is not None
    return {name: count / len(originals) for name, count in counts.items()}


def drawn(count: int) -> list[Image.Image]:
    """A soft object on a plain ground."""
    found = []
    for n in range(count):
        cells = np.random.default_rng(n).integers(30, 220, (5, 4, 3)).astype(np.uint8)
        canvas = Image.new("RGB", (240, 320), (235, 235, 230))
        canvas.paste(Image.fromarray(cells).resize((150, 220), Image.Resampling.BICUBIC), (45, 50))
        found.append(canvas)
    return found


def photographs(count: int) -> list[Image.Image]:
    """Clothes, of all classes (../shared/photos)."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "photos"
    paths = sorted(folder.glob("*/*.jpg"))
    if not paths:
        pytest.skip(f"photographs: none in {folder}")
    return [Image.open(p).convert("RGB") for p in paths[:: max(1, len(paths) // count)][:count]]


@pytest.mark.parametrize("originals", [drawn, photographs])
def test_copies_of_photographs_are_found_and_other_clothes_and_colours_are_not(
    originals: Callable[[int], list[Image.Image]],
):
    """A small form of the measurement in docs/decisions/0021."""
    shares = called_copies(originals(16), 0.06)
    assert shares["another image"] == 0 and shares["recoloured"] <= 1 / 16
    assert (
        shares["re-encoded"] == 1
        and shares["resized"] >= 15 / 16
        and min(shares["cropped by 2%"], shares["cropped by 5%"]) >= 0.75
    )
