"""The verdict on one captioned pair: which instructions are kept, which negatives stay, or why the pair is dropped.

A pure function of P(yes). A candidate *meets* an instruction when its P(yes) reaches `negative_threshold`, or comes
within `negative_margin` of the target's. In this order:

1. an instruction whose P(yes) for the target, calibrated where there is a calibration, is below `threshold` is dropped
   (wrong_instruction); then the pair, where fewer than `instructions_min` are left (wrong_target): about its negatives
   nobody has to be asked;
2. one that the query image itself meets is dropped (query_fits);
3. a mined negative that meets an instruction which states the whole change is a false negative and is taken out
   (false_negative);
4. an instruction of a partial style (one change of several) is dropped where a remaining negative meets it
   (partial_fits);
5. a pair with fewer than `instructions_min` instructions left is dropped (ambiguous);
6. of the remaining mined negatives the first `negatives_max` stay: later candidates replace false negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.models.llm.requests import Refusal


@dataclass(frozen=True)
class VerdictRules:
    """Thresholds of a verdict.

    Attributes:
        threshold: least (calibrated) P(yes) of the target, 0..1.
        negative_threshold: P(yes) from which a negative meets an instruction, 0..1.
        instructions_min: least number of instructions of a kept pair, a count.
        negative_margin: a negative with a P(yes) of the target's minus this or more meets an instruction too; unused
            when None.
        negatives_max: most mined negatives that stay, a count; all when None.
    """

    threshold: float
    negative_threshold: float
    instructions_min: int
    negative_margin: float | None = None
    negatives_max: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What is left of one pair, by position in what was judged.

    Attributes:
        instructions: positions of the instructions kept.
        negatives: positions of the negatives kept; 0 is the query image and always stays.
        judge_target: per kept instruction P(yes) of the target, calibrated where there is a calibration.
        judge_negative: per kept negative the highest P(yes) over the kept instructions.
        false_negatives: position of each false negative -> its highest P(yes) over the instructions it is known to
            meet.
        dropped: position of each dropped instruction -> (reason, the score that decided).
        reason: why the pair is dropped; None where it is kept.
        refused_instructions, refused_negatives: position -> why the judge could not be asked; left out of the pair.
    """

    instructions: list[int] = field(default_factory=list)
    negatives: list[int] = field(default_factory=list)
    judge_target: list[float] = field(default_factory=list)
    judge_negative: list[float] = field(default_factory=list)
    false_negatives: dict[int, float] = field(default_factory=dict)
    dropped: dict[int, tuple[str, float]] = field(default_factory=dict)
    reason: str | None = None
    refused_instructions: Mapping[int, Refusal] = field(default_factory=dict)
    refused_negatives: Mapping[int, Refusal] = field(default_factory=dict)

    @property
    def refusals(self) -> list[Refusal]:
        """All refusals."""
        return [*self.refused_instructions.values(), *self.refused_negatives.values()]


def decide(
    target_yes: Sequence[float],
    negative_yes: Mapping[int, Sequence[float] | Mapping[int, float]],
    is_partial: Sequence[bool],
    rules: VerdictRules,
    target_fits: Sequence[float] | None = None,
) -> Verdict:
    """Which instructions and negatives of a pair stay; the steps are those of the module's docstring.

    Args:
        target_yes: per instruction P(yes) of the target.
        negative_yes: position of each instruction that passes `threshold` -> P(yes) of every negative, the query image
            first; not read where fewer than `instructions_min` pass. As a mapping by position it may lack what decides
            nothing: mined negatives where fewer than `instructions_min` are left after the query image, and further
            instructions about a negative that meets one which states the whole change.
        is_partial: per instruction, whether its style may state one change of several.
        rules: thresholds.
        target_fits: per instruction the calibrated probability that the target fits; P(yes) when None. A negative is
            compared with the target's P(yes): both are the judge's own.
    """
    target_fits = target_yes if target_fits is None else target_fits
    limits = [negative_limit(yes, rules) for yes in target_yes]
    dropped: dict[int, tuple[str, float]] = {}
    for n, probability in enumerate(target_fits):
        if probability < rules.threshold:
            dropped[n] = ("wrong_instruction", probability)
    right = [n for n in range(len(target_yes)) if n not in dropped]
    if len(right) < rules.instructions_min:
        return Verdict(dropped=dropped, reason="wrong_target")
    known = {n: dict(yes.items() if isinstance(yes := negative_yes[n], Mapping) else enumerate(yes)) for n in right}
    for n in right:
        if known[n][0] >= limits[n]:
            dropped[n] = ("query_fits", known[n][0])
    kept = [n for n in right if n not in dropped]
    mined = sorted({k for n in right for k in known[n]} - {0})

    def meets(n: int, k: int) -> bool:
        return k in known[n] and known[n][k] >= limits[n]

    whole = [n for n in kept if not is_partial[n]]
    false_negatives = {
        k: max(known[n][k] for n in whole if meets(n, k)) for k in mined if any(meets(n, k) for n in whole)
    }
    for n in kept:
        met = [known[n][k] for k in mined if k not in false_negatives and meets(n, k)]
        if is_partial[n] and met:
            dropped[n] = ("partial_fits", max(met))
    kept = [n for n in kept if n not in dropped]
    if len(kept) < rules.instructions_min:
        return Verdict(dropped=dropped, reason="ambiguous")
    negatives = [0, *(k for k in mined if k not in false_negatives)]
    if rules.negatives_max is not None:
        negatives = negatives[: rules.negatives_max + 1]
    highest = [max(known[n][k] for n in kept) for k in negatives]
    return Verdict(kept, negatives, [target_fits[n] for n in kept], highest, false_negatives, dropped)


def negative_limit(target_yes: float, rules: VerdictRules) -> float:
    """P(yes) from which a negative meets an instruction whose target has `target_yes`."""
    if rules.negative_margin is None:
        return rules.negative_threshold
    return min(rules.negative_threshold, target_yes - rules.negative_margin)
