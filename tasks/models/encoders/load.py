"""Load an encoder by Hugging Face name, folder, `timm:NAME` or `open_clip:NAME`; of kind tfidf without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.models.encoders.base import Encoder
from tasks.models.encoders.tfidf import TfidfEncoder
from tasks.models.encoders.timm_open_clip import TowerEncoder, find_library
from tasks.models.encoders.transformers_encoder import TransformersEncoder

if TYPE_CHECKING:
    from tasks.config import EncoderConfig


def load_encoder(spec: EncoderConfig, device: str = "auto", threads: int = 1) -> Encoder:
    """Load an encoder by name or folder.

    Args:
        spec: model, revision, what it encodes and how it computes.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads, a count.
    Raises:
        ConfigError: no model can be loaded under that name.
        TransientError: the hub cannot be reached.
    """
    if spec.kind == "tfidf":
        return TfidfEncoder(spec)
    if find_library(spec.model) is not None:
        return TowerEncoder(spec, device, threads)
    return TransformersEncoder(spec, device, threads)
