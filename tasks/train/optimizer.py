"""The optimiser of a phase and the schedule of its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from tasks.config import TrainConfig
from tasks.errors import ConfigError

SAME_EVERYWHERE = "same_everywhere"  # mark of a group whose gradient is the same in every process


def learning_rate_at(step: int, *, steps: int, warmup: int, peak: float, schedule: str = "linear") -> float:
    """Learning rate of a step (from 0): linear up to `peak` over `warmup` steps, then down to 0 at `steps`.

    Args:
        step: from 0.
        steps: of the phase, a count.
        warmup: steps of the rise, a count.
        peak: the highest rate.
        schedule: linear, or cosine (half a period).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    fall = max(1, steps - warmup)
    if schedule == "linear":
        return peak * (steps - step) / fall
    return peak * (1 + math.cos(math.pi * (step - warmup) / fall)) / 2


def build_optimizer(model: Any, config: TrainConfig, peak: float) -> torch.optim.Optimizer:
    """AdamW over the trainable weights.

    Without `decay_norms_and_biases`, vectors and scalars (norms, biases, CLIP's class token) are a group without weight
    decay; a learnt temperature always is a group of its own without it.

    Args:
        model: a torch module.
        config: learn_temperature and optimizer.
        peak: learning rate.
    Raises:
        ConfigError: a learnt temperature is asked for and the model has none.
    """
    options = config.optimizer
    scale = getattr(model, "logit_scale", None) if config.learn_temperature else None
    if config.learn_temperature and not isinstance(scale, torch.nn.Parameter):
        raise ConfigError(
            f"'train.learn_temperature' is on, but a {type(model).__name__} has no logit_scale; switch it off"
        )
    # with a learnt temperature no weight is frozen, in the order that checkpoints of earlier releases have
    weights = [p for p in model.parameters() if p is not scale and (p.requires_grad or scale is not None)]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if not options.decay_norms_and_biases:
        groups = [
            {"params": [p for p in weights if p.ndim >= 2]},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
    if scale is not None:
        groups.append({"params": [scale], "weight_decay": 0.0, SAME_EVERYWHERE: True})
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=peak,
        betas=options.betas,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
    )
