"""Whether a fine-tuned model takes the place of the one in use. Pure: figures in, a decision with its reason out.

Two runs of one recipe differ by the seed alone, so a gain counts only beyond that noise. `Noise` is the standard
deviation over the seeds of each metric; the difference of two runs has sqrt(2) of it, and Student's t says how far few
seeds can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

Scores = Mapping[str, Mapping[str, float]]  # "composed" | "image_only" | "text_only" -> metric -> value

# Student's t, one-sided 95%, for 1, 2, 3, ... degrees of freedom (any table of the distribution).
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)


class Decision(NamedTuple):
    """Promoted or not, and why in one sentence."""

    is_promoted: bool
    why: str


class Noise(NamedTuple):
    """What the seed alone does to the scores of a recipe.

    Attributes:
        seeds: runs that it was measured from, a count.
        deviations: metric of the composed query -> sample standard deviation over the seeds.
    """

    seeds: int
    deviations: Mapping[str, float]

    def margin(self, metric: str) -> float | None:
        """What a difference of two runs must exceed to be more than noise, one-sided 95%; None where it was not
        measured.
        """
        if self.seeds < 2 or metric not in self.deviations:
            return None
        return T95[min(self.seeds - 2, len(T95) - 1)] * math.sqrt(2) * self.deviations[metric]


def decide(
    candidate: Scores,
    in_place: Scores | None,
    base: Scores,
    metric: str,
    min_gain: float,
    *,
    noise: Noise | None = None,
    seen_share: float = 0.0,
    seen_share_max: float = 0.0,
) -> Decision:
    """Whether the candidate is promoted.

    It must beat the model in place (the base checkpoint where none is) by more than `min_gain` and the noise, be worse
    in no other metric by more than its noise, and beat its own image-only and text-only queries: a model that ignores
    half of the query is no composed retriever. A model that was trained on the benchmark's images is not promoted
    whatever it scores. Where no noise was measured, `min_gain` alone stands for it, on the main metric.

    Args:
        candidate: the fine-tuned model's scores; "composed" may hold metrics of further benchmarks.
        in_place: those of the model in use; None where none was promoted yet.
        base: those of the checkpoint it started from.
        metric: name of the metric, of the composed query.
        min_gain: the gain must exceed this.
        noise: of the candidate's recipe.
        seen_share: share of the images of the benchmark's queries and answers that it was trained on, 0..1.
        seen_share_max: more than this is a contaminated model.
    """
    score = candidate["composed"][metric]
    if not math.isfinite(score):
        return Decision(False, f"its composed {metric} is {score}")
    if seen_share > seen_share_max:
        return Decision(
            False,
            f"contaminated: it was trained on {seen_share:.1%} of the images of the benchmark's queries and answers",
        )
    rival_name, rivals = (
        ("the model in place", in_place["composed"]) if in_place else ("the base model", base["composed"])
    )
    rival = rivals[metric]
    gain = f"composed {metric} {score:.4f} against {rival:.4f} of {rival_name}"
    margin = (noise.margin(metric) if noise else None) or 0.0
    if not score - rival > max(min_gain, margin):
        asked = (
            f"{min_gain:g}"
            if margin <= min_gain
            else f"{margin:.4f}, the noise of {noise.seeds if noise else 0} seeds,"
        )
        return Decision(False, f"{gain}: a gain of more than {asked} is asked for")
    for half in ("image_only", "text_only"):
        if half in candidate and not score > candidate[half][metric]:
            return Decision(
                False, f"{gain}, but its own {half.replace('_', '-')} query scores {candidate[half][metric]:.4f}"
            )
    for other in sorted(set(candidate["composed"]) & set(rivals) - {metric}) if noise else ():
        allowed = noise.margin(other) if noise else None
        now, then = candidate["composed"][other], rivals[other]
        if allowed is not None and not now >= then - allowed:
            return Decision(
                False,
                f"{gain}, but its {other} is {now:.4f} against {then:.4f}, worse by more than {allowed:.4f}, the noise",
            )
    return Decision(True, gain + (f", noise {margin:.4f}" if margin else ""))
