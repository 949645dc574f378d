"""vLLM's offline engine in this process: one per GPU task, batched by vLLM itself; imported only when it is asked for.

Images are handed over as they are, prompts are those of the other engines. vLLM lives in an environment of its own
(`make test-vllm`); TASKS_PYTHON names that environment's interpreter where a stage is to run in it. Settings:
structured output by xgrammar, which must not write blanks to the limit; one process on a CPU, where workers would share
two cores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from tasks.errors import ConfigError
from tasks.models.hub import revision_of
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Accounted, Reply, Request

LIKELIEST = 20  # tokens whose log-probability the judge looks at


class VllmCaptioner(Accounted):
    """A model in vLLM's offline engine."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        max_new_tokens: int,
        seed: int,
        cache: RequestCache | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are laid over the engine's own arguments (max_model_len, kv_cache_memory_bytes, ...)."""
        try:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            import torch
            import vllm
        except ImportError as error:
            raise ConfigError(
                f"engine 'vllm': {error}; install vLLM into an environment of its own and name its python in TASKS_PYTHON"
            ) from error
        is_cpu = not torch.cuda.is_available()
        on_cpu = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_num_seqs": 128,
            "kv_cache_memory_bytes": 256 << 20,
            "distributed_executor_backend": "uni",
        }
        arguments = {
            "seed": seed,
            "limit_mm_per_prompt": {"image": 2, "video": 0},
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            "trust_remote_code": False,
            **(on_cpu if is_cpu else {}),
            **settings,
        }
        try:
            self._llm: Any = vllm.LLM(model=model, revision=revision, **arguments)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"model '{model}' (engine 'vllm'): cannot be loaded ({' '.join(str(error).split())[:300]})"
            ) from error
        self._vllm: Any = vllm
        self.name, self.max_new_tokens, self.seed, self.is_on_gpu = model, max_new_tokens, seed, not is_cpu
        self.revision = revision_of(model, revision, getattr(self._llm.llm_engine.model_config, "hf_config", None))
        self._account(
            f"vllm {vllm.__version__}", {"temperature": 0, "max_new_tokens": max_new_tokens, "seed": seed}, cache
        )

    def _turns(self, requests: Sequence[Request]) -> list[list[dict[str, Any]]]:
        return [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image_pil", "image_pil": i} for i in r.images),
                        {"type": "text", "text": r.text},
                    ],
                }
            ]
            for r in requests
        ]

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        return self._texts("chat", requests, {}, lambda: self._chat(requests))

    def _chat(self, requests: Sequence[Request]) -> list[Reply]:
        from vllm.sampling_params import StructuredOutputsParams

        shared = {"temperature": 0.0, "max_tokens": self.max_new_tokens, "seed": self.seed}
        each = [
            self._vllm.SamplingParams(
                **shared,
                **({"structured_outputs": StructuredOutputsParams(json=r.schema)} if r.schema is not None else {}),
            )
            for r in requests
        ]
        outputs = self._llm.chat(self._turns(requests), each, use_tqdm=False)
        return [Reply(o.outputs[0].text.strip(), len(o.prompt_token_ids), len(o.outputs[0].token_ids)) for o in outputs]

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        """P(yes) among yes and no at the first answer token; 0 where neither is among the 20 likeliest."""
        return self._once("yes", requests, {}, lambda: self._yes(requests))

    def _yes(self, requests: Sequence[Request]) -> list[float]:
        asked = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, logprobs=LIKELIEST)
        outputs = self._llm.chat(self._turns(requests), asked, use_tqdm=False)
        self.spent.prompt_tokens += sum(len(o.prompt_token_ids) for o in outputs)
        self.spent.output_tokens += len(outputs)
        return [
            p_yes([(str(t.decoded_token), float(t.logprob)) for t in o.outputs[0].logprobs[0].values()])
            for o in outputs
        ]


def p_yes(likely: Sequence[tuple[str, float]]) -> float:
    """P(yes) among yes and no of (token, log-probability) pairs, however they are spelt; 0 where neither is there."""
    sums = {"yes": 0.0, "no": 0.0}
    for token, logprob in likely:
        word = token.strip().lower()
        if word in sums:
            sums[word] += math.exp(logprob)
    both = sums["yes"] + sums["no"]
    return sums["yes"] / both if both else 0.0
