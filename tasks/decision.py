"""Whether a fine-tuned model takes the place of the one in use. Pure: figures in, a decision with its reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

Scores = Mapping[str, Mapping[str, float]]  # "composed" | "image_only" | "text_only" -> metric -> value


class Decision(NamedTuple):
    """Promoted or not, and why in one sentence."""

    is_promoted: bool
    why: str


def decide(candidate: Scores, in_place: Scores | None, base: Scores, metric: str, min_gain: float) -> Decision:
    """Whether the candidate is promoted.

    It must beat the model in place (the base checkpoint where none is) by more than `min_gain`, and its own image-only
    and text-only queries: a model that ignores half of the query is no composed retriever.

    Args:
        candidate: the fine-tuned model's scores.
        in_place: those of the model in use; None where none was promoted yet.
        base: those of the checkpoint it started from.
        metric: name of the metric, of the composed query.
        min_gain: the gain must exceed this.
    """
    score = candidate["composed"][metric]
    if not math.isfinite(score):
        return Decision(False, f"its composed {metric} is {score}")
    rival_name, rival = ("the model in place", in_place["composed"][metric]) if in_place else ("the base model", base["composed"][metric])
    gain = f"composed {metric} {score:.4f} against {rival:.4f} of {rival_name}"
    if not score - rival > min_gain:
        return Decision(False, f"{gain}: a gain of more than {min_gain:g} is asked for")
    for half in ("image_only", "text_only"):
        if half in candidate and not score > candidate[half][metric]:
            return Decision(False, f"{gain}, but its own {half.replace('_', '-')} query scores {candidate[half][metric]:.4f}")
    return Decision(True, gain)
