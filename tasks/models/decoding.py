"""Decode image files that strangers made: to their end, or an OSError, whatever the decoder raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def decode(image: Image) -> None:
    """Decode an opened image to its end.

    Raises:
        OSError: it is damaged, or has palette numbers and no palette: Pillow makes greys of them, or fails over them
            when they are to be RGB.
    """
    try:
        image.load()
    except Exception as error:  # over damaged files decoders raise nearly every kind
        raise OSError(f"{type(error).__name__}: {error}") from error
    if image.mode in ("P", "PA") and image.palette is None:
        raise OSError("palette numbers without a palette")
