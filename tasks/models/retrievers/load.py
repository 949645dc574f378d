"""Load a retriever by the type that its config.json states: CLIP or an MLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tasks.models.hub import loading
from tasks.models.retrievers.clip import Retriever

if TYPE_CHECKING:
    from tasks.models.retrievers.mllm import MllmRetriever

    AnyRetriever: TypeAlias = "Retriever | MllmRetriever"


def load_retriever(model: str, *, revision: str | None = None, device: str = "auto", threads: int = 1) -> AnyRetriever:
    """The retriever of a model's type; arguments and errors as of its class."""
    from transformers import AutoConfig

    from tasks.models.retrievers.published.bge_vl_prompts import FAMILIES

    with loading(model, "a retriever"):
        kind = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).model_type
    if kind in FAMILIES:
        from tasks.models.retrievers.mllm import MllmRetriever

        return MllmRetriever(model, revision=revision, device=device, threads=threads)
    return Retriever(model, revision=revision, device=device, threads=threads)
