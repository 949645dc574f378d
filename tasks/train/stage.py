"""Fine-tune BGE-VL, of the CLIP or the MLLM type, on the version's judged triplets, by InfoNCE.

Reads data/triplets and data/images (and the datasets that train.datasets names); writes models/candidate (put in place as
a whole), reports/training.json (the loss curve, no clocks) and reports/training/ (metrics as they come: tasks/train/run_log.py).
Each step one instruction of a triplet is drawn; every distinct picture of the batch is decoded and encoded
once and stands against every query: targets of the others, the query pictures, mined negatives. Both towers are trained,
with AdamW, linear warm-up and linear decay. Source: MegaPairs, arXiv:2412.14475, appendix B.

A batch is put together from neighbourhoods: triplets that share pictures come in the same batch, so that a step encodes
few pictures, and those are each other's hard negatives (batch mining as in B3). Which pictures are held out: tasks/train/splits.py.

An MLLM (config.json says so) reads a query's picture and text together, so a query is encoded as a whole beside the candidates, and
there is no phase with a locked tower. With `lora` only adapters in its vision and language parts are trained (tasks/models/retrievers/mllm.py).

With `locked_steps` the text tower goes first: the picture tower is locked, so every picture is encoded once and for all and
(almost) all of them can stand against each query at the price of a matrix product. Source: LiT, arXiv:2111.07991.

The whole order of batches, instructions and negatives follows from the seed alone. So a run that died goes on from its last
checkpoint with the same weights as if it had lived, and `processes` share each batch without talking about it: torchrun's
launcher starts them (or you do, with `accelerate-launch` or torchrun, on several machines too), each encodes its part of the pictures
and texts (tasks/train/grad_cache.py). The loop stands on accelerate (tasks/train/accelerator.py). On failure models/promoted is as it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params, TrainConfig
from tasks.errors import ConfigError, DataError, TransientError
from tasks.models.retrievers.load import load_retriever
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.datasets import Example, read_dataset
from tasks.train.loader import Pixels, ahead
from tasks.train.splits import components, held_out_pictures

if TYPE_CHECKING:
    import torch

    from tasks.models.retrievers.clip import AnyRetriever
    from tasks.train.accelerator import Machine
    from tasks.train.loss import Loss
    from tasks.train.run_log import Course

GROUP_TRIPLETS = 8  # triplets of one neighbourhood that come together in a batch, at most
PHASES = ("locked", "both")
HARMLESS = {"device", "tensorboard", "checkpoint_steps", "decode_workers"}  # parameters that do not change the weights


def training_examples(triplets: Sequence[Mapping[str, Any]], held_out: set[str]) -> list[Example]:
    """Triplets with no held-out picture as query or target; held-out pictures among their negatives are left out."""
    out = []
    for t in triplets:
        query, target = t["query_image_id"], t["target_image_id"]
        if query in held_out or target in held_out:
            continue
        negatives = tuple(i for i in t["negative_image_ids"] if i not in held_out and i not in (query, target))
        scores = dict(zip(t["negative_image_ids"], t.get("judge_negative") or (), strict=False))
        judged = {i: scores[i] for i in (query, *negatives) if i in scores}
        out.append(Example(query, target, negatives, tuple(t["instructions"]), tuple(t.get("judge_target") or ()), judged))
    return out


def batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end: each pass over the examples in a new order, neighbours kept together.

    Args:
        examples: at least one.
        size: examples of a batch, a count; a pass's last few join the next pass.
        rng: of the order.
    Raises:
        DataError: no example.
    """
    if not examples:
        raise DataError("train: no triplet to make a batch of; run the dataset's stages first, or look into train.datasets")
    of = components([(e.query, e.target) for e in examples])
    waiting: list[Example] = []
    while True:
        groups: dict[str, list[Example]] = {}
        for e in examples:
            groups.setdefault(of[e.query], []).append(e)
        parts = []
        for group in groups.values():
            rng.shuffle(group)
            parts += [group[i : i + GROUP_TRIPLETS] for i in range(0, len(group), GROUP_TRIPLETS)]
        rng.shuffle(parts)
        for part in parts:
            waiting += part
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]


def mixed_batches(datasets: Sequence[tuple[Sequence[Example], float]], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end, each from one dataset, drawn by weight: pictures of different datasets are told apart too easily.

    Args:
        datasets: examples and weight of each; one alone costs no draw.
        size: examples of a batch, a count; fewer where a dataset has fewer.
        rng: of the draws and the orders.
    """
    streams = [batches(examples, min(size, len(examples)), rng) for examples, _ in datasets]
    weights = [weight for _, weight in datasets]
    while True:
        yield next(rng.choices(streams, weights)[0] if len(streams) > 1 else streams[0])


@dataclass(frozen=True)
class Plan:
    """One step: which pictures are encoded, with which texts, and what is what.

    Attributes:
        shown: (c) distinct pictures; their ids, or their rows in the locked phase.
        positive: (b) position of each query's target.
        query: (b) position of each query's own picture.
        texts: (b) one instruction each.
        copies: (c) how often the batch names each picture.
        columns: (b, k) positions of the judged candidates.
        scores: (b, k) the judge's P(yes); NaN where there is none.
    """

    shown: list[Any]
    positive: list[int]
    query: list[int]
    texts: list[str]
    copies: list[int]
    columns: list[list[int]]
    scores: list[list[float]]


def plan_of(batch: Sequence[Example], negatives: Sequence[Sequence[str]], said: Sequence[int], shown: list[Any], place: Mapping[str, int]) -> Plan:
    """Put a step together from what was drawn.

    Args:
        batch: its examples.
        negatives: of each the mined negatives.
        said: of each the instruction's number.
        shown: distinct pictures.
        place: picture id -> position among them.
    """
    named = [(e.target, e.query, *n) for e, n in zip(batch, negatives, strict=True)]
    counts = Counter(place[i] for row in named for i in row)
    width = max(len(row) for row in named)
    columns = [[place[i] for i in row] + [place[row[0]]] * (width - len(row)) for row in named]
    scores = []
    for e, n, row in zip(batch, said, named, strict=True):
        found = [e.judged_target[n] if n < len(e.judged_target) else math.nan, *(e.judged.get(i, math.nan) for i in row[1:])]
        scores.append(found + [math.nan] * (width - len(row)))
    return Plan(
        shown,
        [place[e.target] for e in batch],
        [place[e.query] for e in batch],
        [e.instructions[n] for e, n in zip(batch, said, strict=True)],
        [max(1, counts[n]) for n in range(len(shown))],
        columns,
        scores,
    )


def plans(datasets: Sequence[tuple[Sequence[Example], float]], config: TrainConfig, rng: random.Random) -> Iterator[Plan]:
    """The steps of the phase that trains both towers, without end."""
    for batch in mixed_batches(datasets, config.batch_triplets, rng):
        negatives = [rng.sample(e.negatives, min(config.negatives, len(e.negatives))) for e in batch]
        shown = list(dict.fromkeys([*(e.target for e in batch), *(e.query for e in batch), *(i for n in negatives for i in n)]))
        said = [rng.choice(range(len(e.instructions))) for e in batch]
        yield plan_of(batch, negatives, said, shown, {picture: n for n, picture in enumerate(shown)})


def locked_plans(examples: Sequence[Example], pool: Sequence[str], config: TrainConfig, rng: random.Random) -> Iterator[Plan]:
    """The steps of the phase with the picture tower locked, without end; `shown` are rows of the pool."""
    place = {picture: n for n, picture in enumerate(pool)}
    waiting: list[Example] = []
    while True:
        while len(waiting) < config.locked_batch_triplets:
            waiting += rng.sample(examples, len(examples))
        batch, waiting = waiting[: config.locked_batch_triplets], waiting[config.locked_batch_triplets :]
        own = list(dict.fromkeys(place[i] for e in batch for i in (e.target, e.query)))
        if len(pool) <= config.locked_candidates:
            shown = list(range(len(pool)))
        else:
            shown = list(dict.fromkeys([*own, *rng.sample(range(len(pool)), config.locked_candidates)]))
        column = {pool[row]: n for n, row in enumerate(shown)}
        said = [rng.choice(range(len(e.instructions))) for e in batch]
        negatives = [[i for i in e.negatives if i in column] for e in batch]
        yield plan_of(batch, negatives, said, shown, column)


def rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear up to `peak` over `warmup` steps, then linear down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def contrast_of(config: TrainConfig, model: Any, plan: Plan, device: torch.device, *, is_joint: bool = False) -> Callable[[torch.Tensor, torch.Tensor], Loss]:
    """The loss of a plan: (c, d) raw pictures, (b, d) raw texts, or raw queries where picture and text are encoded together -> parts."""
    import torch
    import torch.nn.functional as F

    from tasks.train.loss import Judged, info_nce

    positive, query = (torch.tensor(x, device=device) for x in (plan.positive, plan.query))

    def contrast(images: torch.Tensor, texts: torch.Tensor) -> Loss:
        judged = None
        if config.judge_weight:
            scores = torch.tensor(plan.scores, device=device)
            judged = Judged(torch.tensor(plan.columns, device=device), scores, config.judge_temperature, config.judge_weight)
        return info_nce(
            F.normalize(texts if is_joint else images[query] + texts, dim=-1),
            F.normalize(images, dim=-1),
            picture_ids=torch.arange(len(images), device=device),
            positive=positive,
            query_picture=query,
            temperature=(-model.logit_scale.clamp(max=math.log(100))).exp() if config.learn_temperature else config.temperature,
            mask_margin=config.mask_margin,
            copies=torch.tensor(plan.copies, device=device) if config.count_copies else None,
            judged=judged,
        )

    return contrast


def optimizer_of(model: Any, config: TrainConfig, peak: float) -> torch.optim.Optimizer:
    """AdamW over the model; a learnt temperature is a group of its own, without weight decay.

    Raises:
        ConfigError: a learnt temperature is asked for and the model has none.
    """
    import torch

    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if config.learn_temperature:
        if not isinstance(getattr(model, "logit_scale", None), torch.nn.Parameter):
            raise ConfigError(f"'train.learn_temperature' is on, but a {type(model).__name__} has no logit_scale; switch it off")
        groups = [{"params": [p for p in model.parameters() if p is not model.logit_scale]}, {"params": [model.logit_scale], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)


def figures_of(parts: Loss, plan: Plan, config: TrainConfig, model: Any) -> dict[str, float]:
    """What a step says of itself; an option's figure only where the option is on."""
    out = {"loss": float(parts.total.detach()), "accuracy": float(parts.accuracy), "query_margin": float(parts.query_margin)}
    out["pictures"] = float(len(plan.shown))
    if config.mask_margin is not None:
        out["masked"] = float(parts.masked)
    if config.judge_weight:
        out["divergence"] = float(parts.divergence)
    if config.learn_temperature:
        out["temperature"] = max(math.exp(-float(model.logit_scale.detach())), 0.01)
    return out


def adapt(retriever: AnyRetriever, config: TrainConfig, seed: int) -> None:
    """Make the retriever ready for the recipe: put the adapters in.

    Raises:
        ConfigError: the recipe does not suit the model's type.
    """
    if retriever.is_joint and config.locked_steps:
        raise ConfigError(
            f"'train.locked_steps' is {config.locked_steps}: model '{config.base_model}' reads picture and text together, no tower can be locked; set it to 0"
        )
    if config.lora is None:
        return
    from tasks.models.retrievers.mllm import MllmRetriever

    if not isinstance(retriever, MllmRetriever):
        raise ConfigError(f"'train.lora' is set, but '{config.base_model}' is a CLIP, which is trained as a whole; leave it empty")
    if config.shard_weights:
        raise ConfigError("'train.lora' and 'train.shard_weights' do not go together: adapters are not merged into shards; switch one of them off")
    retriever.adapt(**config.lora.model_dump(), seed=seed)


def fit(
    retriever: AnyRetriever,
    examples: Sequence[Example],
    pixels: Callable[[list[str]], Any],
    config: TrainConfig,
    seed: int,
    *,
    more: Sequence[tuple[Sequence[Example], float]] = (),
    course: Course | None = None,
    machine: Machine | None = None,
) -> list[dict[str, float]]:
    """Train in place.

    Args:
        retriever: its model is changed.
        examples: at least one.
        pixels: picture ids -> (n, 3, height, width), or a list of pictures of an MLLM.
        config: steps, batch, rates.
        seed: of the order, the instructions and the negatives.
        more: further datasets, examples and weight of each.
        course: checkpoint and metrics; a bare curve where None.
        machine: of the retriever and the config; a new one where None.
    Returns:
        The curve: per `LOGGED_STEPS` steps their mean loss, accuracy, query_margin and number of pictures.
    Raises:
        DataError: the loss is not finite, or there is no example.
        ConfigError: a learnt temperature without logit_scale.
    """
    import torch

    from tasks.train.accelerator import Machine
    from tasks.train.run_log import Course

    torch.manual_seed(seed)
    model = retriever.model
    if config.learn_temperature and hasattr(model, "logit_scale"):
        model.logit_scale.data.fill_(-math.log(config.temperature))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    course = course or Course(config.locked_steps + config.steps)
    machine = machine or Machine(retriever, config)
    if config.locked_steps and not course.is_past("locked", PHASES):
        fit_locked(retriever, examples, pixels, config, seed, course=course, machine=machine)
    optimizer = machine.prepare(optimizer_of(model, config, config.learning_rate))
    machine.towers.train()
    done = course.restore("both", machine)
    steps = islice(plans([(examples, config.version_weight), *more], config, random.Random(seed)), done, config.steps)
    for step, (plan, shown) in enumerate(ahead(steps, pixels, config.decode_workers), done):
        rate = rate_at(step, steps=config.steps, warmup=config.warmup_steps, peak=config.learning_rate)
        number = config.locked_steps + step + 1
        parts = take_step(machine, optimizer, plan, shown, config, rate=rate, step=number)
        course.note(number, figures_of(parts, plan, config, model), last=step + 1 == config.steps)
        course.keep(number, "both", step + 1, machine)
    model.eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    return course.curve


def take_step(machine: Machine, optimizer: Any, plan: Plan, shown: torch.Tensor, config: TrainConfig, *, rate: float, step: int) -> Loss:
    """One step of both towers: every distinct picture of the plan is encoded once, and every text.

    Args:
        machine: its towers are changed.
        optimizer: as `Machine.prepare` gave it.
        plan: of the step.
        shown: (c, 3, height, width) pixels of the plan's pictures.
        config: cache_chunk and what the loss needs.
        rate: learning rate.
        step: from 1, for the error.
    Raises:
        DataError: the loss is not finite; nothing was changed.
    """
    from tasks.train.grad_cache import descend, encoded

    device, shards = machine.device, machine.is_sharded
    with machine.autocast():
        images = encoded(partial(picture_rows, machine.towers, shown), len(plan.shown), config.cache_chunk, device, is_sharded=shards)
        rows = partial(query_rows, machine.towers, shown, plan) if machine.retriever.is_joint else partial(text_rows, machine.towers, plan.texts)
        texts = encoded(rows, len(plan.texts), config.cache_chunk, device, is_sharded=shards)
    contrast = contrast_of(config, machine.retriever.model, plan, device, is_joint=machine.retriever.is_joint)
    return descend(optimizer, contrast, images, texts, rate=rate, step=step, machine=machine)


def fit_locked(
    retriever: AnyRetriever,
    examples: Sequence[Example],
    pixels: Callable[[list[str]], torch.Tensor],
    config: TrainConfig,
    seed: int,
    *,
    course: Course | None = None,
    machine: Machine | None = None,
) -> list[dict[str, float]]:
    """Train the text tower in place; arguments, curve and errors as of `fit`."""
    import torch

    from tasks.train.accelerator import Machine
    from tasks.train.grad_cache import descend, encoded
    from tasks.train.run_log import Course

    model = retriever.model
    course = course or Course(config.locked_steps)
    machine = machine or Machine(retriever, config)
    optimizer = machine.prepare(optimizer_of(model, config, config.locked_learning_rate))
    towers, device, shards = machine.towers.eval(), machine.device, machine.is_sharded
    pool = list(dict.fromkeys(i for e in examples for i in (e.query, e.target, *e.negatives)))
    with torch.no_grad(), machine.autocast():
        raw = torch.cat([towers(pixels=pixels(pool[n : n + 128])) for n in range(0, len(pool), 128)])
    towers.train()
    done = course.restore("locked", machine)
    steps = islice(locked_plans(examples, pool, config, random.Random(f"locked:{seed}")), done, config.locked_steps)
    for step, plan in enumerate(steps, done):
        with machine.autocast():
            texts = encoded(partial(text_rows, towers, plan.texts), len(plan.texts), config.cache_chunk, device, is_sharded=shards)
        rate = rate_at(step, steps=config.locked_steps, warmup=config.warmup_steps, peak=config.locked_learning_rate)
        contrast = contrast_of(config, model, plan, device)
        parts = descend(optimizer, contrast, (raw[plan.shown], None), texts, rate=rate, step=step + 1, machine=machine)
        course.note(step + 1, figures_of(parts, plan, config, model), last=step + 1 == config.locked_steps)
        course.keep(step + 1, "locked", step + 1, machine)
    return course.curve


def picture_rows(towers: Callable[..., torch.Tensor], pixels: Any, at: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the pictures at these positions of the batch."""
    return towers(pixels=part_of(pixels, at))


def text_rows(towers: Callable[..., torch.Tensor], texts: Sequence[str], at: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the texts at these positions of the batch."""
    return towers(texts=[texts[n] for n in at])


def query_rows(towers: Callable[..., torch.Tensor], pixels: Any, plan: Plan, at: Sequence[int]) -> torch.Tensor:
    """(n, d) float32 raw features of the queries at these positions of the batch, picture and text encoded together."""
    return towers(pixels=[pixels[plan.query[n]] for n in at], texts=[plan.texts[n] for n in at])


def part_of(rows: Any, at: Sequence[int]) -> Any:
    """Rows at the positions; the very tensor where that is all of them."""
    if isinstance(rows, list):
        return [rows[n] for n in at]
    return rows if len(at) == len(rows) else rows[list(at)]


def check_revision(wanted: str | None, found: str, model: str) -> None:
    """The base is the pinned one.

    Args:
        wanted: train.revision; a branch or tag says nothing that can be checked here.
        found: of the loaded model: a commit, or the first 12 hex digits of a folder's weights.
    Raises:
        ConfigError: another one.
    """
    if wanted is None or not set(wanted) <= set("0123456789abcdef") or len(wanted) < 7:
        return
    if not (wanted.startswith(found) or found.startswith(wanted)):
        raise ConfigError(f"train: base model '{model}' has revision {found}, 'train.revision' pins {wanted}; bring the right weights, or change the pin")


def check_pictures(examples: Sequence[Example], places: Mapping[str, tuple[str, int]], sizes: Mapping[str, int]) -> None:
    """Every picture that training will ask for is there: said in the first second, not in the last hour.

    Args:
        examples: of the version.
        places: picture id -> shard and the byte behind its last.
        sizes: shard -> bytes on disk; without those that are not there.
    Raises:
        DataError: a picture without a row, or whose shard is missing or too short.
    """
    wanted = sorted({i for e in examples for i in (e.query, e.target, *e.negatives)})
    missing = [i for i in wanted if i not in places]
    if missing:
        raise DataError(f"train: {len(missing)} pictures of the triplets are not in the images table, the first is {missing[0]}; run `dvc pull`")
    missing = [i for i in wanted if places[i][1] > sizes.get(places[i][0], 0)]
    if missing:
        shard = places[missing[0]][0]
        found = f"has {sizes[shard]} bytes" if shard in sizes else "is missing"
        raise DataError(
            f"train: {len(missing)} pictures are not in their shards, the first is {missing[0]}: data/images/{shard} {found}; run `dvc pull --force`"
        )


def launch(processes: int, root: Path) -> None:
    """Run this stage in several processes by torchrun's launcher, and wait for them.

    Raises:
        DataError, ConfigError, TransientError: what the first of them to fail said by its exit code.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="train", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    try:
        elastic_launch(config, sys.executable)("-m", "tasks", "train", "--root", str(root))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        kind = {e.exit_code: e for e in (DataError, ConfigError)}.get(failure.exitcode, TransientError)
        raise kind(f"train: process {rank} of {processes} ended with exit code {failure.exitcode}; its message stands above") from error


def identity_of(config: TrainConfig, seed: int, base_revision: str, datasets: Sequence[tuple[Sequence[Example], float]], threads: int) -> str:
    """Of a training: equal where the weights of every step are equal."""
    digest = hashlib.sha256(json.dumps([config.model_dump(mode="json", exclude=HARMLESS), seed, base_revision, threads]).encode())
    for examples, weight in datasets:
        digest.update(repr((weight, examples)).encode())
    return digest.hexdigest()


def places_of(store: Store) -> tuple[dict[str, tuple[str, int]], dict[str, int]]:
    """Picture id -> shard and the byte behind its last; shard -> bytes on disk."""
    rows = store.read_table("images", ["image_id", "shard", "offset_bytes", "size_bytes"]).to_pylist()
    files = {shard: store.folder("data", "images", shard) for shard in {r["shard"] for r in rows}}
    return {r["image_id"]: (r["shard"], r["offset_bytes"] + r["size_bytes"]) for r in rows}, {k: f.stat().st_size for k, f in files.items() if f.is_file()}


def run(params: Params, store: Store) -> StageReport:
    """Train models/candidate on all triplets but the held-out ones.

    Raises:
        DataError: no triplet to train on, a picture that is missing, a loss that is not finite.
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
    held_out = held_out_pictures([(t["query_image_id"], t["target_image_id"]) for t in triplets], config.held_out_share)
    examples = training_examples(triplets, held_out)
    if not examples:
        raise DataError(f"train: no triplet to train on among {len(triplets)}; run the dataset's stages first, or lower train.held_out_share")
    check_pictures(examples, *places_of(store))
    more, files, dropped = [], dict[str, Path](), Counter({"held_out": len(triplets) - len(examples)})
    for dataset in config.datasets:
        found, pictures, left_out = read_dataset(dataset)
        more.append((found, dataset.weight))
        files |= pictures
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
        figures={"loss": curve[-1]["loss"], "accuracy": curve[-1]["accuracy"], "query_margin": curve[-1]["query_margin"], "triplets": float(len(examples))},
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
            "held_out_pictures": len(held_out),
            "datasets": {d.name: len(found) for d, (found, _) in zip(config.datasets, more, strict=True)},
            "curve": curve,
        }
        store.write_bytes(store.folder("reports", "training.json"), (json.dumps(training, indent=1) + "\n").encode())
    course.close()
    part(machine)  # nobody leaves before the model is in place
    return report
