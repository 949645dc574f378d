"""The loss of a step's plan, and its figures for the run log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tasks.config import TrainConfig
from tasks.errors import ConfigError
from tasks.train.batches import BatchPlan
from tasks.train.kept_base import BaseFeatures
from tasks.train.loss import BatchLabels, Loss, LossOptions, SoftLabels, TeacherScores, info_nce

MIN_TEMPERATURE = 0.01  # of a learnt temperature, as in CLIP
ROUNDING = 1e-6  # of 1 minus a cosine of float32 rows
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
        texts: (b + t + h, d) features of the queries' texts, of the candidates' and of the held ones; where `is_joint`,
            (b, d) of the queries.
        is_joint: image and text are encoded together.
    """
    if is_joint:
        return texts, images
    queries = len(plan.texts)
    of_queries, of_candidates = texts[:queries], texts[queries:]
    if "" in plan.texts:  # a query of an image alone
        of_queries = of_queries * torch.tensor([[float(bool(t))] for t in plan.texts], device=texts.device)
    if plan.candidates is None:
        return pick_rows(images, plan.query_image) + of_queries, images
    candidates = pick_rows(images, [image for image, _ in plan.candidates])
    candidates = candidates + pick_rows(of_candidates, [text for _, text in plan.candidates])
    return pick_rows(images, plan.query_image) + of_queries, candidates


def batch_labels(plan: BatchPlan, kept: Sequence[int], config: TrainConfig, device: torch.device) -> BatchLabels:
    """Which candidate is what to which of the kept queries; a query without an own image has its target twice."""
    own = plan.query_image if plan.candidates is None else plan.query_candidate
    own = [target if position < 0 else position for position, target in zip(own, plan.positive, strict=True)]
    excluded = None
    if plan.broken:
        excluded = torch.zeros(len(plan.candidate_parts), dtype=torch.bool, device=device)
        excluded[plan.broken_candidates] = True
    query_ids = None
    if plan.is_symmetric:
        first: dict[tuple[str, int], int] = {}
        ids = [first.setdefault((plan.texts[n], plan.query_image[n]), n) for n in kept]
        query_ids = torch.tensor(ids, device=device)
    return BatchLabels(
        image_ids=torch.arange(len(plan.candidate_parts), device=device),
        positive=torch.tensor([plan.positive[n] for n in kept], device=device),
        query_image=torch.tensor([own[n] for n in kept], device=device),
        copies=torch.tensor(plan.copies, device=device) if config.count_copies else None,
        excluded=excluded,
        query_ids=query_ids,
    )


def loss_function(
    config: TrainConfig,
    model: Any,
    plan: BatchPlan,
    device: torch.device,
    *,
    is_joint: bool = False,
    teacher: torch.Tensor | None = None,
    base: BaseFeatures | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], Loss]:
    """The loss of a plan; with Matryoshka dimensions the mean over all widths, with the figures of the full one.

    Args:
        config: options of the loss.
        model: its logit_scale is used where the temperature is learnt.
        plan: of the step; at least one of its queries could be read.
        device: of the features.
        is_joint: image and text of a query are encoded together.
        teacher: (b, c) similarities of the teacher; None without one.
        base: what the base model makes of the plan; None where that is not held on to.
    Returns:
        A function of raw features: images and texts as `queries_and_candidates` takes them.
    """
    kept = list(plan.readable_queries if plan.broken else range(len(plan.texts)))
    labels = batch_labels(plan, kept, config, device)
    soft_labels = None
    if config.judge_weight:
        columns = torch.tensor([plan.own_candidates[n] for n in kept], device=device)
        scores = torch.tensor([plan.own_scores[n] for n in kept], device=device)
        soft_labels = SoftLabels(columns, scores, config.judge_temperature, config.judge_weight)
    options = LossOptions(config.hardness_weight, teacher_scores(config, teacher, kept))

    def of_width(queries: torch.Tensor, candidates: torch.Tensor) -> Loss:
        temperature: float | torch.Tensor = config.temperature
        if config.learn_temperature:
            temperature = (-model.logit_scale.clamp(max=MAX_LOGIT_SCALE)).exp()
        return info_nce(
            F.normalize(queries, dim=-1),
            F.normalize(candidates, dim=-1),
            labels,
            temperature=temperature,
            mask_margin=config.mask_margin,
            soft_labels=soft_labels,
            options=options,
        )

    def compute(images: torch.Tensor, texts: torch.Tensor) -> Loss:
        queries, candidates = queries_and_candidates(plan, images, texts, is_joint=is_joint)
        queries = queries if len(kept) == len(queries) else queries[kept]
        whole = of_width(queries, candidates)
        if base is not None:
            held = texts[-len(plan.held_texts) :] if plan.held_texts else queries
            of_base = base if plan.held_texts else base._replace(texts=base.texts[kept])
            drift = distance_to_base(plan, held, images, of_base)
            contrast = whole.total if plan.is_contrasted else torch.zeros_like(whole.total)
            whole = whole._replace(total=contrast + plan.keep_base * drift, drift=drift.detach())
        widths = matryoshka_widths(config, queries.shape[1])
        if not widths or not plan.is_contrasted:
            return whole
        parts = [of_width(queries[:, :width], candidates[:, :width]).total for width in widths]
        return whole._replace(total=torch.stack([whole.total, *parts]).mean())

    return compute


def distance_to_base(plan: BatchPlan, texts: torch.Tensor, images: torch.Tensor, base: BaseFeatures) -> torch.Tensor:
    """Mean of 1 minus the cosine to the base model's features: of the texts, plus that of the readable images.

    Args:
        plan: of the step.
        texts: (n, d) features by the model in training.
        images: (m, d) features of the plan's images by it; not read where the base has none.
        base: (n, d) and (m, d) unit rows.
    """
    drift = far_from(texts, base.texts)
    readable = [n for n in range(len(plan.images)) if n not in plan.broken]
    if base.images is None or not readable:
        return drift
    return drift + far_from(images[readable], base.images[readable])


def far_from(features: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Mean of 1 minus the cosine, of (n, d) and (n, d).

    What is rounding alone has no gradient: Adam would make a whole step of it, in a direction of chance.
    """
    return F.relu(1 - F.cosine_similarity(features, base) - ROUNDING).mean()


def teacher_scores(config: TrainConfig, similarity: torch.Tensor | None, kept: Sequence[int]) -> TeacherScores | None:
    """The teacher's similarities of the kept queries."""
    if config.teacher is None or similarity is None:
        return None
    return TeacherScores(similarity[list(kept)], config.teacher.temperature, config.teacher.weight)


def matryoshka_widths(config: TrainConfig, full: int) -> tuple[int, ...]:
    """The shorter widths that are trained too.

    Raises:
        ConfigError: one that is not below the full width.
    """
    wrong = [width for width in config.matryoshka_dimensions if not 0 < width < full]
    if wrong:
        raise ConfigError(
            f"'train.matryoshka_dimensions' has {wrong}; model '{config.base_model}' has vectors of {full} dimensions: "
            "expected fewer"
        )
    return config.matryoshka_dimensions


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
    if config.teacher is not None:
        figures["distillation"] = float(loss.distillation)
    if any(dataset.keep_base for dataset in config.datasets):
        figures["drift"] = float(loss.drift)
    if config.learn_temperature:
        figures["temperature"] = max(math.exp(-float(model.logit_scale.detach())), MIN_TEMPERATURE)
    return figures
