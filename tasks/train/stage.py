"""Fine-tune BGE-VL, of the CLIP or the MLLM type, on the version's judged triplets, by InfoNCE.

Reads data/triplets and data/images (and the datasets that train.datasets names); writes models/candidate (put in place
as a whole), reports/training.json (the loss curve, no clocks) and reports/training/ (metrics as they come:
tasks/train/run_log.py). Each step one instruction of a triplet is drawn; every distinct image of the batch is decoded
and encoded
once and stands against every query: targets of the others, the query images, mined negatives. Both towers are trained,
with AdamW, linear warm-up and linear decay. Source: MegaPairs, arXiv:2412.14475, appendix B.

A batch is put together from neighbourhoods: triplets that share images come in the same batch, so that a step encodes
few images, and those are each other's hard negatives (batch mining as in B3). Which images are held out:
tasks/train/splits.py.

An MLLM (config.json says so) reads a query's image and text together, so a query is encoded as a whole beside the
candidates, and there is no phase with a locked tower. With `lora` only adapters in its vision and language parts are
trained (tasks/models/retrievers/mllm.py).

With `locked_steps` the text tower goes first: the image tower is locked, so every image is encoded once and for all and
(almost) all of them can stand against each query at the price of a matrix product. Source: LiT, arXiv:2111.07991.

The whole order of batches, instructions and negatives follows from the seed alone. So a run that died goes on from its
last
checkpoint with the same weights as if it had lived, and `processes` share each batch without talking about it:
torchrun's launcher starts them (or you do, with `accelerate-launch` or torchrun, on several machines too), each encodes
its part of the images and texts (tasks/train/grad_cache.py). The loop stands on accelerate
(tasks/train/accelerator.py). On failure models/promoted is as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import Params, TrainConfig
from tasks.errors import ConfigError, DataError, TransientError
from tasks.models.retrievers.load import load_retriever
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.batches import Example, training_examples
from tasks.train.checks import check_images, check_revision, places_of
from tasks.train.datasets import read_dataset
from tasks.train.fit import adapt, fit
from tasks.train.loader import Pixels
from tasks.train.recipe import WEIGHT_NEUTRAL_KEYS
from tasks.train.splits import held_out_images

if TYPE_CHECKING:
    pass


def launch(processes: int, root: Path) -> None:
    """Run this stage in several processes by torchrun's launcher, and wait for them.

    Raises:
        DataError, ConfigError, TransientError: what the first of them to fail said by its exit code.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "tasks", "train", "--root", str(root))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        kind = {e.exit_code: e for e in (DataError, ConfigError)}.get(failure.exitcode, TransientError)
        raise kind(
            f"train: process {rank} of {processes} ended with exit code {failure.exitcode}; its message stands above"
        ) from error


def identity_of(
    config: TrainConfig,
    seed: int,
    base_revision: str,
    datasets: Sequence[tuple[Sequence[Example], float]],
    threads: int,
) -> str:
    """Of a training: equal where the weights of every step are equal."""
    digest = hashlib.sha256(
        json.dumps(
            [config.model_dump(mode="json", exclude=set(WEIGHT_NEUTRAL_KEYS)), seed, base_revision, threads]
        ).encode()
    )
    for examples, weight in datasets:
        digest.update(repr((weight, examples)).encode())
    return digest.hexdigest()


def run(params: Params, store: Store) -> StageReport:
    """Train models/candidate on all triplets but the held-out ones.

    Raises:
        DataError: no triplet to train on, an image that is missing, a loss that is not finite.
        ConfigError: a base model that is not the pinned one.
    """
    config, seed = params.train, params.open_run.seed
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if config.processes > 1 and not is_launched:
        launch(config.processes, store.root)
        return store.read_reports()["train"]
    from tasks.train.accelerator import Machine, join, part
    from tasks.train.run_log import Course

    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], config.held_out_share)
    examples = training_examples(triplets, held_out)
    if not examples:
        raise DataError(
            f"train: no triplet to train on among {len(triplets)}; run the dataset's stages first, or lower train.held_out_share"
        )
    check_images(examples, *places_of(store))
    more, files, dropped = [], dict[str, Path](), Counter({"held_out": len(triplets) - len(examples)})
    for dataset in config.datasets:
        found, images, left_out = read_dataset(dataset)
        more.append((found, dataset.weight))
        files |= images
        dropped.update(left_out)
    device = join(config.device) if is_launched else config.device
    threads = max(2, params.open_run.threads)
    retriever = load_retriever(config.base_model, revision=config.revision, device=device, threads=threads)
    base_revision = retriever.revision
    check_revision(config.revision, base_revision, config.base_model)
    adapt(retriever, config, seed)
    is_first = int(os.environ.get("RANK", "0")) == 0 or not is_launched
    course = Course(
        config.locked_steps + config.steps,
        checkpoint=store.folder(".run", "train"),
        identity=identity_of(config, seed, base_revision, [(examples, config.version_weight), *more], threads),
        checkpoint_steps=config.checkpoint_steps,
        reports=store.folder("reports", "training") if is_first else None,
        tensorboard=config.tensorboard,
        is_writer=is_first,
    )
    pixels = Pixels(store, retriever, workers=config.decode_workers, files=files)
    machine = Machine(retriever, config)
    curve = fit(retriever, examples, pixels, config, seed, more=more, course=course, machine=machine)
    state = machine.weights()
    report = StageReport(
        "train",
        read=len(triplets) + sum(len(found) for found, _ in more),
        written=1,
        dropped=dict(dropped),
        new=config.locked_steps + config.steps,
        done=config.locked_steps + config.steps,
        figures={
            "loss": curve[-1]["loss"],
            "accuracy": curve[-1]["accuracy"],
            "query_margin": curve[-1]["query_margin"],
            "triplets": float(len(examples)),
        },
    )
    if is_first:
        retriever.save(store.folder("models", "candidate"), state)
        training = {
            "base_model": config.base_model,
            "base_revision": base_revision,
            "seed": seed,
            "recipe": config.model_dump(mode="json", exclude={"device"}),
            "triplets": len(examples),
            "held_out_triplets": len(triplets) - len(examples),
            "held_out_images": len(held_out),
            "datasets": {d.name: len(found) for d, (found, _) in zip(config.datasets, more, strict=True)},
            "curve": curve,
        }
        store.write_bytes(store.folder("reports", "training.json"), (json.dumps(training, indent=1) + "\n").encode())
    course.close()
    part(machine)  # nobody leaves before the model is in place
    return report
