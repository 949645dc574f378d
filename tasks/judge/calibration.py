"""Calibration of a judge: from its P(yes) to the probability that the candidate fits, by kind of change.

A judge is surer of some kinds of change than of others: the sample world's gives right texts about shapes a lower
P(yes) than right texts about colours. Isotonic regression (Zadrozny and Elkan, KDD 2002;
scipy.optimize.isotonic_regression) on labelled questions turns P(yes) into the share that fits, for each kind by
itself, so that one threshold means the same for all. A kind with few questions of either answer takes the curve of all
kinds together.

A calibration is a JSON file, which `judge.calibration` names and `python -m tasks judge_calibrate` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError
from tasks.prompts.kinds import ANY

ROWS_MIN = 50  # fitting and other questions each of a kind that has a curve of its own, a count
DIGITS = 4  # of a stored number

Curve = tuple[tuple[float, ...], tuple[float, ...]]  # P(yes), rising; the share that fits at each, not falling


@dataclass(frozen=True)
class Calibration:
    """Curves by kind of change; `ANY` is the curve of all kinds together."""

    curves: Mapping[str, Curve]

    def probability(self, yes: float, kind: str) -> float:
        """The probability that a candidate fits, 0..1, from the judge's P(yes) and the text's kind of change."""
        scores, shares = self.curves.get(kind) or self.curves[ANY]
        return float(np.interp(yes, scores, shares))

    def to_json(self) -> str:
        """The file's content: {kind: {"yes": [...], "fits": [...]}}."""
        curves = {kind: {"yes": c[0], "fits": c[1]} for kind, c in sorted(self.curves.items())}
        return json.dumps(curves, indent=1) + "\n"


def fit_curve(yes: Sequence[float], fits: Sequence[bool]) -> Curve:
    """Isotonic regression of `fits` on P(yes): the two ends of every level.

    Args:
        yes: P(yes) per question, 0..1.
        fits: the known answers.
    """
    from scipy.optimize import isotonic_regression

    scores, rows, counts = np.unique(np.asarray(yes, float), return_inverse=True, return_counts=True)
    shares = np.bincount(rows, np.asarray(fits, float)) / counts
    levels = isotonic_regression(shares, weights=counts).x
    is_end = np.ones(len(levels), bool)  # a level's inner points lie on the line between its ends
    is_end[1:-1] = (levels[1:-1] != levels[:-2]) | (levels[1:-1] != levels[2:])
    return (
        tuple(round(float(s), DIGITS) for s in scores[is_end]),
        tuple(round(float(v), DIGITS) for v in levels[is_end]),
    )


def fit_calibration(
    yes: Sequence[float], fits: Sequence[bool], kinds: Sequence[str], rows_min: int = ROWS_MIN
) -> Calibration:
    """A calibration from labelled questions.

    Only a kind with `rows_min` fitting ones and as many others has a curve of its own: with few wrong ones it would
    call everything right. Measured on the sample world's 120 questions about near misses: false yes 13% with curves of
    kinds that had ten wrong ones, 2% without.
    """
    curves = {ANY: fit_curve(yes, fits)}
    for kind in sorted(set(kinds)):
        rows = [n for n, k in enumerate(kinds) if k == kind]
        fitting = sum(fits[n] for n in rows)
        if min(fitting, len(rows) - fitting) >= rows_min:
            curves[kind] = fit_curve([yes[n] for n in rows], [fits[n] for n in rows])
    return Calibration(curves)


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        ConfigError: no such file, or it is not what `judge_calibrate` writes.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        curves = {kind: (tuple(map(float, c["yes"])), tuple(map(float, c["fits"]))) for kind, c in content.items()}
        if ANY not in curves or any(len(yes) != len(fits) or not yes for yes, fits in curves.values()):
            raise ValueError(f"no curve '{ANY}', or one whose lists differ in length")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"judge.calibration: {path} cannot be used ({error}); expected a file that `python -m tasks "
            "judge_calibrate` wrote, or leave it empty"
        ) from None
    return Calibration(curves)


def least_threshold(probabilities: Sequence[float], fits: Sequence[bool], true_share: float) -> float | None:
    """The lowest threshold at which at least `true_share` of what is accepted fits; None where there is none.

    Args:
        probabilities: calibrated, per labelled question.
        fits: the known answers.
        true_share: wanted share, 0..1.
    """
    order = np.argsort(-np.asarray(probabilities), kind="stable")
    sorted_p, sorted_fits = np.asarray(probabilities)[order], np.asarray(fits, float)[order]
    shares = np.cumsum(sorted_fits) / np.arange(1, len(order) + 1)
    # a threshold lets in all questions of its probability, so only the last of equal ones counts
    is_last = np.append(sorted_p[1:] < sorted_p[:-1], True)
    good = np.flatnonzero(is_last & (shares >= true_share))
    return float(sorted_p[good[-1]]) if len(good) else None
