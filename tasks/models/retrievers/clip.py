"""The retriever of the CLIP type (BGE-VL-base, BGE-VL-large): a query is the sum of its image's and text's features.

The projected features are summed as they come and the sum is scaled to unit length; an image or a text alone is scaled
as it is. Any CLIP folder or name loads, with AutoModel and no code from the hub. A saved model loads in plain
transformers, in sentence-transformers and through the released models' interface (tasks/models/retrievers/published).

Source: MegaPairs, arXiv:2412.14475, equation 2, and the released modeling_MMRet_CLIP.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.devices import pick_device
from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows
from tasks.models.encoders.preprocess import preparation_from_processor
from tasks.models.hub import load_errors, model_revision
from tasks.models.retrievers.base import Role, add_remote_code, count_rows
from tasks.models.retrievers.content_encoders import SumEncoder
from tasks.models.retrievers.kept_rows import EncodeOptions
from tasks.models.retrievers.old_layout import write_old_layout
from tasks.store.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

TEXTS_PER_GROUP = 32  # of similar length, that go through the text tower together
PUBLISHED_FILES = (
    "modeling_bge_vl.py",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


class ClipRetriever:
    """A CLIP model with its processor; `model` may be trained from outside. Implements `Retriever`."""

    is_joint = False  # a query's features are the sum of those of its image and its text

    def __init__(self, model: str, *, revision: str | None = None, device: str = "auto", threads: int = 1) -> None:
        """Load the model.

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
        with load_errors(model, "a retriever"):
            self.model: Any = AutoModel.from_pretrained(
                model, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
            # Pillow's, also where torchvision is installed, whose resizing gives other vectors
            self.processor: Any = AutoProcessor.from_pretrained(
                model, revision=revision, trust_remote_code=False, backend="pil"
            )
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise ConfigError(
                f"model '{model}': {type(self.model).__name__} has no image and text features; expected a CLIP, such "
                "as BAAI/BGE-VL-base"
            )
        self.model.eval().to(self.device)
        self.revision = model_revision(model, revision, self.model.config)
        self.preparation = preparation_from_processor(self.processor.image_processor)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings)

    def preprocess(self, images: Sequence[Image]) -> torch.Tensor:
        """(n, 3, height, width) float32, as the model's image processor makes them."""
        pixels: torch.Tensor = self.processor.image_processor(
            images=[i.convert("RGB") for i in images], return_tensors="pt"
        )["pixel_values"]
        return pixels

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids and attention mask, each (n, longest), truncated to the model's length."""
        tokens = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {k: tokens[k] for k in ("input_ids", "attention_mask")}

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, d) raw projected features of (n, 3, height, width)."""
        out = self.model.get_image_features(pixel_values=pixels.to(self.device))
        features: torch.Tensor = getattr(out, "pooler_output", out)
        return features

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d) raw projected features.

        On a CPU many texts go through the tower in groups of similar length, as a padded token costs as much as any:
        the instructions of a batch have 8 to 38 tokens, 15 on average. How many groups follows from n alone, so that
        processes with shards of the weights run the tower equally often.
        """
        import torch

        tokens = self.tokenize(texts)
        groups = len(texts) // TEXTS_PER_GROUP if torch.device(self.device).type == "cpu" else 0
        if groups < 2:
            return self._token_features(tokens)
        lengths = tokens["attention_mask"].sum(1)
        order = lengths.argsort(stable=True)
        parts = [
            self._token_features({name: rows[part, : int(lengths[part].max())] for name, rows in tokens.items()})
            for part in order.tensor_split(groups)
        ]
        return torch.cat(parts)[order.argsort()]

    def _token_features(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(n, d) raw projected features of token ids and attention mask, each (n, length)."""
        out = self.model.get_text_features(**{k: v.to(self.device) for k, v in tokens.items()})
        features: torch.Tensor = getattr(out, "pooler_output", out)
        return features

    def features(
        self,
        *,
        pixels: Any = None,
        texts: Sequence[str] | None = None,
        role: Role = "query",
        task: str | None = None,
    ) -> torch.Tensor:
        """(n, d) raw projected features of preprocessed images, of texts, or the sum of both; alike in both roles.

        Raises:
            ConfigError: neither is given.
        """
        if texts is None:
            if pixels is None:
                raise ConfigError("features: expected pixels, texts, or as many of both; found neither")
            return self.image_features(pixels)
        text_features = self.text_features(texts)
        return text_features if pixels is None else self.image_features(pixels) + text_features

    def encode(
        self, images: Sequence[Image] | None = None, texts: Sequence[str] | None = None, batch_size: int = 128
    ) -> np.ndarray:
        """Unit rows of images, of texts, or of queries of both.

        Args:
            images: n images, or None.
            texts: n texts, or None.
            batch_size: rows in one pass of the model, a count.
        Returns:
            (n, d) float32.
        Raises:
            ConfigError: neither is given, or both in different numbers.
        """
        features = []
        for start in range(0, count_rows(images, texts), batch_size):
            rows: Any = 0
            if images is not None:
                rows = rows + self.raw_image_features(images[start : start + batch_size])
            if texts is not None:
                rows = rows + self.raw_text_features(texts[start : start + batch_size])
            features.append(rows)
        if not features:
            return np.zeros((0, self.model.config.projection_dim), np.float32)
        return unit_rows(np.concatenate(features))

    def raw_image_features(self, images: Sequence[Image]) -> np.ndarray:
        """(n, d) float32 raw features in one pass, without gradients."""
        import torch

        with torch.inference_mode():
            return self.image_features(self.preprocess(images)).float().cpu().numpy()

    def prepare_image(self, image: Image) -> Any:
        """An image as `prepared_image_features` takes it: bytes, resized and cropped, where the processor does no more
        than that; else the processor's own pixels.
        """
        if self.preparation is None:
            return self.preprocess([image])[0]
        return self.preparation.prepare_image(image)

    def prepare_image_fast(self, image: Image) -> Any:
        """As `prepare_image`, up to the rounding of a pixel in 300 by one level."""
        return self.prepare_image(image) if self.preparation is None else self.preparation.prepare_image_fast(image)

    def prepared_image_features(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, d) float32 raw features of `prepare_image`'s results in one pass, without gradients."""
        import torch

        if self.preparation is None:
            pixels = torch.stack(list(prepared))
        else:
            pixels = self.preparation.normalize(prepared, self.device)
        with torch.inference_mode():
            return self.image_features(pixels).float().cpu().numpy()

    def raw_text_features(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32 raw features in one pass, without gradients."""
        import torch

        with torch.inference_mode():
            return self.text_features(texts).float().cpu().numpy()

    def content_encoder(
        self,
        read_image: Callable[[str], Image],
        batch_size: int,
        image_features: Mapping[str, np.ndarray] | None = None,
        options: EncodeOptions | None = None,
    ) -> SumEncoder:
        """An encoder of a benchmark's contents; `image_features` are raw features that are known already."""
        return SumEncoder(self, read_image, batch_size, image_features, options)

    def add_adapters(self, **options: Any) -> None:
        """Adapters are for the MLLM type.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"'train.lora' is set, but '{self.name}' is a CLIP, which is trained as a whole; leave it empty"
        )

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write model, processor and what other libraries need to load them, atomically.

        Args:
            folder: an old one is replaced as a whole.
            weights: the full state dict where this process holds only a shard of it; the model's own where None.
        """
        with atomic_write(folder) as temporary:
            self.model.save_pretrained(temporary, state_dict=weights)
            self.processor.save_pretrained(temporary)
            write_old_layout(temporary)
            add_remote_code(temporary, PUBLISHED_FILES, "modeling_bge_vl.BGEVLModel")
