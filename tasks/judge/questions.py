"""The judge: an MLLM asked whether an image is what an instruction makes of another image.

Source of the idea: UniME-V2, arXiv:2510.13515 (the yes-probability of an MLLM as a soft label).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import Params
from tasks.models.llm.base import Captioner
from tasks.models.llm.load import load_captioner
from tasks.models.llm.request_cache import open_cache
from tasks.models.llm.requests import Request

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Question:
    """Is `candidate` what `instruction` makes of `query`?"""

    query: Image
    candidate: Image
    instruction: str


def load_judge(params: Params, root: Path) -> Captioner:
    """The judge that the parameters name, with the request cache of the worktree `root`; errors as of `load_captioner`."""
    config = params.judge
    return load_captioner(
        config.model,
        revision=config.revision,
        device=config.device,
        engine=config.engine,
        url=config.url,
        threads=params.open_run.threads,
        question_batch=config.batch_questions,
        in_flight=config.in_flight,
        timeout_s=config.timeout_s,
        seed=params.open_run.seed,
        cache=open_cache(root, served=config.engine == "openai"),
    )


def yes_probabilities(model: Captioner, questions: Sequence[Question], template: str) -> list[float]:
    """P(yes) per question, 0..1.

    Args:
        model: the MLLM.
        questions: what to ask; the query image is shown first, then the candidate.
        template: the prompt, with {instruction}.
    """
    return model.yes_probability(
        [Request((q.query, q.candidate), template.replace("{instruction}", q.instruction)) for q in questions]
    )
