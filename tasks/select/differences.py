"""How many things differ between two images: an estimate from cosines and captions, before a model is paid.

A model of a few numbers, fitted to labelled pairs (`python -m tasks calibrate --differences`): logistic regression on
the encoders' cosines and three comparisons of the captions (tasks/select/words.py), and on their products. It gives
each pair the chances of 1, 2, ... differences and of more than the describer can say, and so the chance that the judge
will accept the pair. The estimate of a pair depends on its two images alone: whatever batch, part or order they come
in, it is the same.

What is accepted differs between corpora and describers. So the chances are corrected by what the judge accepted in
earlier batches, per number of differences (`Record`): accepted pairs over expected ones, with PRIOR_PAIRS added to
both, so that few pairs change little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import ENCODER_ROLES
from tasks.errors import ConfigError
from tasks.select import words

INPUTS = (*ENCODER_ROLES, *words.INPUTS)
PRIOR_PAIRS = 100  # pairs' weight of the expectation against what the judge accepted
NUMBERS = ("mean", "scale", "weights", "shares", "accepted")  # of a model's file
DIGITS = 9  # to which chances are rounded, so that no sum's last digit decides


@dataclass(frozen=True)
class DifferenceModel:
    """A fitted estimate.

    Attributes:
        revisions: encoder -> revision of the model whose cosines it was fitted to.
        windows: encoder -> (low, high) of `mine.windows` in which the labelled pairs were mined: among other candidates
            the same cosines mean other chances.
        mean, scale: (6,) of INPUTS; an unknown input counts as its mean.
        weights: (classes, 28), of 1, the inputs and their products; class k is k + 1 differences, the last one more
            than the describer can say.
        shares: (classes,), of the labelled pairs.
        accepted: (classes,), chance that the judge accepts a pair of so many differences.
    """

    revisions: Mapping[str, str]
    windows: Mapping[str, tuple[float, float]]
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    accepted: np.ndarray

    @property
    def most(self) -> int:
        """The most differences that a pair may have."""
        return len(self.shares) - 1

    def chances(self, inputs: np.ndarray) -> np.ndarray:
        """(m, classes) float64 of INPUTS (m, 6), NaN where unknown; each row by itself, whatever the others are."""
        terms = design(inputs, self.mean, self.scale)
        logits = np.zeros((len(inputs), len(self.weights)))
        for n in range(terms.shape[1]):  # term by term: a matrix product's sums would depend on the number of rows
            logits += terms[:, n, None] * self.weights[:, n]
        logits -= logits.max(axis=1, initial=-np.inf, keepdims=True)
        chances = np.exp(logits)
        return np.round(chances / chances.sum(axis=1, keepdims=True), DIGITS)

    def judge(self, inputs: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of differences and the chance of acceptance of pairs.

        Args:
            inputs: (m, 6) of INPUTS.
            factor: (most,) of `factors`.
        Returns:
            (m,) int64 from 0 (one difference): the number for which the pair speaks most, that is, whose chance exceeds
            its share of the labelled pairs by the largest factor, among those that the describer can say; and (m,)
            float64.
        """
        chances = self.chances(inputs)
        bands = (chances[:, : self.most] / self.shares[: self.most]).argmax(axis=1).astype(np.int64)
        accepted = np.zeros(len(inputs))
        for k, share in enumerate(self.accepted.tolist()):
            accepted += chances[:, k] * share
        return bands, np.round(np.minimum(accepted * factor[bands], 1.0), DIGITS)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the inverse of `read_model`."""
        numbers = {
            n: np.round(getattr(self, n), 6).tolist() for n in ("mean", "scale", "weights", "shares", "accepted")
        }
        windows = {encoder: list(window) for encoder, window in self.windows.items()}
        return {"inputs": list(INPUTS), "revisions": dict(self.revisions), "windows": windows, **numbers}


def design(inputs: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(m, 28) float64: 1, the standardised inputs, and the products of any two of them."""
    z = (inputs - mean) / scale
    z = np.clip(np.where(np.isnan(z), 0.0, z), -6, 6)
    count = z.shape[1]
    products = [z[:, i] * z[:, j] for i in range(count) for j in range(i, count)]
    return np.column_stack([np.ones(len(z)), z, *products])


def read_model(path: Path) -> DifferenceModel:
    """A model that `calibrate` wrote.

    Raises:
        ConfigError: no such file, or another content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if tuple(content["inputs"]) != INPUTS:
            raise ValueError(f"its inputs are {content['inputs']}, expected {list(INPUTS)}")
        arrays = [np.array(content[name], np.float64) for name in NUMBERS]
        mean, scale, weights, shares, accepted = arrays
        classes, terms = len(shares), 1 + len(INPUTS) + len(INPUTS) * (len(INPUTS) + 1) // 2
        if classes < 2 or weights.shape != (classes, terms) or accepted.shape != (classes,):
            raise ValueError(f"weights {weights.shape} and {len(accepted)} shares accepted for {classes} classes")
        if mean.shape != (len(INPUTS),) or scale.shape != mean.shape or not (scale > 0).all():
            raise ValueError("mean and scale are not six numbers each, the scales above 0")
        windows = {encoder: (float(low), float(high)) for encoder, (low, high) in content["windows"].items()}
        return DifferenceModel(dict(content["revisions"]), windows, *arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"select.differences: {path} is no estimate of differences ({error}); "
            "`python -m tasks calibrate --differences` makes one, or leave the parameter empty"
        ) from error


def unfit_reason(
    model: DifferenceModel, revisions: Mapping[str, str], windows: Mapping[str, tuple[float, float]]
) -> str | None:
    """Why the model says nothing about this corpus; None where it does.

    Args:
        model: the estimate.
        revisions: encoder -> revision of the stored vectors.
        windows: encoder -> (low, high) in which the run mines.
    """
    others = [f"{e} {r[:12]}" for e, r in sorted(revisions.items()) if model.revisions.get(e) != r]
    if others or set(revisions) != set(model.revisions):
        known = ", ".join(f"{e} {r[:12]}" for e, r in sorted(model.revisions.items()))
        return f"it was fitted to {known}, the vectors are of {', '.join(others) or sorted(revisions)}"
    if other := sorted(e for e in revisions if model.windows.get(e) != windows.get(e)):
        return f"it was fitted to {dict(model.windows)}, mine.windows of {', '.join(other)} are others"
    return None


@dataclass(frozen=True)
class Record:
    """What the judge accepted of earlier batches' pairs, per number of differences.

    Attributes:
        expected, accepted: (most,) pairs, by the number of differences that was estimated of them.
    """

    expected: np.ndarray
    accepted: np.ndarray


def factors(record: Record) -> np.ndarray:
    """(most,), what a pair's chance of acceptance is multiplied with, by its number of differences."""
    return (record.accepted + PRIOR_PAIRS) / (record.expected + PRIOR_PAIRS)
