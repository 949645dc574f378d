"""Load a captioner or a writer by its engine: transformers, openai (servers) or vllm."""

from __future__ import annotations

from tasks.errors import ConfigError
from tasks.models.llm.base import ENGINES, Captioner, LlmConfig, Writer


def load_captioner(config: LlmConfig) -> Captioner:
    """Load a multimodal LLM, or connect to the server that has it.

    Raises:
        ConfigError: unknown engine, or nothing loadable under that name.
    """
    _require_engine(config.engine)
    if config.engine == "openai":
        from tasks.models.llm.openai_server import ServedCaptioner

        return ServedCaptioner(config)
    if config.engine == "vllm":
        from tasks.models.llm.vllm_engine import VllmCaptioner

        return VllmCaptioner(config)
    from tasks.models.llm.local_captioner import LocalCaptioner

    return LocalCaptioner(config)


def load_writer(config: LlmConfig) -> Writer:
    """Load a text LLM, or connect to the server that has it.

    Raises:
        ConfigError: unknown engine, or nothing loadable under that name.
    """
    _require_engine(config.engine)
    if config.engine == "openai":
        from tasks.models.llm.openai_server import ServedWriter

        return ServedWriter(config)
    if config.engine == "vllm":
        from tasks.models.llm.vllm_engine import VllmWriter

        return VllmWriter(config)
    from tasks.models.llm.local_writer import LocalWriter

    return LocalWriter(config)


def _require_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ConfigError(f"engine '{engine}': unknown; known are {', '.join(map(repr, ENGINES))}; name one of them")
