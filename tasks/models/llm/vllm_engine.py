"""vLLM's offline engine in this process, for captioner and writer; imported only where engine 'vllm' is named.

vLLM batches by itself; images are handed over as they are, prompts are those of the other engines. It lives in an
environment of its own (`make test-vllm`); TASKS_PYTHON names that environment's interpreter where a stage is to run in
it. Structured output is decoded by xgrammar without free white space, which models would repeat to the limit. On a CPU
everything stays in one process, where workers would share two cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tasks.errors import ConfigError
from tasks.models.hub import model_revision
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.requests import Refusal, Reply, Request, UsageTracking
from tasks.models.llm.yes_no import TOP_LOGPROBS, yes_probability

CPU_ARGUMENTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 128,
    "kv_cache_memory_bytes": 256 << 20,
    "distributed_executor_backend": "uni",
}


class VllmCaptioner(UsageTracking):
    """A multimodal LLM in vLLM's offline engine."""

    def __init__(self, config: LlmConfig, **engine_arguments: Any) -> None:
        """Load the model.

        Args:
            config: the model.
            engine_arguments: override the engine's arguments below (max_model_len, kv_cache_memory_bytes, ...).
        Raises:
            ConfigError: vLLM is not installed, or nothing loadable under that name.
        """
        try:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            import torch
            import vllm
        except ImportError as error:
            raise ConfigError(
                f"engine 'vllm': {error}; install vLLM into an environment of its own and name its python in "
                "TASKS_PYTHON"
            ) from error
        is_cpu = not torch.cuda.is_available()
        arguments = {
            "seed": config.seed,
            "limit_mm_per_prompt": {"image": 2, "video": 0},
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            "trust_remote_code": False,
            **(CPU_ARGUMENTS if is_cpu else {}),
            **engine_arguments,
        }
        try:
            self._llm: Any = vllm.LLM(model=config.model, revision=config.revision, **arguments)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"model '{config.model}' (engine 'vllm'): cannot be loaded ({' '.join(str(error).split())[:300]}); "
                "expected a local folder or a Hugging Face name that vLLM supports"
            ) from error
        self._vllm: Any = vllm
        self.name, self.max_new_tokens, self.seed = config.model, config.max_new_tokens, config.seed
        self.is_on_gpu = not is_cpu
        model_config = getattr(self._llm.llm_engine.model_config, "hf_config", None)
        self.revision = model_revision(config.model, config.revision, model_config)
        sampling = {"temperature": 0, "max_new_tokens": config.max_new_tokens, "seed": config.seed}
        self._track_usage(f"vllm {vllm.__version__}", sampling, config.cache)

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        return self._cached_replies("chat", requests, {}, lambda: self._chat(requests))

    def _chat(self, requests: Sequence[Request]) -> list[Reply]:
        replies = []
        for output in self._outputs(requests, [self._sampling(request) for request in requests]):
            if isinstance(output, Refusal):
                replies.append(Reply("", 0, 0, refusal=output))
                continue
            written = output.outputs[0]
            is_cut = written.finish_reason == "length"
            replies.append(Reply(written.text.strip(), len(output.prompt_token_ids), len(written.token_ids), is_cut))
        return replies

    def _outputs(self, requests: Sequence[Request], sampling: Sequence[Any]) -> list[Any]:
        """vLLM's outputs in order, with a `Refusal` for a request that it does not take (too long, a bad image).

        Raises:
            ConfigError: it takes none of them, and not a plain one either.
        """
        try:
            return list(self._llm.chat([_turns(r) for r in requests], list(sampling), use_tqdm=False))
        except ValueError as error:
            if len(requests) == 1:
                return [Refusal("request_refused", " ".join(str(error).split())[:300])]
        outputs = [self._outputs([r], [s])[0] for r, s in zip(requests, sampling, strict=True)]
        if all(isinstance(output, Refusal) for output in outputs):
            self._require_plain_request(requests[0], sampling[0], outputs[0].detail)
        return outputs

    def _require_plain_request(self, request: Request, sampling: Any, words: str) -> None:
        from PIL import Image

        images = tuple(Image.new("RGB", (64, 64), (128, 128, 128)) for _ in request.images)
        if isinstance(self._outputs([Request(images, "Answer yes or no.")], [sampling])[0], Refusal):
            raise ConfigError(
                f"model '{self.name}' (engine 'vllm'): refuses every request ({words}); expected an answer: check the "
                "model, its limits and the parameters"
            )

    def _sampling(self, request: Request) -> Any:
        from vllm.sampling_params import StructuredOutputsParams

        guided = {}
        if request.schema is not None:
            guided["structured_outputs"] = StructuredOutputsParams(json=request.schema)
        return self._vllm.SamplingParams(
            temperature=0.0, max_tokens=request.max_tokens or self.max_new_tokens, seed=self.seed, **guided
        )

    def yes_probability(self, requests: Sequence[Request]) -> list[float | Refusal]:
        """P(yes) among yes and no at the first answer token; 0 where neither is among the 20 most likely."""
        answers = self._cached_call("yes", requests, {}, lambda: self._yes(requests))
        return [Refusal(*answer) if isinstance(answer, list) else answer for answer in answers]

    def _yes(self, requests: Sequence[Request]) -> list[float | list[str]]:
        """P(yes), or reason and detail of a refusal: what the cache can hold."""
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, logprobs=TOP_LOGPROBS)
        answers: list[float | list[str]] = []
        for output in self._outputs(requests, [sampling] * len(requests)):
            if isinstance(output, Refusal):
                answers.append([output.reason, output.detail])
                continue
            self.usage.prompt_tokens += len(output.prompt_token_ids)
            self.usage.output_tokens += 1
            tokens = output.outputs[0].logprobs[0].values()
            answers.append(yes_probability((str(t.decoded_token), float(t.logprob)) for t in tokens))
        return answers


class VllmWriter(VllmCaptioner):
    """A text LLM in vLLM's offline engine."""

    def write(self, prompts: Sequence[str], *, max_tokens: int | None = None) -> list[Reply]:
        """One greedy reply per prompt, in order."""
        return self.chat([Request((), prompt, None, max_tokens) for prompt in prompts])


def _turns(request: Request) -> list[dict[str, Any]]:
    images = [{"type": "image_pil", "image_pil": image} for image in request.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": request.text}]}]
