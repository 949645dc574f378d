"""Text LLMs: a prompt in, a text out (greedy); in process or on an OpenAI-compatible server.

In process any AutoModelForCausalLM whose tokenizer has a chat template; batches are fixed by the prompts' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tasks.errors import ConfigError
from tasks.models.captioner import Reply, Request, ServedCaptioner, batches_by_length
from tasks.models.revisions import loading, pick_device, revision_of


class Writer(Protocol):
    """What stages need of a text LLM."""

    name: str
    revision: str

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
) -> Writer:
    """Load a text LLM, or reach the server that has it; arguments as in `load_captioner`."""
    if engine == "openai":
        return ServedWriter(model, revision=revision, url=url, in_flight=16 * threads, max_new_tokens=max_new_tokens)
    if engine == "transformers":
        return LocalWriter(model, revision=revision, device=device, threads=threads, max_new_tokens=max_new_tokens, batch=batch)
    raise ConfigError(f"engine '{engine}': known are 'transformers' and 'openai'")


class LocalWriter:
    """A transformers model in this process."""

    def __init__(self, model: str, *, revision: str | None, device: str, threads: int, max_new_tokens: int, batch: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self.name = model
        self.device = pick_device(device)
        with loading(model, "caption.writer"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
            dtype: Any = torch.float32 if self.device == "cpu" else "auto"
            self.model: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        self.model.eval().to(self.device)
        if not self.tokenizer.chat_template:
            raise ConfigError(f"model '{model}' (caption.writer): its tokenizer has no chat template; name an instruct model")
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.revision = revision_of(model, revision, self.model.config)
        self.max_new_tokens, self.batch = max_new_tokens, batch

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order; equal prompts are answered once."""
        import torch

        distinct = list(dict.fromkeys(prompts))
        ids = [self._ids(p) for p in distinct]
        replies: dict[str, Reply] = {}
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        for part in batches_by_length([len(i) for i in ids], self.batch):
            inputs = self.tokenizer.pad({"input_ids": [ids[n] for n in part]}, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                made = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            for n, out in zip(part, made.tolist(), strict=True):
                length = next((k + 1 for k, i in enumerate(out) if i in ends), len(out))
                replies[distinct[n]] = Reply(self.tokenizer.decode(out[:length], skip_special_tokens=True).strip(), len(ids[n]), length)
        return [replies[p] for p in prompts]

    def _ids(self, prompt: str) -> list[int]:
        chat = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(chat, add_special_tokens=False).input_ids)


class ServedWriter(ServedCaptioner):
    """A text LLM behind an OpenAI-compatible server."""

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order."""
        return self.chat([Request((), prompt) for prompt in prompts])
