"""The training loop: AdamW with linear warm-up and linear decay, an optional locked phase, then both towers.

The locked phase (`locked_steps`) trains the text tower with the image tower frozen: every image is encoded once, and
(almost) all of them are candidates for each query at the price of a matrix product. Source: LiT, arXiv:2111.07991.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from tasks.config import TrainConfig
from tasks.errors import ConfigError
from tasks.train.accelerator import TrainingRuntime
from tasks.train.batches import BatchPlan, WeightedDataset, plan_locked_steps, plan_steps
from tasks.train.checkpoints import Checkpoints, Progress
from tasks.train.grad_cache import EncodedBatch, encode_batch, training_step
from tasks.train.loader import prefetch
from tasks.train.loss import BatchLabels, Loss, SoftLabels, info_nce
from tasks.train.run_log import RunLog

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever

PHASES = ("locked", "both")
MIN_TEMPERATURE = 0.01  # of a learnt temperature, as in CLIP
MAX_LOGIT_SCALE = math.log(100)  # the same bound on logit_scale, which is minus the temperature's logarithm
IMAGES_PER_PASS = 128  # of the frozen image tower


@dataclass(frozen=True)
class TrainingData:
    """What is trained on.

    Attributes:
        datasets: the version's examples first; the locked phase uses them alone.
        load_images: image ids -> (n, 3, height, width), or a list of n inputs of an MLLM.
    """

    datasets: Sequence[WeightedDataset]
    load_images: Callable[[list[str]], Any]


def learning_rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear up to `peak` over `warmup` steps, then linear down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def loss_function(
    config: TrainConfig, model: Any, plan: BatchPlan, device: torch.device, *, is_joint: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], Loss]:
    """The loss of a plan.

    Args:
        config: options of the loss.
        model: its logit_scale is used where the temperature is learnt.
        plan: of the step.
        device: of the features.
        is_joint: image and text of a query are encoded together.
    Returns:
        A function of (c, d) raw image features and (b, d) raw text features, or raw query features where `is_joint`.
    """
    labels = BatchLabels(
        image_ids=torch.arange(len(plan.images), device=device),
        positive=torch.tensor(plan.positive, device=device),
        query_image=torch.tensor(plan.query_image, device=device),
        copies=torch.tensor(plan.copies, device=device) if config.count_copies else None,
    )
    soft_labels = None
    if config.judge_weight:
        columns = torch.tensor(plan.own_candidates, device=device)
        scores = torch.tensor(plan.own_scores, device=device)
        soft_labels = SoftLabels(columns, scores, config.judge_temperature, config.judge_weight)

    def compute(images: torch.Tensor, texts: torch.Tensor) -> Loss:
        queries = texts if is_joint else images[labels.query_image] + texts
        temperature: float | torch.Tensor = config.temperature
        if config.learn_temperature:
            temperature = (-model.logit_scale.clamp(max=MAX_LOGIT_SCALE)).exp()
        return info_nce(
            F.normalize(queries, dim=-1),
            F.normalize(images, dim=-1),
            labels,
            temperature=temperature,
            mask_margin=config.mask_margin,
            soft_labels=soft_labels,
        )

    return compute


def build_optimizer(model: Any, config: TrainConfig, peak: float) -> torch.optim.Optimizer:
    """AdamW over the trainable weights; a learnt temperature is a group of its own, without weight decay.

    Args:
        model: a torch module.
        config: learn_temperature.
        peak: learning rate.
    Raises:
        ConfigError: a learnt temperature is asked for and the model has none.
    """
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if config.learn_temperature:
        if not isinstance(getattr(model, "logit_scale", None), torch.nn.Parameter):
            raise ConfigError(
                f"'train.learn_temperature' is on, but a {type(model).__name__} has no logit_scale; switch it off"
            )
        groups = [
            {"params": [p for p in model.parameters() if p is not model.logit_scale]},
            {"params": [model.logit_scale], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)


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


def prepare_retriever(retriever: Retriever, config: TrainConfig, seed: int) -> None:
    """Check that the recipe suits the model's type, and add its adapters.

    Raises:
        ConfigError: the recipe does not suit the model's type.
    """
    if retriever.is_joint and config.locked_steps:
        raise ConfigError(
            f"'train.locked_steps' is {config.locked_steps}: model '{config.base_model}' reads image and text "
            "together, no tower can be locked; set it to 0"
        )
    if config.lora is None:
        return
    if config.shard_weights:
        raise ConfigError(
            "'train.lora' and 'train.shard_weights' do not go together: adapters are not merged into shards; switch "
            "one of them off"
        )
    retriever.add_adapters(**config.lora.model_dump(), seed=seed)


class Trainer:
    """Trains a retriever in place."""

    def __init__(
        self,
        retriever: Retriever,
        config: TrainConfig,
        seed: int,
        *,
        runtime: TrainingRuntime | None = None,
        run_log: RunLog | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Nothing is trained yet.

        Args:
            retriever: its model is changed.
            config: steps, batch, rates, options of the loss.
            seed: of the order, the instructions, the negatives and dropout.
            runtime: of the retriever and the config; a new one where None.
            run_log: curve and metrics; a bare curve where None.
            checkpoints: none where None.
        """
        self.retriever, self.config, self.seed = retriever, config, seed
        self.runtime = runtime or TrainingRuntime(retriever, config)
        self.run_log = run_log or RunLog(config.locked_steps + config.steps)
        self.checkpoints = checkpoints or Checkpoints()

    def fit(self, data: TrainingData) -> list[dict[str, float]]:
        """Run all phases, or what the checkpoint left of them.

        Returns:
            The curve: per `STEPS_PER_POINT` steps the means of loss, accuracy, query_margin, number of images, and of
            the figures of the options that are on.
        Raises:
            DataError: the loss or the gradient is not finite, or there is no example.
            ConfigError: a learnt temperature without logit_scale.
        """
        config, model = self.config, self.retriever.model
        torch.manual_seed(self.seed)
        if config.learn_temperature and hasattr(model, "logit_scale"):
            model.logit_scale.data.fill_(-math.log(config.temperature))
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if config.locked_steps and not self.checkpoints.is_past("locked", PHASES):
            self.fit_text_tower(data)
        self.fit_both_towers(data)
        model.eval()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        return self.run_log.curve

    def fit_text_tower(self, data: TrainingData) -> list[dict[str, float]]:
        """The locked phase; returns and raises as `fit`."""
        config, runtime = self.config, self.runtime
        peak = config.locked_learning_rate
        optimizer = runtime.prepare(build_optimizer(self.retriever.model, config, peak))
        examples = data.datasets[0].examples
        pool = list(dict.fromkeys(i for e in examples for i in (e.query, e.target, *e.negatives)))
        features = self._image_pool_features(pool, data.load_images)
        runtime.module.train()
        done = self.checkpoints.restore("locked", runtime)
        plans = plan_locked_steps(examples, pool, config, random.Random(f"locked:{self.seed}"))
        for n, plan in enumerate(islice(plans, done, config.locked_steps), done):
            with runtime.autocast():
                texts = self._encode(partial(_encode_texts, runtime.module, plan.texts), len(plan.texts))
            loss = training_step(
                runtime,
                optimizer,
                loss_function(config, self.retriever.model, plan, runtime.device),
                EncodedBatch(features[plan.images], None),
                texts,
                learning_rate=learning_rate_at(n, steps=config.locked_steps, warmup=config.warmup_steps, peak=peak),
                step=n + 1,
            )
            self._finish_step(loss, plan, phase="locked", phase_step=n + 1)
        return self.run_log.curve

    def fit_both_towers(self, data: TrainingData) -> list[dict[str, float]]:
        """The phase that trains both towers, or an MLLM; returns and raises as `fit`."""
        config, runtime = self.config, self.runtime
        peak = config.learning_rate
        optimizer = runtime.prepare(build_optimizer(self.retriever.model, config, peak))
        runtime.module.train()
        done = self.checkpoints.restore("both", runtime)
        plans = islice(plan_steps(data.datasets, config, random.Random(self.seed)), done, config.steps)
        for n, (plan, images) in enumerate(prefetch(plans, data.load_images, config.decode_workers), done):
            rate = learning_rate_at(n, steps=config.steps, warmup=config.warmup_steps, peak=peak)
            loss = self.step_both_towers(optimizer, plan, images, learning_rate=rate, step=config.locked_steps + n + 1)
            self._finish_step(loss, plan, phase="both", phase_step=n + 1)
        return self.run_log.curve

    def step_both_towers(
        self, optimizer: Any, plan: BatchPlan, images: Any, *, learning_rate: float, step: int
    ) -> Loss:
        """One step of both towers: every distinct image of the plan is encoded once, and every text.

        Args:
            optimizer: as `TrainingRuntime.prepare` returned it.
            plan: of the step.
            images: (c, 3, height, width) of the plan's images, or a list of c inputs of an MLLM.
            learning_rate: of this step.
            step: its number, for the error.
        Raises:
            DataError: the loss or the gradient is not finite; nothing was changed.
        """
        runtime, is_joint = self.runtime, self.retriever.is_joint
        with runtime.autocast():
            image_batch = self._encode(partial(_encode_images, runtime.module, images), len(plan.images))
            encode_texts = (
                partial(_encode_queries, runtime.module, images, plan)
                if is_joint
                else partial(_encode_texts, runtime.module, plan.texts)
            )
            text_batch = self._encode(encode_texts, len(plan.texts))
        return training_step(
            runtime,
            optimizer,
            loss_function(self.config, self.retriever.model, plan, runtime.device, is_joint=is_joint),
            image_batch,
            text_batch,
            learning_rate=learning_rate,
            step=step,
        )

    def _encode(self, encode: Callable[[Sequence[int]], torch.Tensor], count: int) -> EncodedBatch:
        runtime = self.runtime
        return encode_batch(encode, count, self.config.cache_chunk, runtime.device, is_sharded=runtime.is_sharded)

    def _image_pool_features(self, pool: list[str], load_images: Callable[[list[str]], Any]) -> torch.Tensor:
        """(n, d) raw features of the frozen image tower."""
        module = self.runtime.module.eval()
        starts = range(0, len(pool), IMAGES_PER_PASS)
        with torch.no_grad(), self.runtime.autocast():
            return torch.cat([module(pixels=load_images(pool[n : n + IMAGES_PER_PASS])) for n in starts])

    def _finish_step(self, loss: Loss, plan: BatchPlan, *, phase: str, phase_step: int) -> None:
        """Log a step and write a checkpoint where one is due."""
        config = self.config
        step = phase_step if phase == "locked" else config.locked_steps + phase_step
        is_last = phase_step == (config.locked_steps if phase == "locked" else config.steps)
        self.run_log.log_step(step, step_figures(loss, plan, config, self.retriever.model), is_last=is_last)
        progress = Progress(step, phase, phase_step, self.run_log.state())
        self.checkpoints.save_if_due(progress, self.run_log.total_steps, self.runtime)


def _encode_images(module: Callable[..., torch.Tensor], pixels: Any, positions: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the images at these positions of the batch."""
    return module(pixels=_take(pixels, positions))


def _encode_texts(module: Callable[..., torch.Tensor], texts: Sequence[str], positions: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the texts at these positions of the batch."""
    return module(texts=[texts[n] for n in positions])


def _encode_queries(
    module: Callable[..., torch.Tensor], pixels: Any, plan: BatchPlan, positions: Sequence[int]
) -> torch.Tensor:
    """(n, d) float32 raw features of the queries at these positions of the batch, image and text encoded together."""
    return module(pixels=[pixels[plan.query_image[n]] for n in positions], texts=[plan.texts[n] for n in positions])


def _take(rows: Any, positions: Sequence[int]) -> Any:
    """Rows at the positions; the same tensor, not a copy, where that is all of them."""
    if isinstance(rows, list):
        return [rows[n] for n in positions]
    return rows if len(positions) == len(rows) else rows[list(positions)]
