"""Convert any Pillow mode and colour profile to 8-bit sRGB without transparency.

Transparency is composited over white; palettes are resolved; 16-bit grey is scaled to 8 bits, not clipped; an ICC
profile is converted to sRGB (perceptual intent) unless it is sRGB by its numbers, whatever its name; an unreadable
profile, and one of another colour space than the pixels, counts as sRGB; CMYK without a profile is converted by
Pillow's formula. Colours that a file states by other means: tasks/ingest/colour_signals.py.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from tasks.ingest.colour_signals import ColourSignal, to_srgb_pixels
from tasks.ingest.rules import DECODER_ERRORS

SRGB_LEVELS = 2  # by which a profile may differ from sRGB and still be it
GREY_SCALES = {1: 255, 2: 85, 4: 17}  # what Pillow multiplies a PNG's grey levels of so many bits by


@lru_cache(maxsize=16)
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an ICC profile to sRGB; None where the profile is sRGB by its numbers, whatever its name,
    unreadable, or of another mode.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # LittleCMS's shortcut for grey is wrong by up to ten levels in the dark
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)
        sample = _sample(mode)
        converted = ImageCms.applyTransform(sample, transform)
    except (ImageCms.PyCMSError, *DECODER_ERRORS):
        return None
    if converted is None or mode == "CMYK":
        return transform
    difference = np.abs(np.asarray(converted, np.int16) - np.asarray(sample.convert("RGB"), np.int16))
    return None if difference.max() <= SRGB_LEVELS else transform


def _sample(mode: str) -> Image.Image:
    """Colours of all kinds in this mode: a lattice of 9 levels a channel, and all greys."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    lattice = np.stack(np.meshgrid(*[np.linspace(0, 255, 9).round()] * 3), -1).reshape(1, -1, 3)
    greys = np.arange(256)[None, :, None].repeat(3, 2)
    return Image.fromarray(np.concatenate([lattice, greys], 1).astype(np.uint8)).convert(mode)


def profile_space(profile: bytes) -> str:
    """The colour space in an ICC profile's header: RGB, GRAY, CMYK, Lab; empty where it is too short to have one."""
    return profile[16:20].decode("ascii", "replace").strip() if len(profile) >= 128 else ""


def has_alpha(image: Image.Image) -> bool:
    """Whether any pixel may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def scale_transparency(image: Image.Image, depth: int) -> None:
    """Bring a PNG's transparent colour, which is in the file's levels, to those of the pixels that Pillow decoded.

    Args:
        image: decoded.
        depth: bits a channel in the file. Of 16 bits Pillow keeps the upper 8: pixels that agree in these count.
    """
    colour = image.info.get("transparency")
    if depth in GREY_SCALES and isinstance(colour, int) and image.mode in ("L", "1"):
        image.info["transparency"] = min(255, colour * GREY_SCALES[depth])
    elif depth == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in colour)


def to_resizable(image: Image.Image) -> Image.Image:
    """The same image in a mode whose pixels can be averaged: L, RGB, CMYK, or RGBa (premultiplied alpha)."""
    if image.mode.startswith("I;16") and isinstance(clear := image.info.get("transparency"), int):
        levels = np.asarray(image)
        layers = [(levels >> 8).astype(np.uint8), np.where(levels == clear, 0, 255).astype(np.uint8)]
        return Image.merge("LA", [Image.fromarray(layer) for layer in layers]).convert("RGBA").convert("RGBa")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).astype(np.uint8))
    if has_alpha(image):
        return (image if image.mode == "RGBA" else image.convert("RGBA")).convert("RGBa")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image, profile: bytes, signal: ColourSignal | None = None) -> Image.Image:
    """8-bit sRGB without alpha: composited over white, then converted from the profile.

    Args:
        image: in one of the modes of `to_resizable`.
        profile: ICC profile of the file, empty where it has none.
        signal: what the file says about its colours beside a profile, which it then precedes.
    """
    if image.mode == "RGBa":
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    if signal is not None and image.mode != "CMYK":
        return Image.fromarray(to_srgb_pixels(np.asarray(image.convert("RGB")), signal))
    if profile and image.mode == "L" and profile_space(profile) == "RGB":
        image = image.convert("RGB")  # a grey JPEG with its camera's profile
    transform = srgb_transform(profile, image.mode) if profile else None
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return ImageCms.applyTransform(image, transform) or image
