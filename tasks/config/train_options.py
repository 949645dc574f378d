"""Parameters of a training's options, each a section of `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.config.section import REVISION, Section


class OptimizerConfig(Section):
    """AdamW and its schedule, section `train.optimizer`."""

    weight_decay: float = Field(ge=0, description="AdamW's weight decay.")
    decay_norms_and_biases: bool = Field(
        description="Decay norms, biases and other vectors and scalars too. Off, as most recipes have it: matrices "
        "alone.",
    )
    betas: tuple[float, float] = Field(description="AdamW's two decay rates of the moments, 0 to 1.")
    epsilon: float = Field(gt=0, description="AdamW's epsilon.")
    max_gradient_norm: float = Field(gt=0, description="Gradients are scaled down to at most this norm.")
    schedule: Literal["linear", "cosine"] = Field(description="How the learning rate falls to 0 after the warm-up.")


class ValidationConfig(Section):
    """Evaluation while training, section `train.validation`."""

    share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the training triplets that is kept out of training to evaluate on, as whole groups that "
        "share images, 0 to 1 (excluded). `train.held_out_share` is kept out beside it, for the evaluation stage.",
    )
    every_steps: int = Field(25, ge=1, description="Steps between two evaluations, a count.")
    keep_best: bool = Field(
        True, description="The candidate is the model of the best evaluation, not that of the last step."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations of the main phase without a better one after which it ends, a count. Empty: it does "
        "all its steps.",
    )


class TeacherConfig(Section):
    """Distillation from another retriever's vectors, section `train.teacher`."""

    model: str = Field(description="Hugging Face name or folder of the teacher, of any supported type.")
    revision: str | None = Field(None, description=REVISION)
    weight: float = Field(1.0, gt=0, description="Weight of the KL divergence from the teacher in the loss.")
    temperature: float = Field(0.02, gt=0, description="Temperature of the softmax over the teacher's similarities.")


class RefreshConfig(Section):
    """Hard negatives mined anew with the model in training, section `train.refresh_negatives`."""

    every_steps: int = Field(ge=1, description="Steps of the main phase between two minings, a count.")
    negatives: int = Field(8, ge=1, description="Negatives that each triplet gets, a count.")
    positive_share_max: float = Field(
        0.95,
        gt=0,
        le=1,
        description="An image is no negative where its similarity exceeds this share of the target's: it may be right "
        "too (NV-Retriever's TopK-PercPos).",
    )
