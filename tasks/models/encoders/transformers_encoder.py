"""Encoders of the transformers library: images or captions in, unit vectors out (CLIP, SigLIP, DINOv2, text encoders).

`load_encoder(spec, device, threads)` (tasks/models/encoders/load.py) takes a Hugging Face name or a folder; what the
model offers decides how its vectors are computed:

    images    `get_image_features` where the model has it (CLIP, SigLIP), else the first token of the last layer
              (DINOv2, ViT)
    texts     `get_text_features` where the model has it, else as the folder's `1_Pooling/config.json` says
              (sentence-transformers; BGE: the first token), else the mean of the last layer over the text's tokens

SigLIP's texts are padded to its full length, as it was trained (model card of google/siglip-base-patch16-224). Models
in the format of timm or open_clip: tasks/models/encoders/timm_open_clip.py. Image processors are Pillow's, without
torchvision. Weights are safetensors only; no code from the hub is run. `dtype` is for GPUs, `cpu_dtype` for CPUs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.devices import pick_device
from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows
from tasks.models.encoders.preprocess import preparation_from_processor
from tasks.models.hub import load_errors, model_revision

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.config import EncoderConfig


class TransformersEncoder:
    """A transformers model in this process."""

    def __init__(self, spec: EncoderConfig, device: str = "auto", threads: int = 1) -> None:
        """As `load_encoder`."""
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        from tasks.models.encoders.cpu_precision import CpuPrecision

        torch.set_num_threads(threads)
        self.kind = spec.kind
        self.name = spec.model
        self.device = pick_device(device)
        dtype = getattr(torch, spec.dtype) if self.device.startswith("cuda") else torch.float32
        with load_errors(spec.model, f"an {spec.kind} encoder" if spec.kind == "image" else "a text encoder"):
            self.model: Any = AutoModel.from_pretrained(
                spec.model, revision=spec.revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
            processor: Any = AutoImageProcessor if spec.kind == "image" else AutoTokenizer
            self.processor: Any = processor.from_pretrained(spec.model, revision=spec.revision, trust_remote_code=False)
        self.model.eval().to(self.device)
        self.precision = CpuPrecision(self.model, spec.cpu_dtype, self.device)
        self.revision = model_revision(spec.model, spec.revision, self.model.config) + self.precision.suffix
        text_config = getattr(self.model.config, "text_config", self.model.config)
        limits = [getattr(text_config, "max_position_embeddings", None)]
        # some positions of BERT-like models are not for tokens
        if limits[0] is None or not hasattr(self.model, "get_text_features"):
            limits.append(getattr(self.processor, "model_max_length", None))
        self.preparation = preparation_from_processor(self.processor) if spec.kind == "image" else None
        self.is_siglip = str(getattr(self.model.config, "model_type", "")).startswith("siglip")
        self.pooling = (
            "mean"
            if spec.kind == "image" or hasattr(self.model, "get_text_features")
            else read_pooling(spec.model, spec.revision)
        )
        self.max_tokens = min([int(x) for x in limits if isinstance(x, int) and 0 < x < 100_000], default=512)

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """(n, d) float32, rows of unit length.

        Raises:
            ConfigError: this is a text encoder.
        """
        if self.kind != "image":
            raise ConfigError(f"encoder '{self.name}': kind is 'text', images need kind 'image'")
        return self.precision.encode_checked(
            self._encode_pixels,
            self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device),
            self.name,
        )

    def encode_prepared(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """(n, d) float32, rows of unit length, from what `preparation.prepare` made of stored images.

        Raises:
            ConfigError: this model's processor does something that `Preparation` does not.
        """
        if self.preparation is None:
            raise ConfigError(
                f"encoder '{self.name}': its processor does more than resize, crop and normalise, which preprocess "
                "'fast' expects; set embed.preprocess to 'stock'"
            )
        return self.precision.encode_checked(
            self._encode_pixels, self.preparation.normalize(pixels, self.device), self.name
        )

    def _encode_pixels(self, pixels: Any) -> np.ndarray:
        pixels = pixels.to(self.model.dtype)
        with self.precision.inference():
            if hasattr(self.model, "get_image_features"):
                out = self.model.get_image_features(pixel_values=pixels)
                vectors = getattr(out, "pooler_output", out)
            else:
                vectors = self.model(pixel_values=pixels).last_hidden_state[:, 0]  # (n, d)
        return unit_rows(vectors.float().cpu().numpy())

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32, rows of unit length; texts longer than the model reads are cut.

        Raises:
            ConfigError: this is an image encoder.
        """
        if self.kind != "text":
            raise ConfigError(f"encoder '{self.name}': kind is 'image', texts need kind 'text'")
        return self.precision.encode_checked(self._encode_texts, list(texts), self.name)

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        tokens = self.processor(
            list(texts),
            padding="max_length" if self.is_siglip else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        with self.precision.inference():
            if hasattr(self.model, "get_text_features"):
                names = ("input_ids",) if self.is_siglip else ("input_ids", "attention_mask")
                known = {k: v for k, v in tokens.items() if k in names}
                out = self.model.get_text_features(**known)
                vectors = getattr(out, "pooler_output", out)
            else:
                states = self.model(**tokens).last_hidden_state  # (n, length, d)
                if self.pooling == "cls":
                    return unit_rows(states[:, 0].float().cpu().numpy())
                mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
                vectors = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return unit_rows(vectors.float().cpu().numpy())


def read_pooling(model: str, revision: str | None = None) -> str:
    """How a sentence-transformers model pools its tokens: 'cls' or 'mean'; 'mean' for a plain model.

    Args:
        model: Hugging Face name or folder.
        revision: pinned revision.
    Raises:
        ConfigError: it pools in another way, or has a further layer, which would be left out silently.
    """
    from transformers.utils import cached_file

    def read(name: str) -> Any:
        path = cached_file(
            model,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else None

    layers = [m["type"].rpartition(".")[2] for m in read("modules.json") or []]
    if other := [name for name in layers if name not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigError(
            f"text encoder '{model}': its modules.json has layers {other}; expected Transformer, Pooling, Normalize; "
            "name another model"
        )
    config = read("1_Pooling/config.json") or {}
    modes = [
        m
        for m in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        if config.get(f"pooling_mode_{m}")
    ]
    if not modes or modes == ["mean_tokens"]:
        return "mean"
    if modes == ["cls_token"]:
        return "cls"
    raise ConfigError(
        f"text encoder '{model}': pools by {modes}; expected cls_token or mean_tokens; name another model"
    )
