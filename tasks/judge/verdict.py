"""The verdict on one captioned pair: which texts are accepted, which negatives stay, or why it is dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """What is left of one pair, by position in what was judged.

    Attributes:
        instructions: positions of the instructions kept.
        negatives: positions of the negatives kept; 0 is the query image and always stays.
        judge_target: per kept instruction P(yes) of the target.
        judge_negative: per kept negative the highest P(yes) over the kept instructions.
        false_negatives: position of each false negative -> its highest P(yes) over the instructions it meets.
        dropped: position of each instruction dropped -> (reason, the score that decided).
        reason: None where the pair is kept.
    """

    instructions: list[int] = field(default_factory=list)
    negatives: list[int] = field(default_factory=list)
    judge_target: list[float] = field(default_factory=list)
    judge_negative: list[float] = field(default_factory=list)
    false_negatives: dict[int, float] = field(default_factory=dict)
    dropped: dict[int, tuple[str, float]] = field(default_factory=dict)
    reason: str | None = None


def decide(
    target_yes: Sequence[float],
    negative_yes: Mapping[int, Sequence[float]],
    *,
    is_partial: Sequence[bool],
    threshold: float,
    negative_threshold: float,
    instructions_min: int,
    negative_margin: float | None = None,
    negatives_max: int | None = None,
) -> Verdict:
    """Which instructions and negatives of a pair stay; see the module's six steps.

    Args:
        target_yes: per instruction P(yes) of the target.
        negative_yes: per instruction that passes `threshold`, P(yes) of every negative, the query image first.
        is_partial: per instruction, whether its style may state one change of several.
        threshold: least P(yes) of the target.
        negative_threshold: P(yes) from which a negative meets an instruction.
        instructions_min: least number of instructions, a count.
        negative_margin: a negative above the target's P(yes) minus this meets an instruction too; not looked at when
            None.
        negatives_max: mined negatives that stay at most, in their order, a count.
    """
    meets = [
        negative_threshold if negative_margin is None else min(negative_threshold, yes - negative_margin)
        for yes in target_yes
    ]
    dropped: dict[int, tuple[str, float]] = {}
    for n, yes in enumerate(target_yes):
        if yes < threshold:
            dropped[n] = ("wrong_instruction", yes)
    right = [n for n in range(len(target_yes)) if n not in dropped]
    for n in right:
        if negative_yes[n][0] >= meets[n]:
            dropped[n] = ("query_fits", negative_yes[n][0])
    kept = [n for n in right if n not in dropped]
    count = len(negative_yes[right[0]]) if right else 1
    whole = [n for n in kept if not is_partial[n]]
    false = {
        k: max(negative_yes[n][k] for n in whole)
        for k in range(1, count)
        if any(negative_yes[n][k] >= meets[n] for n in whole)
    }
    for n in kept:
        met = [negative_yes[n][k] for k in range(1, count) if k not in false and negative_yes[n][k] >= meets[n]]
        if is_partial[n] and met:
            dropped[n] = ("partial_fits", max(met))
    kept = [n for n in kept if n not in dropped]
    if len(kept) < instructions_min:
        return Verdict(dropped=dropped, reason="wrong_target" if len(right) < instructions_min else "ambiguous")
    negatives = [k for k in range(count) if k not in false][: None if negatives_max is None else negatives_max + 1]
    highest = [max(negative_yes[n][k] for n in kept) for k in negatives]
    return Verdict(kept, negatives, [target_yes[n] for n in kept], highest, false, dropped)
