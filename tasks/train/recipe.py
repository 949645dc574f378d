"""Which parameters matter to a training's result, and the two names derived from them. Pure.

- The recipe id names what must be equal for two runs to differ by the seed alone: the train section and what it is
  scored on. It leaves out the data version, so that noise measured once serves the next week's version too, and
  parameters that do not change scores.
- The training identity names what must be equal for the weights of every step to be equal, bit for bit: a checkpoint is
  resumed only by a run of the same identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from tasks.config import Params

if TYPE_CHECKING:
    from tasks.train.batches import WeightedDataset

# keys of the train section that change no bit of the weights
WEIGHT_NEUTRAL_KEYS = frozenset({"device", "tensorboard", "trackers", "checkpoint_steps", "decode_workers"})
# those that change the weights by rounding at most, and so no score beyond the noise
SCORE_NEUTRAL_KEYS = WEIGHT_NEUTRAL_KEYS | {"cache_chunk", "processes", "shard_weights", "gradient_checkpointing"}


def recipe_values(params: Params) -> dict[str, Any]:
    """The values behind a recipe id; folders by their last name, because their parents differ between machines."""
    benchmark = params.evaluate.benchmark
    if isinstance(benchmark, str):
        scored_on: Any = PurePath(benchmark).name
    else:
        scored_on = [b.model_dump(mode="json", exclude={"path"}) for b in benchmark or ()]
    return {
        "train": params.train.model_dump(mode="json", exclude=set(SCORE_NEUTRAL_KEYS)),
        "benchmark": scored_on,
        "template": params.evaluate.template,
    }


def recipe_id(params: Params) -> str:
    """First 12 hex digits of the recipe's SHA-256."""
    return hashlib.sha256(json.dumps(recipe_values(params), sort_keys=True).encode()).hexdigest()[:12]


def training_identity(params: Params, base_revision: str, datasets: Sequence[WeightedDataset], threads: int) -> str:
    """SHA-256, equal where the weights of every step are equal.

    Args:
        params: the train section and the seed.
        base_revision: of the base model's weights.
        datasets: all examples that are trained on.
        threads: CPU threads of torch: they change the order of sums.
    """
    recipe = params.train.model_dump(mode="json", exclude=set(WEIGHT_NEUTRAL_KEYS))
    digest = hashlib.sha256(json.dumps([recipe, params.open_run.seed, base_revision, threads]).encode())
    for dataset in datasets:
        digest.update(repr((dataset.weight, dataset.examples)).encode())
    return digest.hexdigest()
