"""Whether a fine-tuned model replaces the promoted one. Pure: scores in, a decision with its reason out.

Two runs of one recipe differ by the seed alone, so a gain counts only beyond that noise. `Noise` holds the standard
deviation of each metric over the seeds; the difference of two runs has sqrt(2) times that, and Student's t accounts for
how few the seeds are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Scores = Mapping[str, Mapping[str, float]]  # "composed" | "image_only" | "text_only" -> metric -> value

# Student's t, one-sided 95%, for 1, 2, 3, ... degrees of freedom (any table of the distribution).
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)


class Decision(NamedTuple):
    """Promoted or not, and why in one sentence."""

    is_promoted: bool
    why: str


class Noise(NamedTuple):
    """How much the seed alone changes the scores of a recipe.

    Attributes:
        seeds: runs that it was measured from, a count.
        deviations: metric of the composed query -> sample standard deviation over the seeds.
    """

    seeds: int
    deviations: Mapping[str, float]

    def margin(self, metric: str) -> float | None:
        """What the difference of two runs must exceed to be more than noise, one-sided 95%; None where not measured."""
        if self.seeds < 2 or metric not in self.deviations:
            return None
        return T95[min(self.seeds - 2, len(T95) - 1)] * math.sqrt(2) * self.deviations[metric]


@dataclass(frozen=True)
class PromotionRule:
    """What a candidate must achieve.

    Attributes:
        metric: the main metric, of the composed query.
        min_gain: its gain must exceed this.
        noise: of the candidate's recipe; None where it was not measured: `min_gain` alone decides then, by the main
            metric.
        seen_share_max: largest share of the images of the benchmark's queries and answers that may have been trained
            on, 0..1.
    """

    metric: str
    min_gain: float
    noise: Noise | None = None
    seen_share_max: float = 0.0

    def margin(self, metric: str) -> float | None:
        """The noise margin of a metric; None where it was not measured."""
        return self.noise.margin(metric) if self.noise else None


def decide(
    candidate: Scores, promoted: Scores | None, base: Scores, rule: PromotionRule, *, seen_share: float = 0.0
) -> Decision:
    """Decide whether the candidate is promoted.

    It must beat the promoted model (the base checkpoint where there is none) by more than `min_gain` and the noise, be
    worse in no other metric by more than its noise, and beat its own image-only and text-only queries: a model that
    ignores half of the query is no composed retriever. A model that was trained on the benchmark's images is not
    promoted, whatever it scores.

    Args:
        candidate: the fine-tuned model's scores; "composed" may hold metrics of further benchmarks.
        promoted: those of the promoted model; None where there is none yet.
        base: those of the checkpoint that the candidate started from.
        rule: what it must achieve.
        seen_share: share of the images of the benchmark's queries and answers that it was trained on, 0..1.
    """
    metric = rule.metric
    score = candidate["composed"][metric]
    if not math.isfinite(score):
        return Decision(False, f"its composed {metric} is {score}")
    if seen_share > rule.seen_share_max:
        return Decision(
            False,
            f"contaminated: it was trained on {seen_share:.1%} of the images of the benchmark's queries and answers",
        )
    rival_name, rival = ("the promoted model", promoted) if promoted else ("the base model", base)
    comparison = f"composed {metric} {score:.4f} against {rival['composed'][metric]:.4f} of {rival_name}"
    failure = _too_small_gain(candidate, rival, rule) or _ignored_half(candidate, rule) or _loss(candidate, rival, rule)
    if failure:
        return Decision(False, comparison + failure)
    margin = rule.margin(metric)
    return Decision(True, comparison + (f", noise {margin:.4f}" if margin else ""))


def _too_small_gain(candidate: Scores, rival: Scores, rule: PromotionRule) -> str | None:
    """Why the gain in the main metric is too small, as the end of a sentence; None where it is not."""
    margin = rule.margin(rule.metric) or 0.0
    if candidate["composed"][rule.metric] - rival["composed"][rule.metric] > max(rule.min_gain, margin):
        return None
    if margin <= rule.min_gain:
        return f": the gain must be more than {rule.min_gain:g}"
    return f": the gain must be more than {margin:.4f}, the noise of {rule.noise.seeds if rule.noise else 0} seeds"


def _ignored_half(candidate: Scores, rule: PromotionRule) -> str | None:
    """Which half of the query alone scores as well as the composed one; None where neither does."""
    for mode in ("image_only", "text_only"):
        if mode in candidate and not candidate["composed"][rule.metric] > candidate[mode][rule.metric]:
            return f", but its own {mode.replace('_', '-')} query scores {candidate[mode][rule.metric]:.4f}"
    return None


def _loss(candidate: Scores, rival: Scores, rule: PromotionRule) -> str | None:
    """Which other metric is worse by more than its noise; None where none is."""
    for metric in sorted(set(candidate["composed"]) & set(rival["composed"]) - {rule.metric}):
        margin = rule.margin(metric)
        now, before = candidate["composed"][metric], rival["composed"][metric]
        if margin is not None and not now >= before - margin:
            return f", but its {metric} is {now:.4f} against {before:.4f}, worse by more than {margin:.4f}, the noise"
    return None
