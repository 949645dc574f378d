"""Text LLMs: a prompt in, a text out (greedy); in process or on an OpenAI-compatible server.

In process any AutoModelForCausalLM whose tokenizer has a chat template; batches are fixed by the prompts' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import ConfigError
from tasks.models.hub import loading
from tasks.models.llm.captioner import LocalModel, batches_by_length
from tasks.models.llm.openai_server import ServedCaptioner
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Reply, Request
from tasks.models.llm.vllm_engine import VllmCaptioner


class LocalWriter(LocalModel):
    """A text-only transformers model in this process."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        device: str,
        threads: int,
        max_new_tokens: int,
        batch: int,
        cache: RequestCache | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        key = "caption.writer"
        with loading(model, key):
            self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise ConfigError(f"model '{model}' ({key}): its tokenizer has no chat template; name an instruct model")
        self._pad_left()
        super().__init__(
            AutoModelForCausalLM,
            model,
            key=key,
            revision=revision,
            device=device,
            threads=threads,
            max_new_tokens=max_new_tokens,
            batch=batch,
            cache=cache,
        )

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order; equal prompts are answered once."""
        distinct = list(dict.fromkeys(prompts))
        replies = dict(
            zip(
                distinct,
                self._texts("write", [Request((), p) for p in distinct], self._facts, lambda: self._written(distinct)),
                strict=True,
            )
        )
        return [replies[p] for p in prompts]

    def _written(self, distinct: Sequence[str]) -> list[Reply]:
        import torch

        ids = [self._ids(p) for p in distinct]
        replies: dict[str, Reply] = {}
        for part in batches_by_length([len(i) for i in ids], self.batch):
            inputs = self.tokenizer.pad({"input_ids": [ids[n] for n in part]}, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                made = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)[
                    :, inputs["input_ids"].shape[1] :
                ]
            replies |= dict(
                zip([distinct[n] for n in part], self._replies(made, [len(ids[n]) for n in part]), strict=True)
            )
        return [replies[p] for p in distinct]

    def _ids(self, prompt: str) -> list[int]:
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
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
