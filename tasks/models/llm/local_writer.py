"""Text LLM in process: any AutoModelForCausalLM whose tokenizer has a chat template; replies are greedy."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import ConfigError
from tasks.models.hub import load_errors
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.local_model import LocalModel, batches_by_length
from tasks.models.llm.requests import Reply, Request


class LocalWriter(LocalModel):
    """A text-only transformers model in this process; batches are fixed by the prompts' lengths."""

    def __init__(self, config: LlmConfig) -> None:
        """Load tokenizer and weights.

        Raises:
            ConfigError: nothing loadable under that name, or a tokenizer without a chat template.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        parameter = "caption.writer"
        with load_errors(config.model, parameter):
            self.tokenizer = AutoTokenizer.from_pretrained(
                config.model, revision=config.revision, trust_remote_code=False
            )
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"model '{config.model}' ({parameter}): its tokenizer has no chat template; name an instruct model"
            )
        self._pad_left()
        super().__init__(AutoModelForCausalLM, config, parameter=parameter)

    def write(self, prompts: Sequence[str], *, max_tokens: int | None = None) -> list[Reply]:
        """One greedy reply per prompt, in order; equal prompts are answered once."""
        distinct, limit = list(dict.fromkeys(prompts)), max_tokens or self.max_new_tokens
        requests = [Request((), prompt, None, max_tokens) for prompt in distinct]
        replies = self._cached_replies("write", requests, self._settings, lambda: self._generate(distinct, limit))
        by_prompt = dict(zip(distinct, replies, strict=True))
        return [by_prompt[prompt] for prompt in prompts]

    def _generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Reply]:
        import torch

        ids = [self._token_ids(prompt) for prompt in prompts]
        replies: dict[int, Reply] = {}
        for part in batches_by_length([len(i) for i in ids], self.batch):
            inputs = self.tokenizer.pad({"input_ids": [ids[n] for n in part]}, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                outputs = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
            replies |= dict(zip(part, self._replies(new_tokens, [len(ids[n]) for n in part]), strict=True))
        return [replies[n] for n in range(len(prompts))]

    def _token_ids(self, prompt: str) -> list[int]:
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return list(self.tokenizer(chat, add_special_tokens=False).input_ids)
