"""Convert any Pillow mode and colour profile to 8-bit sRGB without transparency.

Transparency is composited over white; palettes are resolved; 16-bit grey is scaled to 8 bits, not clipped; an ICC
profile is converted to sRGB (perceptual intent), and an unreadable profile counts as sRGB; CMYK without a profile is
converted by Pillow's formula.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from tasks.ingest.rules import DECODER_ERRORS


@lru_cache(maxsize=16)
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an ICC profile to sRGB; None where the profile is sRGB, unreadable or of another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (ImageCms.PyCMSError, *DECODER_ERRORS):
        return None


def has_alpha(image: Image.Image) -> bool:
    """Whether any pixel may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def to_resizable(image: Image.Image) -> Image.Image:
    """The same image in a mode whose pixels can be averaged: L, RGB, CMYK, or RGBa (premultiplied alpha)."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).astype(np.uint8))
    if has_alpha(image):
        return image.convert("RGBA").convert("RGBa")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """8-bit sRGB without alpha: composited over white, then converted from the profile.

    Args:
        image: in one of the modes of `to_resizable`.
        profile: ICC profile of the file, empty where it has none.
    """
    if image.mode == "RGBa":
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    transform = srgb_transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    return ImageCms.applyTransform(image, transform) or image
