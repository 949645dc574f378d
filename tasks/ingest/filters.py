"""Classifiers that refuse images at ingest (nsfw, faces ...), by Hugging Face name or folder; off unless
`ingest.filters` names one.

    ingest.filters.nsfw: {model: Falconsai/nsfw_image_detection, labels: [nsfw], threshold: 0.5}

Loads torch in the stage's own process, never in a worker that decodes. An image is refused when the probabilities of
`labels` add up to `threshold`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tasks.config import FilterConfig
from tasks.errors import ConfigError
from tasks.ingest.normalize import NormalizedImage, Refusal

T = TypeVar("T")


class ImageFilter:
    """One classifier."""

    def __init__(self, name: str, config: FilterConfig) -> None:
        """Load it.

        Raises:
            ConfigError: it cannot be loaded, or has no such label.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.name, self.config = name, config
        try:
            self.processor = AutoImageProcessor.from_pretrained(config.model, revision=config.revision)
            self.model: Any = AutoModelForImageClassification.from_pretrained(
                config.model, revision=config.revision, use_safetensors=True
            ).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"ingest.filters.{name}: '{config.model}' is no image classifier that loads ({' '.join(str(error).split())[:200]})"
            ) from error
        ids = {str(label): int(row) for row, label in self.model.config.id2label.items()}
        if unknown := [label for label in config.labels if label not in ids]:
            raise ConfigError(
                f"ingest.filters.{name}.labels: {unknown} unknown to '{config.model}'; it knows {sorted(ids)}"
            )
        self.rows = [ids[label] for label in config.labels]

    def scores(self, images: list[NormalizedImage]) -> list[float]:
        """Sum of the labels' probabilities, one per image."""
        import torch
        from PIL import Image

        decoded = [Image.open(io.BytesIO(p.content), formats=("JPEG",)).convert("RGB") for p in images]
        inputs = self.processor(images=decoded, return_tensors="pt")
        with torch.inference_mode():
            probabilities = self.model(**inputs).logits.float().softmax(dim=-1)
        return [float(s) for s in probabilities[:, self.rows].sum(dim=1)]

    def apply(
        self,
        found: Iterable[T],
        result_of: Callable[[T], NormalizedImage | Refusal],
        refused: Callable[[T, Refusal], T],
    ) -> Iterator[T]:
        """The same items in the same order, `refused` where the classifier says so; `batch_images` at a time."""
        block: list[T] = []
        for item in found:
            block.append(item)
            if len(block) == self.config.batch_images:
                yield from self._block(block, result_of, refused)
                block = []
        yield from self._block(block, result_of, refused)

    def _block(
        self, block: list[T], result_of: Callable[[T], NormalizedImage | Refusal], refused: Callable[[T, Refusal], T]
    ) -> Iterator[T]:
        images = [result for item in block if isinstance(result := result_of(item), NormalizedImage)]
        scores = iter(self.scores(images) if images else [])
        for item in block:
            if isinstance(result_of(item), NormalizedImage) and (score := next(scores)) >= self.config.threshold:
                item = refused(
                    item, Refusal("filtered", f"{self.name}: {score:.2f}, at least {self.config.threshold:g}")
                )
            yield item
