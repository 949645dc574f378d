"""The stated rules on an image's size and shape."""

import io

import pytest
from PIL import Image

from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection


@pytest.mark.parametrize(
    ("size", "max_side_px", "expected"),
    [
        ((20_000, 48), 512, "extreme_ratio"),  # was stored 512x1
        ((48, 20_000), 512, "extreme_ratio"),
        ((8_192, 48), 512, "extreme_ratio"),  # was stored 512x3
        ((3_264, 51), 512, None),  # 512x8
        ((5_000, 50), 4_096, None),  # 100 to 1
        ((5_001, 50), 4_096, "extreme_ratio"),  # shape alone
        ((48, 48), 512, None),
        ((47, 5_000), 512, "too_small"),
        ((1, 1), 512, "too_small"),
    ],
)
def test_shape_and_size_decide_before_anything_is_decoded(
    size: tuple[int, int], max_side_px: int, expected: str | None
):
    rules = NormalizationRules(max_side_px=max_side_px)
    found = rules.size_rejection(*size)
    assert (found.reason if found else None) == expected


def test_a_long_thin_image_is_dropped_with_its_size_and_one_at_the_limit_is_stored():
    def stored(width: int, height: int) -> NormalizedImage | Rejection:
        out = io.BytesIO()
        Image.effect_noise((width, height), 90).convert("RGB").save(out, "PNG")
        return normalize_image(out.getvalue(), is_named_image=True, rules=NormalizationRules())

    assert stored(8_192, 48) == Rejection("extreme_ratio", "8192x48 px, stored 512x3 px, at least 8 px")
    image = stored(3_264, 51)
    assert isinstance(image, NormalizedImage) and (image.width_px, image.height_px) == (512, 8)


def test_small_images_of_a_benchmark_are_not_held_to_the_stored_side():
    """`decontaminate` hashes images of any size."""
    rules = NormalizationRules(min_side_px=1)
    assert rules.size_rejection(5, 5) is None and rules.size_rejection(1, 1) is None
    assert rules.size_rejection(1, 101) is not None
