"""The captioning parameters of params.yaml with changes."""

from typing import Any

from tasks.config import CaptionConfig, load_params


def caption_config(**changes: Any) -> CaptionConfig:
    """`caption` of params.yaml, without canaries, validated with the changes."""
    return CaptionConfig(**{**load_params("params.yaml").caption.model_dump(), "canaries": None, **changes})
