"""Text LLMs: a prompt in, a text out (greedy); in process or on an OpenAI-compatible server.

In process any AutoModelForCausalLM whose tokenizer has a chat template; batches are fixed by the prompts' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tasks.errors import ConfigError
from tasks.models.hub import loading
from tasks.models.llm.captioner import LocalModel, batches_by_length, check_engine
from tasks.models.llm.openai_server import ServedCaptioner
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Reply, Request
from tasks.models.llm.vllm_engine import VllmCaptioner
from tasks.usage import Ledger


class Writer(Protocol):
    """What stages need of a text LLM."""

    name: str
    revision: str
    engine: str  # its name and version
    sampling: str  # JSON
    spent: Ledger

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order."""


def load_writer(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    engine: str = "transformers",
    url: str = "",
    threads: int = 1,
    max_new_tokens: int = 80,
    batch: int = 64,
    in_flight: int = 16,
    timeout_s: float = 300.0,
    seed: int = 0,
    cache: RequestCache | None = None,
) -> Writer:
    """Load a text LLM, or reach the server that has it; arguments as in `load_captioner`."""
    check_engine(engine)
    if engine == "openai":
        return ServedWriter(model, revision=revision, url=url, in_flight=in_flight, max_new_tokens=max_new_tokens, timeout_s=timeout_s, seed=seed, cache=cache)
    if engine == "vllm":
        return VllmWriter(model, revision=revision, max_new_tokens=max_new_tokens, seed=seed, cache=cache)
    return LocalWriter(model, revision=revision, device=device, threads=threads, max_new_tokens=max_new_tokens, batch=batch, cache=cache)


class LocalWriter(LocalModel):
    """A text-only transformers model in this process."""

    def __init__(
        self, model: str, *, revision: str | None, device: str, threads: int, max_new_tokens: int, batch: int, cache: RequestCache | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        key = "caption.writer"
        with loading(model, key):
            self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise ConfigError(f"model '{model}' ({key}): its tokenizer has no chat template; name an instruct model")
        self._pad_left()
        super().__init__(
            AutoModelForCausalLM, model, key=key, revision=revision, device=device, threads=threads, max_new_tokens=max_new_tokens, batch=batch, cache=cache
        )

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order; equal prompts are answered once."""
        distinct = list(dict.fromkeys(prompts))
        replies = dict(zip(distinct, self._texts("write", [Request((), p) for p in distinct], self._facts, lambda: self._written(distinct)), strict=True))
        return [replies[p] for p in prompts]

    def _written(self, distinct: Sequence[str]) -> list[Reply]:
        import torch

        ids = [self._ids(p) for p in distinct]
        replies: dict[str, Reply] = {}
        for part in batches_by_length([len(i) for i in ids], self.batch):
            inputs = self.tokenizer.pad({"input_ids": [ids[n] for n in part]}, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                made = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            replies |= dict(zip([distinct[n] for n in part], self._replies(made, [len(ids[n]) for n in part]), strict=True))
        return [replies[p] for p in distinct]

    def _ids(self, prompt: str) -> list[int]:
        chat = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(chat, add_special_tokens=False).input_ids)


class VllmWriter(VllmCaptioner):
    """A text LLM in vLLM's offline engine."""

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order."""
        return self.chat([Request((), prompt) for prompt in prompts])


class ServedWriter(ServedCaptioner):
    """A text LLM behind an OpenAI-compatible server."""

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order."""
        return self.chat([Request((), prompt) for prompt in prompts])
