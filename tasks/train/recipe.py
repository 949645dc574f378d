"""A training recipe and its name: what must be equal for two runs to differ by the seed alone. Pure.

The recipe is the train section and what it is scored on; not the data version, so that noise measured once serves the
next week's version too, and not what changes no score (device, threads of the decoder, how often a checkpoint is
written).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Any

from tasks.config import Params

# Parameters of the train section that change no bit of the weights: a stopped training continues under another value.
WEIGHT_NEUTRAL_KEYS = frozenset({"device", "tensorboard", "checkpoint_steps", "decode_workers"})
# Parameters that change no score beyond rounding: they share the same work differently over passes, GPUs and memory.
SCORE_NEUTRAL_KEYS = WEIGHT_NEUTRAL_KEYS | {"cache_chunk", "processes", "shard_weights", "gradient_checkpointing"}


def recipe_of(params: Params) -> dict[str, Any]:
    """Everything that the name stands for; folders by their last name, for they lie elsewhere on every machine."""
    named = params.evaluate.benchmark
    if isinstance(named, str):
        scored: Any = PurePath(named).name
    else:
        scored = [b.model_dump(mode="json", exclude={"path"}) for b in named or ()]
    return {
        "train": params.train.model_dump(mode="json", exclude=set(SCORE_NEUTRAL_KEYS)),
        "benchmark": scored,
        "template": params.evaluate.template,
    }


def recipe_id(params: Params) -> str:
    """First 12 hex digits of the recipe's SHA-256."""
    return hashlib.sha256(json.dumps(recipe_of(params), sort_keys=True).encode()).hexdigest()[:12]
