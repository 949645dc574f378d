"""The judge: an MLLM asked whether a picture is what an instruction makes of another picture.

Source of the idea: UniME-V2, arXiv:2510.13515 (the yes-probability of an MLLM as a soft label).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.models.captioner import Captioner
from tasks.models.replies import Request

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Question:
    """Is `candidate` what `instruction` makes of `query`?"""

    query: Image
    candidate: Image
    instruction: str


def yes_probabilities(model: Captioner, questions: Sequence[Question], template: str) -> list[float]:
    """P(yes) per question, 0..1.

    Args:
        model: the MLLM.
        questions: what to ask; the query picture is shown first, then the candidate.
        template: the prompt, with {instruction}.
    """
    return model.yes_probability([Request((q.query, q.candidate), template.replace("{instruction}", q.instruction)) for q in questions])
