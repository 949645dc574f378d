"""A transformers model in this process that writes: how it is loaded, and how its tokens become replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.devices import pick_device
from tasks.models.hub import load_errors, model_revision
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.requests import Reply, UsageTracking

if TYPE_CHECKING:
    import torch


class LocalModel(UsageTracking):
    """Base of LocalCaptioner and LocalWriter; a subclass sets `tokenizer` first.

    Work is sorted by length and cut into fixed batches within one call, so that equal calls give equal bytes.
    """

    tokenizer: Any

    def __init__(self, auto_class: Any, config: LlmConfig, *, parameter: str) -> None:
        """Load the weights.

        Args:
            auto_class: a transformers Auto class.
            config: the model.
            parameter: which parameter names the model, for errors.
        Raises:
            ConfigError: nothing loadable under that name.
        """
        import torch
        import transformers

        torch.set_num_threads(config.threads)
        self.name, self.max_new_tokens, self.batch = config.model, config.max_new_tokens, config.batch
        self.device = pick_device(config.device)
        dtype: Any = torch.float32 if self.device == "cpu" else "auto"
        with load_errors(config.model, parameter):
            self.model: Any = auto_class.from_pretrained(
                config.model, revision=config.revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        self.model.eval().to(self.device)
        self.revision = model_revision(config.model, config.revision, self.model.config)
        self.is_on_gpu = self.device != "cpu"
        self._track_usage(
            f"transformers {transformers.__version__}, torch {torch.__version__}",
            {"temperature": 0, "max_new_tokens": config.max_new_tokens},
            config.cache,
        )
        device_type = self.device.partition(":")[0]
        self._settings = {"batch": config.batch, "threads": config.threads, "device": device_type}

    def _pad_left(self) -> None:
        """Let batches end where the reply begins."""
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _replies(self, outputs: torch.Tensor, prompt_tokens: Sequence[int]) -> list[Reply]:
        """(b, length) new tokens -> replies, each up to its end token."""
        pad, ends = self.tokenizer.pad_token_id, self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        replies = []
        for ids, count in zip(outputs.tolist(), prompt_tokens, strict=True):
            end = next((n + 1 for n, i in enumerate(ids) if i in ends), None)
            length = len(ids) if end is None else end
            while length and ids[length - 1] == pad and pad not in ends:
                length -= 1
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
            replies.append(Reply(text, count, length, is_cut=bool(ends) and end is None))
        return replies


def batches_by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Positions cut into batches of similar length, longest first; ties by position, so equal inputs give equal
    batches.
    """
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    return [order[start : start + batch] for start in range(0, len(order), batch)]
