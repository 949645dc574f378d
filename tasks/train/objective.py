"""The loss of a step's plan, and its figures for the run log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tasks.config import TrainConfig
from tasks.train.batches import BatchPlan
from tasks.train.loss import BatchLabels, Loss, SoftLabels, info_nce

MIN_TEMPERATURE = 0.01  # of a learnt temperature, as in CLIP
MAX_LOGIT_SCALE = math.log(100)  # the same bound on logit_scale, which is minus the temperature's logarithm


def pick_rows(features: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Rows at positions, zeros where a position is -1.

    Args:
        features: (m, d); m may be 0.
        positions: n, each -1 or below m.
    Returns:
        (n, d).
    """
    if not len(features):
        return features.new_zeros(len(positions), features.shape[1])
    index = torch.tensor(positions, device=features.device)
    return features[index.clamp(min=0)] * (index >= 0)[:, None]


def queries_and_candidates(
    plan: BatchPlan, images: torch.Tensor, texts: torch.Tensor, *, is_joint: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, d) and (c, d) features of a plan's queries and candidates.

    Args:
        plan: of the step.
        images: (m, d) features of the images; where `is_joint`, (c, d) of the candidates.
        texts: (b + t, d) features of the queries' texts, then of the candidates'; where `is_joint`, (b, d) of the
            queries.
        is_joint: image and text are encoded together.
    """
    if is_joint:
        return texts, images
    if plan.candidates is None:
        return images[torch.tensor(plan.query_image, device=images.device)] + texts, images
    queries = len(plan.texts)
    of_candidates = texts[queries:]
    candidates = pick_rows(images, [image for image, _ in plan.candidates])
    candidates = candidates + pick_rows(of_candidates, [text for _, text in plan.candidates])
    return pick_rows(images, plan.query_image) + texts[:queries], candidates


def batch_labels(plan: BatchPlan, kept: Sequence[int], config: TrainConfig, device: torch.device) -> BatchLabels:
    """Which candidate is what to which of the kept queries; a query without an own image has its target twice."""
    own = plan.query_image if plan.candidates is None else plan.query_candidate
    own = [target if position < 0 else position for position, target in zip(own, plan.positive, strict=True)]
    excluded = None
    if plan.broken:
        excluded = torch.zeros(len(plan.candidate_parts), dtype=torch.bool, device=device)
        excluded[plan.broken_candidates] = True
    return BatchLabels(
        image_ids=torch.arange(len(plan.candidate_parts), device=device),
        positive=torch.tensor([plan.positive[n] for n in kept], device=device),
        query_image=torch.tensor([own[n] for n in kept], device=device),
        copies=torch.tensor(plan.copies, device=device) if config.count_copies else None,
        excluded=excluded,
    )


def loss_function(
    config: TrainConfig, model: Any, plan: BatchPlan, device: torch.device, *, is_joint: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], Loss]:
    """The loss of a plan.

    Args:
        config: options of the loss.
        model: its logit_scale is used where the temperature is learnt.
        plan: of the step; at least one of its queries could be read.
        device: of the features.
        is_joint: image and text of a query are encoded together.
    Returns:
        A function of raw features: images and texts as `queries_and_candidates` takes them.
    """
    kept = plan.readable_queries if plan.broken else range(len(plan.texts))
    labels = batch_labels(plan, kept, config, device)
    soft_labels = None
    if config.judge_weight:
        columns = torch.tensor([plan.own_candidates[n] for n in kept], device=device)
        scores = torch.tensor([plan.own_scores[n] for n in kept], device=device)
        soft_labels = SoftLabels(columns, scores, config.judge_temperature, config.judge_weight)

    def compute(images: torch.Tensor, texts: torch.Tensor) -> Loss:
        queries, candidates = queries_and_candidates(plan, images, texts, is_joint=is_joint)
        temperature: float | torch.Tensor = config.temperature
        if config.learn_temperature:
            temperature = (-model.logit_scale.clamp(max=MAX_LOGIT_SCALE)).exp()
        return info_nce(
            F.normalize(queries if len(kept) == len(queries) else queries[list(kept)], dim=-1),
            F.normalize(candidates, dim=-1),
            labels,
            temperature=temperature,
            mask_margin=config.mask_margin,
            soft_labels=soft_labels,
        )

    return compute


def step_figures(loss: Loss, plan: BatchPlan, config: TrainConfig, model: Any) -> dict[str, float]:
    """Figures of a step for the run log; an option's figure only where the option is on."""
    figures = {
        "loss": float(loss.total.detach()),
        "accuracy": float(loss.accuracy),
        "query_margin": float(loss.query_margin),
        "images": float(len(plan.images)),
    }
    if config.mask_margin is not None:
        figures["masked"] = float(loss.masked)
    if config.judge_weight:
        figures["divergence"] = float(loss.divergence)
    if config.learn_temperature:
        figures["temperature"] = max(math.exp(-float(model.logit_scale.detach())), MIN_TEMPERATURE)
    return figures
