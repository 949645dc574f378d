"""Load a captioner or a writer by its engine: transformers, openai (servers) or vllm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.config import CaptionConfig, JudgeConfig, Params
from tasks.config.urls import ModelRole
from tasks.errors import ConfigError
from tasks.models.llm.api_keys import model_api_key
from tasks.models.llm.base import ENGINES, Captioner, LlmConfig, Writer
from tasks.models.llm.request_cache import RequestCache


def run_config(
    params: Params,
    section: CaptionConfig | JudgeConfig,
    role: ModelRole,
    root: Path,
    cache: RequestCache | None,
    **of_model: Any,
) -> LlmConfig:
    """What the models of a run's stages have in common: engine, limits, seed, and where things are kept.

    Args:
        params: the run's.
        section: of the stage.
        role: captioner, writer or judge; the key of its servers goes by it.
        root: the run's worktree.
        cache: of replies.
        of_model: model, revision, url and sizes, as of LlmConfig.
    """
    return LlmConfig(
        **of_model,
        engine=section.engine,
        device=section.device,
        threads=params.open_run.threads,
        in_flight=section.in_flight,
        timeout_s=section.timeout_s,
        outage_s=section.outage_s,
        api_key=model_api_key(role),
        identity_folder=root / ".run" / "served",
        seed=params.open_run.seed,
        cache=cache,
    )


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
