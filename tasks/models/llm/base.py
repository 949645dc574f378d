"""What every engine offers (the protocols Captioner and Writer), and how it is configured (LlmConfig)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Refusal, Reply, Request
from tasks.usage import Usage

ENGINES = ("transformers", "openai", "vllm")


@dataclass(frozen=True)
class LlmConfig:
    """Which model answers, by which engine, and within which limits.

    Attributes:
        model: Hugging Face name or local folder; the served model's name for engine 'openai'.
        revision: pinned revision of a name.
        engine: 'transformers' (in this process), 'openai' (OpenAI-compatible servers) or 'vllm' (vLLM's offline engine
            in this process).
        url: base URL of the server, ending in /v1, for engine 'openai'; replicas of one model separated by commas.
        device: auto, cpu, cuda or cuda:N, for engine 'transformers'.
        threads: CPU threads of the model, a count, for engine 'transformers'.
        max_new_tokens: longest reply, tokens.
        batch: requests in one pass of `chat` or `write`, a count, for engine 'transformers'.
        question_batch: requests in one pass of `yes_probability`, a count, for engine 'transformers'.
        in_flight: requests in flight at each server, a count, for engine 'openai'.
        timeout_s: longest time that one served reply may take, s, for engine 'openai'.
        outage_s: how long a request is tried while no server answers at all, s, for engine 'openai'.
        api_key: sent to the servers as Bearer, for engine 'openai'; never shown.
        identity_folder: where a run keeps which weights its servers have, for engine 'openai'; None: in memory.
        seed: sent to a server or to vLLM; replies are greedy.
        cache: where replies are looked up first and stored; None for no cache.
    """

    model: str
    revision: str | None = None
    engine: str = "transformers"
    url: str = ""
    device: str = "auto"
    threads: int = 1
    max_new_tokens: int = 80
    batch: int = 64
    question_batch: int = 256
    in_flight: int = 16
    timeout_s: float = 300.0
    outage_s: float = 0.0
    api_key: str = field(default="", repr=False)
    identity_folder: Path | None = None
    seed: int = 0
    cache: RequestCache | None = None


class Captioner(Protocol):
    """What stages need of a multimodal LLM.

    Attributes:
        name, revision: of the model.
        engine: its name and version.
        sampling: JSON.
        max_new_tokens: longest reply, tokens.
        usage: requests and tokens so far; a stage resets it after each chunk.
    """

    name: str
    revision: str
    engine: str
    sampling: str
    max_new_tokens: int
    usage: Usage

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order; one with a `refusal` where a request cannot be answered."""

    def yes_probability(self, requests: Sequence[Request]) -> Sequence[float | Refusal]:
        """P(yes) among yes and no at the first answer token, 0..1, or why there is none; one per request, in order."""


class Writer(Protocol):
    """What stages need of a text LLM; attributes as of `Captioner`."""

    name: str
    revision: str
    engine: str
    sampling: str
    max_new_tokens: int
    usage: Usage

    def write(self, prompts: Sequence[str], *, max_tokens: int | None = None) -> list[Reply]:
        """One greedy reply per prompt, in order, of at most `max_tokens` (by default the engine's own limit)."""
