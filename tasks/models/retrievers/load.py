"""Load a retriever of the type that its config.json states: CLIP or MLLM."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import ConfigError
from tasks.models.hub import load_errors
from tasks.models.retrievers.base import BasePrecision, Retriever
from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.published.bge_vl_prompts import FAMILIES


def retriever_type(model: str, revision: str | None = None) -> str:
    """The model_type of a model's config.json, if it is one of a retriever; of a folder also whether it has weights. No
    weights are loaded.

    Args:
        model: Hugging Face name or local folder.
        revision: pinned revision of a name.
    Raises:
        ConfigError: no such model, neither a CLIP nor a known MLLM architecture, or a folder without safetensors.
        TransientError: the hub cannot be reached.
    """
    from transformers import AutoConfig

    with load_errors(model, "a retriever"):
        kind = str(AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).model_type)
    if Path(model).is_dir() and not any(Path(model).glob("*.safetensors")):
        raise ConfigError(f"model '{model}': the folder holds no *.safetensors; save the weights in that format")
    if kind not in FAMILIES and (is_image_text_to_text(kind) or not has_two_towers(kind)):
        raise ConfigError(
            f"model '{model}': a {kind} is no supported retriever; expected a CLIP or SigLIP with image and text "
            f"features, or a multimodal language model of the types {sorted(FAMILIES)}"
        )
    return kind


def has_two_towers(kind: str) -> bool:
    """Whether transformers' class of a model_type has image and text features, as CLIP and SigLIP have."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = MODEL_MAPPING_NAMES.get(kind, "")
    model_class = getattr(transformers, names if isinstance(names, str) else names[0], None)
    return hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features")


def is_image_text_to_text(kind: str) -> bool:
    """Whether transformers knows a model_type as a multimodal language model alone, without CLIP's two towers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_retriever(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    threads: int = 1,
    base_precision: BasePrecision = "float32",
) -> Retriever:
    """Load a retriever by Hugging Face name or local folder; no code from the folder runs.

    Args:
        model: Hugging Face name or local folder.
        revision: pinned revision of a name.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads, a count.
        base_precision: number format of an MLLM's weights, for training adapters on them.
    Raises:
        ConfigError: no such model, or neither a CLIP nor a known MLLM architecture.
        TransientError: the hub cannot be reached.
    """
    kind = retriever_type(model, revision)
    if kind in FAMILIES:
        from tasks.models.retrievers.mllm import MllmRetriever  # it imports transformers, seconds

        return MllmRetriever(model, revision=revision, device=device, threads=threads, base_precision=base_precision)
    if base_precision != "float32":
        raise ConfigError(f"'train.base_precision' is {base_precision}: '{model}' is a CLIP, whose weights are float32")
    return ClipRetriever(model, revision=revision, device=device, threads=threads)
