"""Load the captioner and the writer that the parameters name; the captioner is checked on the canaries first."""

from __future__ import annotations

from pathlib import Path

from tasks.caption.canaries import check_canaries, read_canaries
from tasks.caption.chunk import CaptionSetup
from tasks.config import Params
from tasks.models.llm.base import Captioner, LlmConfig
from tasks.models.llm.load import load_captioner, load_writer, run_config
from tasks.models.llm.request_cache import RequestCache, open_cache
from tasks.prompts.prompt_set import PromptSet


def captioner_config(params: Params, root: Path, cache: RequestCache | None) -> LlmConfig:
    """The captioner of `caption.model`, in a run in worktree `root`."""
    config = params.caption
    named = {"model": config.model, "revision": config.revision, "url": config.url}
    sizes = {"max_new_tokens": config.max_new_tokens, "batch": config.batch_pairs}
    return run_config(params, config, "captioner", root, cache, **named, **sizes)


def writer_config(params: Params, root: Path, cache: RequestCache | None) -> LlmConfig:
    """The writer of `caption.writer`, in a run in worktree `root`.

    Its batches are twice the captioner's, without images to hold.
    """
    config = params.caption
    named = {"model": config.writer, "revision": config.writer_revision, "url": config.writer_url}
    sizes = {"max_new_tokens": config.max_new_tokens, "batch": 2 * config.batch_pairs}
    return run_config(params, config, "writer", root, cache, **named, **sizes)


def load_caption_setup(params: Params, root: Path, prompts: PromptSet) -> tuple[CaptionSetup, list[str]]:
    """The models with the request cache of the worktree `root`, and notes for the report.

    Raises:
        ConfigError: a model cannot be loaded, or the canaries cannot be read.
        DataError: the captioner does not see the canaries.
    """
    cache = open_cache(root, served=params.caption.engine == "openai")
    captioner = load_captioner(captioner_config(params, root, cache))
    notes = [canary_note(params, captioner, prompts)] if params.caption.canaries else []
    writer = load_writer(writer_config(params, root, cache))
    return CaptionSetup(captioner, writer, prompts, params.caption, params.open_run.seed), notes


def canary_note(params: Params, captioner: Captioner, prompts: PromptSet) -> str:
    """Check the captioner on `caption.canaries`; a sentence for the report.

    Raises:
        ConfigError: the canaries cannot be read.
        DataError: the captioner does not see them.
    """
    config = params.caption
    canaries = read_canaries(Path(str(config.canaries)))
    prompt = prompts.description_request(sum(config.description_words) // 2)
    shares = check_canaries(
        captioner,
        prompt,
        canaries,
        seen_min=config.canaries_min,
        blank_max=config.blank_max,
        schema=prompts.schema,
        max_tokens=config.max_new_tokens,
    )
    return f"canaries: {shares.seen:.0%} of {len(canaries)} seen, {shares.guessed:.0%} guessed from blank images"
