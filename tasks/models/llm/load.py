"""Load a captioner or a writer by engine: transformers, openai (a server) or vllm."""

from __future__ import annotations

from tasks.errors import ConfigError
from tasks.models.llm.base import Captioner, Writer
from tasks.models.llm.captioner import LocalCaptioner
from tasks.models.llm.openai_server import ServedCaptioner
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.vllm_engine import VllmCaptioner
from tasks.models.llm.writer import LocalWriter, ServedWriter, VllmWriter

ENGINES = ("transformers", "openai", "vllm")


def load_captioner(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    engine: str = "transformers",
    url: str = "",
    threads: int = 1,
    max_new_tokens: int = 80,
    batch: int = 64,
    question_batch: int = 256,
    in_flight: int = 16,
    timeout_s: float = 300.0,
    seed: int = 0,
    cache: RequestCache | None = None,
) -> Captioner:
    """Load a multimodal LLM, or reach the server that has it.

    Args:
        model: Hugging Face name or local folder; the served model's name for engine 'openai'.
        revision: pinned revision of a name.
        device: auto, cpu, cuda or cuda:N.
        engine: 'transformers', 'openai' or 'vllm'.
        url: base URL of the server, ending in /v1; replicas of one model separated by commas.
        threads: CPU threads of the model, a count.
        max_new_tokens: longest reply, tokens.
        batch: requests in one pass of `chat`, a count.
        question_batch: requests in one pass of `yes_probability`, a count.
        in_flight: requests in flight at each server, a count.
        timeout_s: longest that one served reply may take, s.
        seed: sent to a server or to vLLM; replies are greedy.
        cache: where replies are kept and looked up first.
    Raises:
        ConfigError: unknown engine, or nothing loadable under that name.
    """
    check_engine(engine)
    if engine == "openai":
        return ServedCaptioner(
            model,
            revision=revision,
            url=url,
            in_flight=in_flight,
            max_new_tokens=max_new_tokens,
            timeout_s=timeout_s,
            seed=seed,
            cache=cache,
        )
    if engine == "vllm":
        return VllmCaptioner(model, revision=revision, max_new_tokens=max_new_tokens, seed=seed, cache=cache)
    return LocalCaptioner(
        model,
        revision=revision,
        device=device,
        threads=threads,
        max_new_tokens=max_new_tokens,
        batch=batch,
        question_batch=question_batch,
        cache=cache,
    )


def check_engine(engine: str) -> None:
    """Refuse an engine of an unknown name.

    Raises:
        ConfigError: none of ENGINES.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine '{engine}': known are {', '.join(map(repr, ENGINES))}")


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
        return ServedWriter(
            model,
            revision=revision,
            url=url,
            in_flight=in_flight,
            max_new_tokens=max_new_tokens,
            timeout_s=timeout_s,
            seed=seed,
            cache=cache,
        )
    if engine == "vllm":
        return VllmWriter(model, revision=revision, max_new_tokens=max_new_tokens, seed=seed, cache=cache)
    return LocalWriter(
        model,
        revision=revision,
        device=device,
        threads=threads,
        max_new_tokens=max_new_tokens,
        batch=batch,
        cache=cache,
    )
