"""Building and running the training of one seed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.models.retrievers.load import load_retriever
from tasks.models.retrievers.onnx_export import require_clip
from tasks.store import Store
from tasks.train.accelerator import TrainingRuntime, init_process_group
from tasks.train.checkpoints import Checkpoints
from tasks.train.checks import check_revision
from tasks.train.datasets import TrainingSet
from tasks.train.grad_cache import rank_and_processes
from tasks.train.launch import is_first_process, is_launched
from tasks.train.loader import ImageLoader
from tasks.train.recipe import training_identity
from tasks.train.run_log import RunLog
from tasks.train.teacher import Teacher
from tasks.train.trainer import Trainer, TrainingData, prepare_retriever
from tasks.train.validation import Validation

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever

THREADS_MIN = 2
log = logging.getLogger(__name__)


def load_base_model(params: Params) -> Retriever:
    """The base checkpoint on this process's device, with the recipe's adapters.

    Raises:
        ConfigError: no such model, not the pinned revision, or a recipe that does not suit the model's type.
    """
    config = params.train
    device = init_process_group(config.device) if is_launched() else config.device
    threads = torch_threads(params)
    retriever = load_retriever(
        config.base_model,
        revision=config.revision,
        device=device,
        threads=threads,
        base_precision=config.base_precision,
    )
    check_revision(config.revision, retriever.revision, config.base_model)
    if params.promote.onnx:
        require_clip(retriever)  # rather than after hours of training
    prepare_retriever(retriever, config, params.open_run.seed)
    return retriever


def torch_threads(params: Params) -> int:
    """CPU threads of torch: open_run.threads, at least THREADS_MIN, as a training runs beside no other stage."""
    return max(THREADS_MIN, params.open_run.threads)


def build_trainer(params: Params, store: Store, training_set: TrainingSet, retriever: Retriever) -> Trainer:
    """A trainer that resumes from the checkpoint in .run/train where there is one of this training.

    Raises:
        ConfigError: TensorBoard, a tracker or sharding is asked for and cannot be had.
    """
    config, is_first = params.train, is_first_process()
    checkpoints = Checkpoints(
        store.folder(".run", "train"),
        identity=training_identity(params, retriever.revision, training_set.all, torch_threads(params)),
        every_steps=config.checkpoint_steps,
        is_writer=is_first,
    )
    runtime = TrainingRuntime(retriever, config)
    run_log = RunLog(
        config.locked_steps + config.steps,
        resumed=checkpoints.progress,
        reports=store.folder("reports", "training") if is_first else None,
        tensorboard=config.tensorboard,
        is_writer=is_first,
        track=runtime.start_trackers(config, store.folder("reports", "training")),
    )
    seed = params.open_run.seed
    return Trainer(retriever, config, seed, runtime=runtime, run_log=run_log, checkpoints=checkpoints)


@dataclass(frozen=True)
class Trained:
    """What a training of one seed leaves beside its weights.

    Attributes:
        curve: as `Trainer.fit` returns it.
        unreadable: queries left out because of their images, by reason.
        history: evaluations while training; empty without them.
        best_step: of these.
    """

    curve: list[dict[str, float]]
    unreadable: Counter[str]
    history: list[dict[str, float]]
    best_step: int | None

    def to_json(self) -> str:
        """As text, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Trained:
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"unreadable": Counter(values["unreadable"])})


def training_data(params: Params, store: Store, training_set: TrainingSet, retriever: Retriever) -> TrainingData:
    """What is trained on, and with; images of further datasets may be unreadable, those of the version may not."""
    config = params.train
    loader = ImageLoader(store, retriever.preprocess, workers=config.decode_workers, files=training_set.files)
    validation = teacher = None
    if config.validation is not None:
        validation = Validation(config.validation, training_set.validation, store.folder(".run", "train"))
    if config.teacher is not None:
        named = config.teacher
        model = load_retriever(
            named.model, revision=named.revision, device=retriever.device, threads=torch_threads(params)
        )
        images = ImageLoader(store, model.preprocess, workers=config.decode_workers, files=training_set.files)
        teacher = Teacher(model, lambda ids: images.load_readable(ids)[0], config.cache_chunk)
    return TrainingData(
        training_set.all,
        loader,
        loader.load_readable if training_set.more else None,
        config.faulty_records_share_max,
        validation,
        teacher,
    )


def train_seed(
    params: Params, store: Store, training_set: TrainingSet, retriever: Retriever
) -> tuple[Trained, Trainer, dict[str, Any] | None]:
    """Train a model in place with the seed of `params`.

    Returns:
        What is left beside the weights, the trainer, and the full weights where they are sharded.
    """
    trainer = build_trainer(params, store, training_set, retriever)
    data = training_data(params, store, training_set, retriever)
    curve = trainer.fit(data)
    rank, processes = rank_and_processes()
    if processes > 1 and isinstance(data.load_images, ImageLoader):
        log.info("train: process %d of %d decoded %d images", rank + 1, processes, data.load_images.decoded)
    weights = trainer.runtime.full_weights()
    trainer.run_log.close()
    validation = data.validation
    history, best = ([], None) if validation is None else (validation.history, validation.best_step)
    return Trained(curve, trainer.unreadable.dropped, history, best), trainer, weights
