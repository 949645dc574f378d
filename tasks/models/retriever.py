"""The retriever: BGE-VL of the CLIP type. A query of picture and text is the sum of their raw projected features.

The features are summed as they come, then the sum is scaled to unit length; a picture or a text alone is scaled as it is.
Loads any CLIP folder or name, that of BGE-VL-base and -large too, with AutoModel and no code from the hub. What is saved
loads in plain transformers, in sentence-transformers and through the released models' interface (models/published/).
Source: MegaPairs, arXiv:2412.14475, equation 2, and the released modeling_MMRet_CLIP.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.models.revisions import loading, pick_device, revision_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Retriever:
    """A CLIP model with its processor; `model` may be trained from outside."""

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
            self.model: Any = AutoModel.from_pretrained(model, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
            self.processor: Any = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise ConfigError(f"model '{model}': {type(self.model).__name__} has no image and text features; expected a CLIP, such as BAAI/BGE-VL-base")
        self.model.eval().to(self.device)
        self.revision = revision_of(model, revision, self.model.config)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings)

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """(n, 3, height, width) float32, as the processor makes them."""
        pixels: torch.Tensor = self.processor.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")["pixel_values"]
        return pixels

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids and mask, each (n, longest), cut at the model's length."""
        made = self.processor.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
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

    def encode(self, images: Sequence[Image] | None = None, texts: Sequence[str] | None = None, batch: int = 128) -> np.ndarray:
        """Unit rows of pictures, of texts, or of both together.

        Args:
            images: n pictures, or None.
            texts: n texts, or None.
            batch: rows in one pass of the model, a count.
        Returns:
            (n, d) float32.
        Raises:
            ConfigError: neither is given, or both in different numbers.
        """
        given = [x for x in (images, texts) if x is not None]
        if not given or len({len(x) for x in given}) > 1:
            raise ConfigError(f"encode: expected pictures, texts, or as many of both; found {[len(x) for x in given]}")
        features = []
        for start in range(0, len(given[0]), batch):
            rows: Any = 0
            if images is not None:
                rows = rows + self.raw_images(images[start : start + batch])
            if texts is not None:
                rows = rows + self.raw_texts(texts[start : start + batch])
            features.append(rows)
        return unit(np.concatenate(features)) if features else np.zeros((0, self.model.config.projection_dim), np.float32)

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

    def save(self, folder: Path) -> None:
        """Save model, processor and what others need to load them beside the folder, then put the whole in its place."""
        aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{x}") for x in ("tmp", "old"))
        for path in (aside, old):
            shutil.rmtree(path, ignore_errors=True)
        self.model.save_pretrained(aside)
        self.processor.save_pretrained(aside)
        publish_interface(aside)
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
        shutil.rmtree(old, ignore_errors=True)


def publish_interface(folder: Path) -> None:
    """Put into a saved folder what sentence-transformers and the released models' interface need; plain transformers needs none of it."""
    here = Path(__file__).parent / "published"
    for name in ("modeling_bge_vl.py", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        shutil.copyfile(here / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_bge_vl.BGEVLModel"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, (n, d) float32."""
    wide = rows.astype(np.float64)
    return (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)).astype(np.float32)
