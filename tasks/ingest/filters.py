"""Image classifiers that drop images at ingest (NSFW, faces ...); off unless `ingest.filters` names one.

    ingest.filters.nsfw: {model: Falconsai/nsfw_image_detection, labels: [nsfw], threshold: 0.5}

The model is a Hugging Face name or a folder. An image is dropped as `filtered` when the probabilities of `labels` sum
to `threshold` or more. torch is loaded in the stage's own process, never in a worker that decodes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tasks.config import FilterConfig
from tasks.errors import ConfigError
from tasks.ingest.rules import NormalizedImage, Rejection

T = TypeVar("T")


class ImageFilter:
    """One classifier."""

    def __init__(self, name: str, config: FilterConfig) -> None:
        """Load the model.

        Args:
            name: the key under ingest.filters, for messages and dropped rows.
            config: model, labels, threshold and batch size.
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
                f"ingest.filters.{name}: '{config.model}' cannot be loaded ({' '.join(str(error).split())[:200]}); "
                "expected an image classifier by Hugging Face name or folder; correct 'model' or 'revision'"
            ) from error
        rows = {str(label): int(row) for row, label in self.model.config.id2label.items()}
        if unknown := [label for label in config.labels if label not in rows]:
            raise ConfigError(
                f"ingest.filters.{name}.labels: '{config.model}' has no labels {unknown}; expected some of "
                f"{sorted(rows)}; correct 'labels'"
            )
        self.rows = [rows[label] for label in config.labels]

    def scores(self, images: list[NormalizedImage]) -> list[float]:
        """Sum of the labels' probabilities, 0 to 1, one per image."""
        import torch
        from PIL import Image

        decoded = [Image.open(io.BytesIO(p.content), formats=("JPEG",)).convert("RGB") for p in images]
        inputs = self.processor(images=decoded, return_tensors="pt")
        with torch.inference_mode():
            probabilities = self.model(**inputs).logits.float().softmax(dim=-1)
        return [float(s) for s in probabilities[:, self.rows].sum(dim=1)]

    def apply(
        self,
        items: Iterable[T],
        get_result: Callable[[T], NormalizedImage | Rejection],
        reject: Callable[[T, Rejection], T],
    ) -> Iterator[T]:
        """The same items in the same order, some of them rejected; `batch_images` items are scored at a time.

        Args:
            items: anything with a result.
            get_result: an item's image, or why it was rejected before; such items pass through.
            reject: the item with this rejection as its result.
        """
        block: list[T] = []
        for item in items:
            block.append(item)
            if len(block) == self.config.batch_images:
                yield from self._apply_block(block, get_result, reject)
                block = []
        yield from self._apply_block(block, get_result, reject)

    def _apply_block(
        self,
        block: list[T],
        get_result: Callable[[T], NormalizedImage | Rejection],
        reject: Callable[[T, Rejection], T],
    ) -> Iterator[T]:
        images = [result for item in block if isinstance(result := get_result(item), NormalizedImage)]
        scores = iter(self.scores(images) if images else [])
        for item in block:
            if isinstance(get_result(item), NormalizedImage) and (score := next(scores)) >= self.config.threshold:
                detail = f"{self.name}: {score:.2f}, at least {self.config.threshold:g}"
                item = reject(item, Rejection("filtered", detail))
            yield item
