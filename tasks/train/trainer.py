"""The training loop: AdamW with linear warm-up and linear decay, an optional locked phase, then both towers.

The locked phase (`locked_steps`) trains the text tower with the image tower frozen: every image is encoded once, and
(almost) all of them are candidates for each query at the price of a matrix product. Source: LiT, arXiv:2111.07991.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from tasks.config import TrainConfig
from tasks.errors import ConfigError
from tasks.train.accelerator import TrainingRuntime
from tasks.train.batches import BatchPlan, WeightedDataset, plan_locked_steps, plan_steps
from tasks.train.checkpoints import Checkpoints, Progress
from tasks.train.encode_plan import PlanEncoder, without_broken
from tasks.train.grad_cache import EncodedBatch, training_step
from tasks.train.loader import LoadedImages, prefetch
from tasks.train.loss import Loss
from tasks.train.objective import loss_function, step_figures
from tasks.train.run_log import RunLog
from tasks.train.unreadable import UnreadableQueries

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever

PHASES = ("locked", "both")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What is trained on.

    Attributes:
        datasets: the version's examples first; the locked phase uses them alone.
        load_images: image ids -> (n, 3, height, width), or a list of n inputs of an MLLM.
        load_readable: the same, with a blank for each image that cannot be read, and the positions of these; None where
            every image can be.
        unreadable_share_max: largest share of the queries that may be left out because of such images, 0 to 1.
    """

    datasets: Sequence[WeightedDataset]
    load_images: Callable[[list[str]], Any]
    load_readable: Callable[[list[str]], tuple[Any, frozenset[int]]] | None = None
    unreadable_share_max: float = 1.0


def learning_rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear up to `peak` over `warmup` steps, then linear down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


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
        self.unreadable = UnreadableQueries()

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
        assert isinstance(examples, Sequence)  # the version's own
        pool = list(dict.fromkeys(str(i) for e in examples for i in (e.query, e.target, *e.negatives)))
        runtime.module.eval()
        encoder = self._plan_encoder()
        with runtime.autocast():
            features = encoder.frozen_features(pool, data.load_images)
        runtime.module.train()
        done = self.checkpoints.restore("locked", runtime)
        plans = plan_locked_steps(examples, pool, config, random.Random(f"locked:{self.seed}"))
        for n, plan in enumerate(islice(plans, done, config.locked_steps), done):
            with runtime.autocast():
                texts = encoder.encode_texts(plan.texts)
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
        for n, (plan, images) in enumerate(self._loaded(plans, data), done):
            plan = without_broken(plan, images, runtime.device) if data.load_readable else plan
            self.unreadable.count(plan)
            self.unreadable.require_few(data.unreadable_share_max)
            if not plan.readable_queries:
                log.warning("train: step %d has no query whose images can be read, and changes nothing", n + 1)
                continue
            rate = learning_rate_at(n, steps=config.steps, warmup=config.warmup_steps, peak=peak)
            loss = self.step_both_towers(optimizer, plan, images, learning_rate=rate, step=config.locked_steps + n + 1)
            self._finish_step(loss, plan, phase="both", phase_step=n + 1)
        return self.run_log.curve

    def _loaded(self, plans: Iterator[BatchPlan], data: TrainingData) -> Iterator[tuple[BatchPlan, LoadedImages]]:
        """Each plan with the images that this process encodes."""
        encoder = self._plan_encoder()

        def load(own: Sequence[tuple[int, str]]) -> LoadedImages:
            positions, image_ids = [n for n, _ in own], [image_id for _, image_id in own]
            if data.load_readable is None:
                return LoadedImages(data.load_images(image_ids), positions)
            rows, broken = data.load_readable(image_ids)
            return LoadedImages(rows, positions, frozenset(positions[n] for n in broken))

        def choose(plan: BatchPlan) -> list[tuple[int, str]]:
            return [(n, plan.images[n]) for n in encoder.own_images(plan)]

        return prefetch(plans, load, self.config.decode_workers, choose)

    def step_both_towers(
        self, optimizer: Any, plan: BatchPlan, images: Any, *, learning_rate: float, step: int
    ) -> Loss:
        """One step of both towers: every distinct image of the plan is encoded once, and every text.

        Args:
            optimizer: as `TrainingRuntime.prepare` returned it.
            plan: of the step.
            images: (m, 3, height, width) of the plan's images, or a list of m inputs of an MLLM, or those of this
                process alone.
            learning_rate: of this step.
            step: its number, for the error.
        Raises:
            DataError: the loss or the gradient is not finite; nothing was changed.
        """
        runtime, is_joint = self.runtime, self.retriever.is_joint
        if not isinstance(images, LoadedImages):
            images = LoadedImages(images, range(len(plan.images)))
        with runtime.autocast():
            image_batch, text_batch = self._plan_encoder().encode(plan, images)
        return training_step(
            runtime,
            optimizer,
            loss_function(self.config, self.retriever.model, plan, runtime.device, is_joint=is_joint),
            image_batch,
            text_batch,
            learning_rate=learning_rate,
            step=step,
        )

    def _plan_encoder(self) -> PlanEncoder:
        runtime = self.runtime
        return PlanEncoder(
            runtime.module,
            runtime.device,
            is_joint=self.retriever.is_joint,
            is_sharded=runtime.is_sharded,
            chunk=self.config.cache_chunk,
        )

    def _finish_step(self, loss: Loss, plan: BatchPlan, *, phase: str, phase_step: int) -> None:
        """Log a step and write a checkpoint where one is due."""
        config = self.config
        step = phase_step if phase == "locked" else config.locked_steps + phase_step
        is_last = phase_step == (config.locked_steps if phase == "locked" else config.steps)
        self.run_log.log_step(step, step_figures(loss, plan, config, self.retriever.model), is_last=is_last)
        progress = Progress(step, phase, phase_step, self.run_log.state())
        self.checkpoints.save_if_due(progress, self.run_log.total_steps, self.runtime)
