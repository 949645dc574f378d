"""The judge: an MLLM that is asked whether an image is what an instruction makes of another image.

Source of the idea: UniME-V2, arXiv:2510.13515 (the yes-probability of an MLLM as a soft label).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import JudgeConfig, Params
from tasks.judge.verdict import Verdict, VerdictRules, decide
from tasks.models.llm.base import Captioner, LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.request_cache import open_cache
from tasks.models.llm.requests import Request
from tasks.prompts.styles import is_partial

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Question:
    """Is `candidate` what `instruction` makes of `query`?"""

    query: Image
    candidate: Image
    instruction: str


def load_judge(params: Params, root: Path) -> Captioner:
    """The judge that the parameters name, with the request cache of the worktree `root`.

    Raises:
        ConfigError: it cannot be loaded.
    """
    config = params.judge
    return load_captioner(
        LlmConfig(
            model=config.model,
            revision=config.revision,
            engine=config.engine,
            url=config.url,
            device=config.device,
            threads=params.open_run.threads,
            question_batch=config.batch_questions,
            in_flight=config.in_flight,
            timeout_s=config.timeout_s,
            seed=params.open_run.seed,
            cache=open_cache(root, served=config.engine == "openai"),
        )
    )


def yes_probabilities(model: Captioner, questions: Sequence[Question], template: str) -> list[float]:
    """P(yes) per question, 0..1.

    Args:
        model: the judge.
        questions: the query image is shown first, then the candidate.
        template: the prompt, with {instruction}.
    """
    return model.yes_probability(
        [Request((q.query, q.candidate), template.replace("{instruction}", q.instruction)) for q in questions]
    )


def judge_pairs(
    rows: Sequence[Mapping[str, Any]], images: Mapping[str, Any], model: Captioner, template: str, config: JudgeConfig
) -> list[Verdict]:
    """A verdict per pair.

    The judge is asked about the targets first, and about negatives only for instructions that passed.

    Args:
        rows: with instructions, styles, query_image_id, target_image_id, negative_image_ids.
        images: image_id -> image, of every image named in the rows.
        model: the judge.
        template: the prompt, with {instruction}.
        config: thresholds.
    """
    instructions = [(r, n) for r, row in enumerate(rows) for n in range(len(row["instructions"]))]
    questions = [_question(rows[r], images, n, rows[r]["target_image_id"]) for r, n in instructions]
    target_yes: list[list[float]] = [[] for _ in rows]
    for (r, _), yes in zip(instructions, yes_probabilities(model, questions, template), strict=True):
        target_yes[r].append(yes)
    passed = [(r, n) for r, n in instructions if target_yes[r][n] >= config.threshold]
    negatives = [(r, n, image_id) for r, n in passed for image_id in rows[r]["negative_image_ids"]]
    questions = [_question(rows[r], images, n, image_id) for r, n, image_id in negatives]
    negative_yes: list[dict[int, list[float]]] = [{} for _ in rows]
    for (r, n, _), yes in zip(negatives, yes_probabilities(model, questions, template), strict=True):
        negative_yes[r].setdefault(n, []).append(yes)
    rules = VerdictRules(
        threshold=config.threshold,
        negative_threshold=config.negative_threshold,
        instructions_min=config.instructions_min,
        negative_margin=config.negative_margin,
        negatives_max=config.negatives,
    )
    return [
        decide(target_yes[r], negative_yes[r], [is_partial(style) for style in row["styles"]], rules)
        for r, row in enumerate(rows)
    ]


def _question(row: Mapping[str, Any], images: Mapping[str, Any], instruction: int, candidate_id: str) -> Question:
    return Question(images[row["query_image_id"]], images[candidate_id], row["instructions"][instruction])
