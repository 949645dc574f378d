"""Train: fine-tune BGE-VL, of the CLIP or the MLLM type, on the version's judged triplets with InfoNCE.

Reads    data/triplets, data/images and data/shards, the further datasets that `train.datasets` names, the base
         checkpoint (train.base_model).
Writes   models/candidate (put in place as a whole), reports/training.json (recipe and loss curve, no timestamps),
         reports/training/ (metrics as they come: tasks/train/run_log.py), .run/train (checkpoints while it runs),
         .run/records (indices of further datasets).
Drops    held-out triplets (held_out: tasks/train/splits.py), those of `validation`, records of further datasets by
         reason (tasks/train/datasets.py), and queries of these whose image cannot be read when its turn comes
         (unreadable_image).

Each step draws one instruction per triplet. Every distinct image of the batch is decoded and encoded once and is a
candidate for every query: targets of the others, the query images, mined negatives (tasks/train/loss.py). How batches
are made: tasks/train/batches.py. Both towers are trained, with AdamW, linear warm-up, then linear or cosine decay
(tasks/train/optimizer.py); with `locked_steps` the text tower comes first, with the image tower frozen
(tasks/train/trainer.py).

An MLLM (config.json says so) reads a query's image and text together, so a query is encoded as a whole beside the
candidates, and there is no locked phase. With `lora` only adapters in its vision and language parts are trained
(tasks/models/retrievers/mllm.py).

The whole order of batches, instructions and negatives follows from the seed alone. So a run that died resumes from its
last checkpoint (tasks/train/checkpoints.py) and ends with the same weights, and several processes share each batch
without communicating about it: `processes` starts them by torchrun's launcher, or start them yourself with
`accelerate-launch` or torchrun, on several machines too. Each encodes its part of the images and texts
(tasks/train/grad_cache.py), on accelerate (tasks/train/accelerator.py). On failure models/promoted is unchanged.

Options: evaluation while training (tasks/train/validation.py), a teacher (teacher.py), hard negatives mined anew
(refresh.py), the mean of several seeds' weights (averaging.py), further losses (loss.py).

Source: MegaPairs, arXiv:2412.14475, appendix B.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.atomic import remove
from tasks.train.accelerator import destroy_process_group
from tasks.train.averaging import SeedWeights
from tasks.train.datasets import TrainingSet, read_training_set
from tasks.train.launch import is_first_process, is_launched, launch_processes
from tasks.train.recipe import training_identity
from tasks.train.seeds import Trained, build_trainer, load_base_model, torch_threads, train_seed
from tasks.train.trainer import Trainer

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever


def write_training_report(
    params: Params, store: Store, training_set: TrainingSet, base_revision: str, trained: Sequence[Trained]
) -> None:
    """Write reports/training.json; with several seeds the curve is the first one's."""
    config = params.train
    report = {
        "base_model": config.base_model,
        "base_revision": base_revision,
        "seed": params.open_run.seed,
        "recipe": config.model_dump(mode="json", exclude={"device"}),
        "triplets": len(training_set.version.examples),
        "held_out_triplets": training_set.dropped["held_out"],
        "held_out_images": training_set.held_out_images,
        "datasets": {d.name: len(m.examples) for d, m in zip(config.datasets, training_set.more, strict=True)},
        "curve": trained[0].curve,
    }
    if config.validation is not None:
        report["validation"] = [{"best_step": t.best_step, "history": t.history} for t in trained]
        report["validation_triplets"] = len(training_set.validation)
    store.write_bytes(store.folder("reports", "training.json"), (json.dumps(report, indent=1) + "\n").encode())


def dropped_records(training_set: TrainingSet, trained: Sequence[Trained]) -> Counter[str]:
    """Records that were not trained on, by reason; of a streamed dataset those whose turn came."""
    dropped = training_set.dropped.copy()
    for counts in (*(stream.dropped.counts for stream in training_set.streams), trained[0].unreadable):
        dropped.update(counts)
    return dropped


def train_seeds(
    params: Params, store: Store, training_set: TrainingSet
) -> tuple[Retriever, list[Trained], Trainer, dict[str, Any] | None]:
    """Train `average_seeds` models, and average their weights where they are several.

    Returns:
        The model, what each training leaves beside its weights, the last trainer, and the full weights where they are
        sharded.
    """
    first, count = params.open_run.seed, params.train.average_seeds
    trained: list[Trained] = []
    finished = SeedWeights(store.folder(".run", "train"))
    for seed in range(first, first + count):
        seeded = params.model_copy(update={"open_run": params.open_run.model_copy(update={"seed": seed})})
        retriever = load_base_model(seeded)
        if count == 1:
            one, trainer, weights = train_seed(seeded, store, training_set, retriever)
            return retriever, [one], trainer, weights
        identity = training_identity(seeded, retriever.revision, training_set.all, torch_threads(params))
        earlier = finished.find(seed, identity)
        if earlier is None:
            one, trainer, _ = train_seed(seeded, store, training_set, retriever)
            earlier = one.to_json()
            if is_first_process():
                finished.keep(seed, identity, retriever.model, earlier)
        else:
            trainer = build_trainer(seeded, store, training_set, retriever)
        trained.append(Trained.from_json(earlier))
    if is_first_process():
        retriever.model.load_state_dict(finished.mean())
    return retriever, trained, trainer, None


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
    retriever, trained, trainer, weights = train_seeds(params, store, training_set)
    if is_first_process():
        retriever.save(store.folder("models", "candidate"), weights)
        write_training_report(params, store, training_set, retriever.revision, trained)
    clear_working_files(store, trainer)
    destroy_process_group(trainer.runtime)  # no process leaves before the model is in place
    last = trained[-1].curve[-1]
    return StageReport(
        "train",
        read=training_set.triplets + sum(len(m.examples) for m in training_set.more),
        written=1,
        dropped=dict(dropped_records(training_set, trained)),
        new=config.locked_steps + config.steps,
        done=config.locked_steps + config.steps,
        figures={
            "loss": last["loss"],
            "accuracy": last["accuracy"],
            "query_margin": last["query_margin"],
            "triplets": float(len(training_set.version.examples)),
        },
    )


def clear_working_files(store: Store, trainer: Trainer) -> None:
    """Remove the checkpoints, and the weights of the best evaluation and of single seeds."""
    trainer.checkpoints.clear()
    if is_first_process():
        for path in list(store.folder(".run", "train").glob("*.safetensors")):
            remove(path)
