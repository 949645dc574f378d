"""The training loop: AdamW with warm-up and decay, an optional locked phase, then both towers.

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
from tasks.train.batches import BatchPlan, Example, WeightedDataset, plan_locked_steps, plan_steps
from tasks.train.checkpoints import Checkpoints, Progress
from tasks.train.encode_plan import PlanEncoder, without_broken
from tasks.train.grad_cache import EncodedBatch, training_step
from tasks.train.kept_base import KeptBase
from tasks.train.loader import LoadedImages, prefetch
from tasks.train.loss import Loss
from tasks.train.objective import loss_function, step_figures
from tasks.train.optimizer import build_optimizer, learning_rate_at
from tasks.train.refresh import mined_negatives, with_negatives
from tasks.train.run_log import RunLog
from tasks.train.teacher import Teacher
from tasks.train.unreadable import UnreadableQueries
from tasks.train.validation import Validation

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever

PHASES = ("locked", "both")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What is trained on.

    Attributes:
        datasets: the version's examples first; the locked phase uses them and the datasets that say so (`is_locked`).
        load_images: image ids -> (n, 3, height, width), or a list of n inputs of an MLLM.
        load_readable: the same, with a blank for each image that cannot be read, and the positions of these; None where
            every image can be.
        unreadable_share_max: largest share of the queries that may be left out because of such images, 0 to 1.
        validation: what the model is evaluated on while it is trained; None: it is not.
        teacher: whose similarities are learnt too; None without one.
    """

    datasets: Sequence[WeightedDataset]
    load_images: Callable[[list[str]], Any]
    load_readable: Callable[[list[str]], tuple[Any, frozenset[int]]] | None = None
    unreadable_share_max: float = 1.0
    validation: Validation | None = None
    teacher: Teacher | None = None


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
    if any(dataset.keep_base for dataset in config.datasets) and (retriever.is_joint or config.shard_weights):
        raise ConfigError(
            "'train.datasets': keep_base is for models of the CLIP type whose weights are not sharded "
            f"('{config.base_model}', shard_weights {config.shard_weights}); set it to 0"
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
        is_kept = any(dataset.keep_base for dataset in config.datasets)
        self._base = KeptBase(retriever, config.cache_chunk) if is_kept else None

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
        self._resume(data)
        if config.locked_steps and not self.checkpoints.is_past("locked", PHASES):
            self.fit_text_tower(data)
        if config.steps:
            self.fit_both_towers(data)
        if data.validation is not None and data.validation.config.keep_best and self.run_log.is_writer:
            log.info("train: the best evaluation was after step %d", data.validation.best_step)
            self.runtime.module.load_state_dict(data.validation.best_weights())
        model.eval()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        return self.run_log.curve

    def _resume(self, data: TrainingData) -> None:
        """Take up the evaluations and the mined negatives of an earlier try."""
        state = self.checkpoints.progress.run_log if self.checkpoints.progress else {}
        if data.validation is not None:
            data.validation.resume(state.get("validation", []))
        self._mined: tuple[int, list[list[str]]] = tuple(state.get("mined", (0, [])))  # type: ignore[assignment]

    def fit_text_tower(self, data: TrainingData) -> list[dict[str, float]]:
        """The locked phase; returns and raises as `fit`."""
        config, runtime = self.config, self.runtime
        peak = config.locked_learning_rate
        optimizer = runtime.prepare(build_optimizer(self.retriever.model, config, peak))
        examples = data.datasets[0].examples
        assert isinstance(examples, Sequence)  # the version's own
        further = [d for d in data.datasets[1:] if d.is_locked]
        named = [*examples, *(e for d in further if isinstance(d.examples, Sequence) for e in d.examples)]
        ids = (i for e in named for i in (e.query, e.target, *e.negatives))
        pool = list(dict.fromkeys(str(i) for i in ids if i is not None))
        runtime.module.eval()
        encoder = self._plan_encoder()
        with runtime.autocast():
            features = encoder.frozen_features(pool, data.load_images)
        runtime.module.train()
        done = self.checkpoints.restore("locked", runtime)
        plans = plan_locked_steps(examples, pool, config, random.Random(f"locked:{self.seed}"), further)
        for n, plan in enumerate(islice(plans, done, config.locked_steps), done):
            with runtime.autocast():
                texts = encoder.encode_texts([*plan.texts, *plan.held_texts])
            loss = training_step(
                runtime,
                optimizer,
                self._loss_function(plan),
                EncodedBatch(features[plan.images], None),
                texts,
                learning_rate=learning_rate_at(
                    n,
                    steps=config.locked_steps,
                    warmup=config.locked_warmup_steps,
                    peak=peak,
                    schedule=config.optimizer.schedule,
                ),
                step=n + 1,
            )
            self._finish_step(loss, plan, data, phase="locked", phase_step=n + 1)
        return self.run_log.curve

    def fit_both_towers(self, data: TrainingData) -> list[dict[str, float]]:
        """The phase that trains both towers, or an MLLM; returns and raises as `fit`."""
        config, runtime = self.config, self.runtime
        peak = config.learning_rate
        optimizer = runtime.prepare(build_optimizer(self.retriever.model, config, peak))
        runtime.module.train()
        done = self.checkpoints.restore("both", runtime)
        for n, plan, images in self._steps(data, done):
            if data.validation is not None and data.validation.is_stale:
                log.info("train: no better evaluation for long; the training ends after step %d", n)
                break
            plan = without_broken(plan, images, runtime.device) if data.load_readable else plan
            self.unreadable.count(plan)
            self.unreadable.require_few(data.unreadable_share_max)
            if not plan.readable_queries:
                log.warning("train: step %d has no query whose images can be read, and changes nothing", n + 1)
                continue
            teacher = None if data.teacher is None else data.teacher.similarity(plan, runtime.device)
            rate = learning_rate_at(
                n, steps=config.steps, warmup=config.warmup_steps, peak=peak, schedule=config.optimizer.schedule
            )
            loss = self.step_both_towers(
                optimizer, plan, images, learning_rate=rate, step=config.locked_steps + n + 1, teacher=teacher
            )
            self._finish_step(loss, plan, data, phase="both", phase_step=n + 1)
            if data.validation is not None and data.validation.is_stale:
                log.info(
                    "train: no better evaluation in the last %s; the training ends", data.validation.config.patience
                )
                break
        self.run_log.end_phase()
        return self.run_log.curve

    def _steps(self, data: TrainingData, done: int) -> Iterator[tuple[int, BatchPlan, LoadedImages]]:
        """The main phase's steps that are not done: number (from 0), plan and images.

        Where hard negatives are mined anew, the steps up to the next mining are planned together.
        """
        config = self.config
        every = config.refresh_negatives.every_steps if config.refresh_negatives else config.steps
        for part, start in enumerate(range(0, config.steps, every)):
            end = min(start + every, config.steps)
            if end <= done:
                continue
            datasets = self._with_mined_negatives(data, part) if part else data.datasets
            rng = random.Random(f"{self.seed}:{part}" if part else self.seed)
            first = max(start, done)
            plans = islice(plan_steps(datasets, config, rng), first - start, end - start)
            for n, (plan, images) in enumerate(self._loaded(plans, data), first):
                yield n, plan, images

    def _with_mined_negatives(self, data: TrainingData, part: int) -> list[WeightedDataset]:
        """The datasets with the version's negatives mined anew; those of an earlier try where they are of this part."""
        version, *more = data.datasets
        examples, refresh = version.examples, self.config.refresh_negatives
        assert isinstance(examples, Sequence) and refresh is not None
        if self._mined[0] != part:
            image_ids = list(dict.fromkeys(str(i) for e in examples for i in (e.query, e.target, *e.negatives)))
            queries, images = self._encode_examples(examples, image_ids, data)
            self._mined = part, mined_negatives(examples, image_ids, queries, images, refresh)
        return [WeightedDataset(with_negatives(examples, self._mined[1]), version.weight), *more]

    def _encode_examples(
        self, examples: Sequence[Example], image_ids: Sequence[str], data: TrainingData
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit rows of queries and of images by the model as it is."""
        module = self.runtime.module.eval()
        with self.runtime.autocast():
            rows = self._plan_encoder().encode_examples(examples, image_ids, data.load_images)
        module.train()
        return rows

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
        self,
        optimizer: Any,
        plan: BatchPlan,
        images: Any,
        *,
        learning_rate: float,
        step: int,
        teacher: torch.Tensor | None = None,
    ) -> Loss:
        """One step of both towers: every distinct image of the plan is encoded once, and every text.

        Args:
            optimizer: as `TrainingRuntime.prepare` returned it.
            plan: of the step.
            images: (m, 3, height, width) of the plan's images, or a list of m inputs of an MLLM, or those of this
                process alone.
            learning_rate: of this step.
            step: its number, for the error.
            teacher: (b, c) similarities of the teacher; None without one.
        Raises:
            DataError: the loss or the gradient is not finite; nothing was changed.
        """
        runtime = self.runtime
        if not isinstance(images, LoadedImages):
            images = LoadedImages(images, range(len(plan.images)))
        with runtime.autocast():
            image_batch, text_batch = self._plan_encoder().encode(plan, images)
        return training_step(
            runtime,
            optimizer,
            self._loss_function(plan, teacher, images),
            image_batch,
            text_batch,
            learning_rate=learning_rate,
            step=step,
        )

    def _loss_function(
        self, plan: BatchPlan, teacher: torch.Tensor | None = None, images: LoadedImages | None = None
    ) -> Callable[..., Loss]:
        base = None
        if self._base is not None and plan.keep_base:
            with self.runtime.autocast():
                base = self._base.features(plan, images)
        return loss_function(
            self.config,
            self.retriever.model,
            plan,
            self.runtime.device,
            is_joint=self.retriever.is_joint,
            teacher=teacher,
            base=base,
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

    def _finish_step(self, loss: Loss, plan: BatchPlan, data: TrainingData, *, phase: str, phase_step: int) -> None:
        """Log a step, and evaluate and write a checkpoint where these are due."""
        config, validation = self.config, data.validation
        step = phase_step if phase == "locked" else config.locked_steps + phase_step
        is_last = phase_step == (config.locked_steps if phase == "locked" else config.steps)
        self.run_log.log_step(step, step_figures(loss, plan, config, self.retriever.model), is_last=is_last)
        state = self.run_log.state()
        if validation is not None:
            if validation.is_due(step, is_last=step == self.run_log.total_steps):
                self._evaluate(step, validation, data)
            state["validation"] = validation.history
        if config.refresh_negatives is not None:
            state["mined"] = self._mined
        self.checkpoints.save_if_due(Progress(step, phase, phase_step, state), self.run_log.total_steps, self.runtime)

    def _evaluate(self, step: int, validation: Validation, data: TrainingData) -> None:
        """Evaluate the model as it is; keep its weights where it is the best one."""
        rows = self._encode_examples(validation.examples, validation.image_ids, data)
        self.run_log.log_validation(step, validation.score(step, *rows))
        if validation.config.keep_best and validation.best_step == step and self.run_log.is_writer:
            validation.keep(step, self.runtime.module.state_dict())
            validation.forget()
