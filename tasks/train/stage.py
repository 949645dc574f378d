"""Train: fine-tune BGE-VL, of the CLIP or the MLLM type, on the version's judged triplets with InfoNCE.

Reads    data/triplets and data/images, the further datasets that `train.datasets` names, the base checkpoint
         (train.base_model).
Writes   models/candidate (put in place as a whole), reports/training.json (recipe and loss curve, no timestamps),
         reports/training/ (metrics as they come: tasks/train/run_log.py), .run/train (checkpoints while it runs).
Drops    held-out triplets (held_out: tasks/train/splits.py), records of further datasets by reason
         (tasks/train/datasets.py), and queries of these whose image cannot be read when its turn comes
         (unreadable_image).

Each step draws one instruction per triplet. Every distinct image of the batch is decoded and encoded once and is a
candidate for every query: targets of the others, the query images, mined negatives (tasks/train/loss.py). How batches
are made: tasks/train/batches.py. Both towers are trained, with AdamW, linear warm-up and linear decay; with
`locked_steps` the text tower comes first, with the image tower frozen (tasks/train/trainer.py).

An MLLM (config.json says so) reads a query's image and text together, so a query is encoded as a whole beside the
candidates, and there is no locked phase. With `lora` only adapters in its vision and language parts are trained
(tasks/models/retrievers/mllm.py).

The whole order of batches, instructions and negatives follows from the seed alone. So a run that died resumes from its
last checkpoint (tasks/train/checkpoints.py) and ends with the same weights, and several processes share each batch
without communicating about it: `processes` starts them by torchrun's launcher, or start them yourself with
`accelerate-launch` or torchrun, on several machines too. Each encodes its part of the images and texts
(tasks/train/grad_cache.py), on accelerate (tasks/train/accelerator.py). On failure models/promoted is unchanged.

Source: MegaPairs, arXiv:2412.14475, appendix B.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.config import Params, TrainConfig
from tasks.models.retrievers.load import load_retriever
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.accelerator import TrainingRuntime, destroy_process_group, init_process_group
from tasks.train.checkpoints import Checkpoints
from tasks.train.checks import check_revision
from tasks.train.datasets import TrainingSet, read_training_set
from tasks.train.launch import is_first_process, is_launched, launch_processes
from tasks.train.loader import ImageLoader
from tasks.train.recipe import training_identity
from tasks.train.run_log import RunLog
from tasks.train.trainer import Trainer, TrainingData, prepare_retriever

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever


def load_base_model(params: Params) -> Retriever:
    """The base checkpoint on this process's device, with the recipe's adapters.

    Raises:
        ConfigError: no such model, not the pinned revision, or a recipe that does not suit the model's type.
    """
    config = params.train
    device = init_process_group(config.device) if is_launched() else config.device
    threads = torch_threads(params)
    retriever = load_retriever(config.base_model, revision=config.revision, device=device, threads=threads)
    check_revision(config.revision, retriever.revision, config.base_model)
    prepare_retriever(retriever, config, params.open_run.seed)
    return retriever


def torch_threads(params: Params) -> int:
    """CPU threads of torch: open_run.threads, at least 2."""
    return max(2, params.open_run.threads)


def build_trainer(params: Params, store: Store, training_set: TrainingSet, retriever: Retriever) -> Trainer:
    """A trainer that resumes from the checkpoint in .run/train where there is one of this training.

    Raises:
        ConfigError: TensorBoard or sharding is asked for and cannot be had.
    """
    config, is_first = params.train, is_first_process()
    checkpoints = Checkpoints(
        store.folder(".run", "train"),
        identity=training_identity(params, retriever.revision, training_set.all, torch_threads(params)),
        every_steps=config.checkpoint_steps,
        is_writer=is_first,
    )
    run_log = RunLog(
        config.locked_steps + config.steps,
        resumed=checkpoints.progress,
        reports=store.folder("reports", "training") if is_first else None,
        tensorboard=config.tensorboard,
        is_writer=is_first,
    )
    runtime = TrainingRuntime(retriever, config)
    seed = params.open_run.seed
    return Trainer(retriever, config, seed, runtime=runtime, run_log=run_log, checkpoints=checkpoints)


def write_training_report(
    params: Params, store: Store, training_set: TrainingSet, base_revision: str, curve: Sequence[dict[str, float]]
) -> None:
    """Write reports/training.json."""
    config, examples = params.train, training_set.version.examples
    report = {
        "base_model": config.base_model,
        "base_revision": base_revision,
        "seed": params.open_run.seed,
        "recipe": config.model_dump(mode="json", exclude={"device"}),
        "triplets": len(examples),
        "held_out_triplets": training_set.triplets - len(examples),
        "held_out_images": training_set.held_out_images,
        "datasets": {d.name: len(m.examples) for d, m in zip(config.datasets, training_set.more, strict=True)},
        "curve": curve,
    }
    store.write_bytes(store.folder("reports", "training.json"), (json.dumps(report, indent=1) + "\n").encode())


def training_data(config: TrainConfig, training_set: TrainingSet, loader: ImageLoader) -> TrainingData:
    """What is trained on; images of further datasets may be unreadable, those of the version may not."""
    load_readable = loader.load_readable if training_set.more else None
    return TrainingData(training_set.all, loader, load_readable, config.faulty_records_share_max)


def dropped_records(training_set: TrainingSet, trainer: Trainer) -> Counter[str]:
    """Records that were not trained on, by reason; of a streamed dataset those whose turn came."""
    dropped = training_set.dropped.copy()
    for counts in (*(stream.dropped.counts for stream in training_set.streams), trainer.unreadable.dropped):
        dropped.update(counts)
    return dropped


def run(params: Params, store: Store) -> StageReport:
    """Train models/candidate on all triplets but the held-out ones.

    Raises:
        DataError: no triplet to train on, an image that is missing, a loss that is not finite.
        ConfigError: a base model that is not the pinned one, or a recipe that does not suit it.
    """
    config = params.train
    if config.processes > 1 and not is_launched():
        launch_processes(config.processes, store.root)
        return store.read_reports()["train"]
    training_set = read_training_set(config, store)
    retriever = load_base_model(params)
    trainer = build_trainer(params, store, training_set, retriever)
    loader = ImageLoader(store, retriever.preprocess, workers=config.decode_workers, files=training_set.files)
    curve = trainer.fit(training_data(config, training_set, loader))
    weights = trainer.runtime.full_weights()
    if is_first_process():
        retriever.save(store.folder("models", "candidate"), weights)
        write_training_report(params, store, training_set, retriever.revision, curve)
    trainer.run_log.close()
    trainer.checkpoints.clear()
    destroy_process_group(trainer.runtime)  # no process leaves before the model is in place
    return StageReport(
        "train",
        read=training_set.triplets + sum(len(m.examples) for m in training_set.more),
        written=1,
        dropped=dict(dropped_records(training_set, trainer)),
        new=config.locked_steps + config.steps,
        done=config.locked_steps + config.steps,
        figures={
            "loss": curve[-1]["loss"],
            "accuracy": curve[-1]["accuracy"],
            "query_margin": curve[-1]["query_margin"],
            "triplets": float(len(training_set.version.examples)),
        },
    )
