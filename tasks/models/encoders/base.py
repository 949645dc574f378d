"""The Encoder protocol: what every image or text encoder offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.models.encoders.preprocess import Preparation


class Encoder(Protocol):
    """What stages need of an encoder.

    Attributes:
        kind: what it encodes; the other of the two methods raises ConfigError.
        revision: of the weights, and of how they compute where that is not the default.
    """

    kind: Literal["image", "text", "tfidf"]
    revision: str

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """(n, d) float32, rows of unit length (a row that is zero or not finite is returned unchanged)."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32, rows of unit length (a row that is zero or not finite is returned unchanged)."""


@runtime_checkable
class PreparingEncoder(Encoder, Protocol):
    """An encoder that also takes images prepared by our own code, which other threads may run.

    Attributes:
        preparation: stored bytes -> pixels; None where the model's own processor does something else.
    """

    preparation: Preparation | None

    def encode_prepared(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """(n, d) float32, rows of unit length, from what `preparation.prepare` made."""
