"""The Encoder protocol: what every image or text encoder offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


class Encoder(Protocol):
    """What stages need of an encoder."""

    kind: Literal["image", "text"]
    revision: str

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """(n, d) float32, rows of unit length (a row that is zero or not finite stays as it is)."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32, rows of unit length (a row that is zero or not finite stays as it is)."""
