"""The retriever: BGE-VL of the CLIP type. A query of image and text is the sum of their raw projected features.

The features are summed as they come, then the sum is scaled to unit length; an image or a text alone is scaled as it
is. Loads any CLIP folder or name, that of BGE-VL-base and -large too, with AutoModel and no code from the hub. What is
saved loads in plain transformers, in sentence-transformers and through the released models' interface
(models/published/). `load_retriever` tells from config.json whether a model is of this type or of the MLLM type
(models/mllm.py).
Source: MegaPairs, arXiv:2412.14475, equation 2, and the released modeling_MMRet_CLIP.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows
from tasks.models.hub import loading, pick_device, revision_of
from tasks.models.retrievers.base import Content, Role, count_of, publish
from tasks.store.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Retriever:
    """A CLIP model with its processor; `model` may be trained from outside."""

    is_joint = False  # a query's vector is put together from those of image and text

    def __init__(self, model: str, *, revision: str | None = None, device: str = "auto", threads: int = 1) -> None:
        """Load it.

        Args:
            model: Hugging Face name or local folder.
            revision: pinned revision of a name.
            device: auto, cpu, cuda or cuda:N.
            threads: CPU threads, a count.
        Raises:
            ConfigError: not a model with image and text features.
        """
        import torch
        from transformers import AutoModel, AutoProcessor

        torch.set_num_threads(threads)
        self.name = model
        self.device = pick_device(device)
        with loading(model, "a retriever"):
            self.model: Any = AutoModel.from_pretrained(
                model, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
            self.processor: Any = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise ConfigError(
                f"model '{model}': {type(self.model).__name__} has no image and text features; expected a CLIP, such as BAAI/BGE-VL-base"
            )
        self.model.eval().to(self.device)
        self.revision = revision_of(model, revision, self.model.config)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings)

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """(n, 3, height, width) float32, as the processor makes them."""
        pixels: torch.Tensor = self.processor.image_processor(
            images=[i.convert("RGB") for i in images], return_tensors="pt"
        )["pixel_values"]
        return pixels

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids and mask, each (n, longest), cut at the model's length."""
        made = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {k: made[k] for k in ("input_ids", "attention_mask")}

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, d) raw projected features of (n, 3, height, width)."""
        out = self.model.get_image_features(pixel_values=pixels.to(self.device))
        features: torch.Tensor = getattr(out, "pooler_output", out)
        return features

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d) raw projected features."""
        out = self.model.get_text_features(**{k: v.to(self.device) for k, v in self.tokens(texts).items()})
        features: torch.Tensor = getattr(out, "pooler_output", out)
        return features

    def encode(
        self, images: Sequence[Image] | None = None, texts: Sequence[str] | None = None, batch: int = 128
    ) -> np.ndarray:
        """Unit rows of images, of texts, or of both together.

        Args:
            images: n images, or None.
            texts: n texts, or None.
            batch: rows in one pass of the model, a count.
        Returns:
            (n, d) float32.
        Raises:
            ConfigError: neither is given, or both in different numbers.
        """
        count = count_of(images, texts)
        features = []
        for start in range(0, count, batch):
            rows: Any = 0
            if images is not None:
                rows = rows + self.raw_images(images[start : start + batch])
            if texts is not None:
                rows = rows + self.raw_texts(texts[start : start + batch])
            features.append(rows)
        return (
            unit_rows(np.concatenate(features))
            if features
            else np.zeros((0, self.model.config.projection_dim), np.float32)
        )

    def raw_images(self, images: Sequence[Image]) -> np.ndarray:
        """(n, d) float32 raw features, in one pass."""
        import torch

        with torch.inference_mode():
            return self.image_features(self.pixels(images)).float().cpu().numpy()

    def raw_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32 raw features, in one pass."""
        import torch

        with torch.inference_mode():
            return self.text_features(texts).float().cpu().numpy()

    def embedder(
        self, read: Callable[[str], Image], batch: int, images: Mapping[str, np.ndarray] | None = None
    ) -> Summed:
        """Vectors of a benchmark's contents; `images` are raw features, where they are known."""
        return Summed(self, read, batch, images)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Save model, processor and what others need to load them beside the folder, then put the whole in its place.

        Args:
            folder: the old one gives way.
            weights: the whole state where the model holds but a shard of it; the model's own where None.
        """
        with atomic_write(folder) as temporary:
            self.model.save_pretrained(temporary, state_dict=weights)
            self.processor.save_pretrained(temporary)
            files = [
                "modeling_bge_vl.py",
                "modules.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
            ]
            publish(temporary, files, "modeling_bge_vl.BGEVLModel")


class Summed:
    """Vectors of a benchmark's contents by a CLIP: raw features of every image and text, each encoded once, are summed."""

    def __init__(
        self,
        retriever: Retriever,
        read: Callable[[str], Image],
        batch: int,
        images: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Nothing is encoded yet.

        Args:
            retriever: the model.
            read: image key -> image.
            batch: images or texts in one pass of the model, a count.
            images: raw features, where they are known: studies with a locked image tower encode it once.
        """
        self._retriever, self._read, self._batch = retriever, read, batch
        self._images, self._texts = dict(images or {}), dict[str, np.ndarray]()

    def prepare(self, images: Sequence[str], texts: Sequence[str]) -> None:
        """Encode what is not known yet, each once, in this order."""
        missing = [key for key in dict.fromkeys(images) if key not in self._images]
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            self._images.update(zip(part, self._retriever.raw_images([self._read(key) for key in part]), strict=True))
        missing = [text for text in dict.fromkeys(texts) if text and text not in self._texts]
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            self._texts.update(zip(part, self._retriever.raw_texts(part), strict=True))

    def rows(self, contents: Sequence[Content], role: Role) -> np.ndarray:
        """(n, d) float32 unit rows of (image key or None, text); a row of zeros where there is neither. The role makes
        no difference here.
        """
        self.prepare([key for key, _ in contents if key is not None], [text for _, text in contents])
        nothing = np.zeros_like(next(iter((self._images or self._texts).values())))
        return unit_rows(
            np.stack(
                [
                    (nothing if key is None else self._images[key]) + (self._texts[text] if text else nothing)
                    for key, text in contents
                ]
            )
        )
