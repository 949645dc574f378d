"""Load a retriever of the type that its config.json states: CLIP or MLLM."""

from __future__ import annotations

from tasks.models.hub import load_errors
from tasks.models.retrievers.base import Retriever
from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.published.bge_vl_prompts import FAMILIES


def load_retriever(model: str, *, revision: str | None = None, device: str = "auto", threads: int = 1) -> Retriever:
    """Load a retriever by Hugging Face name or local folder; no code from the folder runs.

    Args:
        model: Hugging Face name or local folder.
        revision: pinned revision of a name.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads, a count.
    Raises:
        ConfigError: no such model, or neither a CLIP nor a known MLLM architecture.
        TransientError: the hub cannot be reached.
    """
    from transformers import AutoConfig

    with load_errors(model, "a retriever"):
        model_type = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).model_type
    if model_type in FAMILIES:
        from tasks.models.retrievers.mllm import MllmRetriever  # it imports transformers, seconds

        return MllmRetriever(model, revision=revision, device=device, threads=threads)
    return ClipRetriever(model, revision=revision, device=device, threads=threads)
