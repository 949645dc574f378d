"""What pages show: ids drawn without a choice, and images small enough to lie inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.names import seeded_hash

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.store import Store


def draw_ids(ids: Sequence[str], count: int, salt: str) -> list[str]:
    """At most `count` ids in an order that depends on nothing but the ids and the salt, so that no one chose them."""
    return sorted(ids, key=lambda i: seeded_hash(salt, i))[:count]


def jpeg_uri(image: Image, side_px: int, quality: int) -> str:
    """An image as a data: URI of a JPEG, no side above `side_px`; an image of another mode becomes RGB."""
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnail_uri(store: Store, image_id: str, side_px: int, quality: int) -> str:
    """A stored image as `jpeg_uri`.

    Raises:
        DataError: the store does not hold the image.
    """
    return jpeg_uri(store.read_image(image_id), side_px, quality)
