"""A re-encoded or resized copy is found; a relative with one edit is not."""

import io
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.config import load_params
from tasks.near_duplicates import hash_hits, perceptual_hash, thumbnail, thumbnail_distance
from tasks.sample.scenes import difference, family, picture_of


def encoded(picture: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def is_copy(a: Image.Image, b: Image.Image) -> bool:
    config = load_params().ingest
    near_hash = (perceptual_hash(a) ^ perceptual_hash(b)).bit_count() <= config.hash_distance_bits
    distance = thumbnail_distance(thumbnail(a), np.frombuffer(thumbnail(b), np.uint8)[None])
    return near_hash and bool(distance[0] <= config.thumbnail_distance)


def test_copies_are_caught_and_one_edit_relatives_are_not():
    """A small form of the measurement in tasks/near_duplicates.py: 300 copies, at least 300 relatives."""
    rng, caught, lost, relatives = random.Random(3), 0, 0, 0
    for _ in range(100):
        scenes = family(rng, "corpus", 5)
        pictures = [encoded(picture_of(s, rendering=rng.getrandbits(24)), 90) for s in scenes]
        for picture in pictures[:3]:
            side = rng.choice((96, 80, 104, 144, 160))
            resized = picture if side == 96 else picture.resize((side, side), Image.Resampling.BICUBIC)
            caught += is_copy(picture, encoded(resized, rng.randint(65, 88)))
        for n, scene in enumerate(scenes):
            for m in range(n):
                if len(difference(scene, scenes[m])) == 1:
                    relatives += 1
                    lost += is_copy(pictures[n], pictures[m])
    assert relatives >= 300
    assert caught >= 0.99 * 300
    assert lost <= 0.005 * relatives


def test_the_hash_sees_form_and_the_thumbnail_sees_colour():
    red, blue = (Image.new("RGB", (96, 96), c) for c in ((200, 60, 60), (60, 83, 230)))  # the same grey, almost
    for picture in (red, blue):
        picture.paste((255, 255, 255), (10, 10, 40, 40))
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
