"""Estimates of differences with made-up numbers, for the tests of tasks/select."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tasks.config import ENCODER_ROLES
from tasks.select.differences import INPUTS, DifferenceModel


def made_up_model(
    revisions: Mapping[str, str], cosine: float = 0.5, window: tuple[float, float] = (0.2, 0.999)
) -> DifferenceModel:
    """Two differences can be said; the nearer two images are, the fewer there are, with some noise in the weights.

    Args:
        revisions: encoder -> revision of the vectors.
        cosine: at which one difference is as likely as more than two.
        window: of every encoder.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (3, 28))
    weights[:, 1 : 1 + len(ENCODER_ROLES)] += np.array([[1.0], [0.0], [-1.0]])
    mean, scale = np.full(len(INPUTS), cosine), np.full(len(INPUTS), 0.8 * (1 - cosine))
    windows = dict.fromkeys(revisions, window)
    return DifferenceModel(
        revisions, windows, mean, scale, weights, np.array([0.3, 0.3, 0.4]), np.array([0.9, 0.6, 0.0])
    )


def write_model(
    path: Path, revisions: Mapping[str, str], cosine: float = 0.5, window: tuple[float, float] = (0.2, 0.999)
) -> Path:
    """The file of `made_up_model`."""
    path.write_text(json.dumps(made_up_model(revisions, cosine, window).to_json()))
    return path
