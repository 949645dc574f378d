"""Fine-tune BGE-VL (CLIP type) on the version's judged triplets, by InfoNCE.

Reads data/triplets and data/images; writes models/candidate (put in place as a whole) and reports/training.json (the
loss curve, no clocks). Each step one instruction of a triplet is drawn; every distinct picture of the batch is encoded
once and stands against every query: targets of the others, the query pictures, mined negatives. Both towers are trained,
with AdamW, linear warm-up and linear decay. Source: MegaPairs, arXiv:2412.14475, appendix B.

A batch is put together from neighbourhoods: triplets that share pictures come in the same batch, so that a step encodes
few pictures, and those are each other's hard negatives (batch mining as in B3). Which pictures are held out: tasks/splits.py.

With `locked_steps` the text tower goes first: the picture tower is locked, so every picture is encoded once and for all and
(almost) all of them can stand against each query at the price of a matrix product. Source: LiT, arXiv:2111.07991.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import Params, TrainConfig
from tasks.errors import DataError
from tasks.models.retriever import Retriever
from tasks.records import StageReport
from tasks.splits import components, held_out_pictures
from tasks.store import Store

if TYPE_CHECKING:
    import torch

CACHE_BYTES = 1_000_000_000  # pixels of all pictures are kept in memory up to this size
LOGGED_STEPS = 10  # a point of the curve is the mean of so many steps
GROUP_TRIPLETS = 8  # triplets of one neighbourhood that come together in a batch, at most
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A triplet to train on; pictures by id, mined negatives without the query picture."""

    query: str
    target: str
    negatives: tuple[str, ...]
    instructions: tuple[str, ...]


def training_examples(triplets: Sequence[Mapping[str, Any]], held_out: set[str]) -> list[Example]:
    """Triplets with no held-out picture as query or target; held-out pictures among their negatives are left out."""
    return [
        Example(
            t["query_image_id"],
            t["target_image_id"],
            tuple(i for i in t["negative_image_ids"] if i not in held_out and i not in (t["query_image_id"], t["target_image_id"])),
            tuple(t["instructions"]),
        )
        for t in triplets
        if t["query_image_id"] not in held_out and t["target_image_id"] not in held_out
    ]


def batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end: each pass over the examples in a new order, neighbours kept together.

    Args:
        examples: at least one.
        size: examples of a batch, a count; a pass's last few join the next pass.
        rng: of the order.
    """
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


def rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of a step (from 0): linear up to `peak` over `warmup` steps, then linear down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def fit(
    retriever: Retriever, examples: Sequence[Example], pixels: Callable[[list[str]], torch.Tensor], config: TrainConfig, seed: int
) -> list[dict[str, float]]:
    """Train in place.

    Args:
        retriever: its model is changed.
        examples: at least one.
        pixels: picture ids -> (n, 3, height, width).
        config: steps, batch, rates.
        seed: of the order, the instructions and the negatives.
    Returns:
        The curve: per `LOGGED_STEPS` steps their mean loss, accuracy, query_margin and number of pictures.
    Raises:
        DataError: the loss is not finite.
    """
    import torch

    torch.manual_seed(seed)
    rng = random.Random(seed)
    curve = fit_locked(retriever, examples, pixels, config, seed) if config.locked_steps else []
    model = retriever.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    stream = batches(examples, min(config.batch_triplets, len(examples)), rng)
    recent: list[tuple[float, float, float, float]] = []
    for step in range(config.steps):
        batch = next(stream)
        negatives = [rng.sample(e.negatives, min(config.negatives, len(e.negatives))) for e in batch]
        shown = list(dict.fromkeys([*(e.target for e in batch), *(e.query for e in batch), *(i for n in negatives for i in n)]))
        place = {picture: n for n, picture in enumerate(shown)}
        positive, query = (torch.tensor([place[i] for i in ids], device=retriever.device) for ids in ([e.target for e in batch], [e.query for e in batch]))
        images = retriever.image_features(pixels(shown))
        texts = retriever.text_features([rng.choice(e.instructions) for e in batch])
        rate = rate_at(step, steps=config.steps, warmup=config.warmup_steps, peak=config.learning_rate)
        recent.append(_descend(optimizer, images[query] + texts, images, positive, query, config.temperature, rate, config.locked_steps + step + 1))
        if (step + 1) % LOGGED_STEPS == 0 or step + 1 == config.steps:
            curve.append(_point(config.locked_steps + step + 1, recent, config))
            recent = []
    model.eval()
    return curve


def fit_locked(
    retriever: Retriever, examples: Sequence[Example], pixels: Callable[[list[str]], torch.Tensor], config: TrainConfig, seed: int
) -> list[dict[str, float]]:
    """Train the text tower in place; arguments, curve and errors as of `fit`."""
    import torch

    rng = random.Random(f"locked:{seed}")
    model = retriever.model.eval()
    pool = list(dict.fromkeys(i for e in examples for i in (e.query, e.target, *e.negatives)))
    with torch.no_grad():
        raw = torch.cat([retriever.image_features(pixels(pool[n : n + 128])) for n in range(0, len(pool), 128)])
    place = {picture: n for n, picture in enumerate(pool)}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.locked_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    curve: list[dict[str, float]] = []
    recent: list[tuple[float, float, float, float]] = []
    waiting: list[Example] = []
    for step in range(config.locked_steps):
        while len(waiting) < config.locked_batch_triplets:
            waiting += rng.sample(examples, len(examples))
        batch, waiting = waiting[: config.locked_batch_triplets], waiting[config.locked_batch_triplets :]
        own = list(dict.fromkeys(place[i] for e in batch for i in (e.target, e.query)))
        shown = (
            range(len(pool)) if len(pool) <= config.locked_candidates else list(dict.fromkeys([*own, *rng.sample(range(len(pool)), config.locked_candidates)]))
        )
        column = {row: n for n, row in enumerate(shown)}
        positive, query = (
            torch.tensor([column[place[i]] for i in ids], device=retriever.device) for ids in ([e.target for e in batch], [e.query for e in batch])
        )
        images = raw[list(shown)]
        texts = retriever.text_features([rng.choice(e.instructions) for e in batch])
        rate = rate_at(step, steps=config.locked_steps, warmup=config.warmup_steps, peak=config.locked_learning_rate)
        recent.append(_descend(optimizer, images[query] + texts, images, positive, query, config.temperature, rate, step + 1))
        if (step + 1) % LOGGED_STEPS == 0 or step + 1 == config.locked_steps:
            curve.append(_point(step + 1, recent, config))
            recent = []
    return curve


def _point(step: int, recent: Sequence[tuple[float, float, float, float]], config: TrainConfig) -> dict[str, float]:
    """A point of the curve; every fifth goes to the log."""
    means = np.mean(recent, axis=0).round(5).tolist()
    if step % (5 * LOGGED_STEPS) == 0:
        log.info("train: step %d of %d, loss %.4f, accuracy %.3f", step, config.locked_steps + config.steps, means[0], means[1])
    return {"step": step, **dict(zip(("loss", "accuracy", "query_margin", "pictures"), means, strict=True))}


def _descend(
    optimizer: torch.optim.Optimizer,
    queries: torch.Tensor,
    images: torch.Tensor,
    positive: torch.Tensor,
    query: torch.Tensor,
    temperature: float,
    rate: float,
    step: int,
) -> tuple[float, float, float, float]:
    """One step of the optimiser on raw rows (b, d) against distinct pictures (c, d).

    Returns:
        Loss, accuracy, query_margin, number of pictures.
    Raises:
        DataError: the loss is not finite.
    """
    import torch
    import torch.nn.functional as F

    from tasks.loss import info_nce

    parts = info_nce(
        F.normalize(queries, dim=-1),
        F.normalize(images, dim=-1),
        picture_ids=torch.arange(len(images), device=images.device),
        positive=positive,
        query_picture=query,
        temperature=temperature,
    )
    loss = float(parts.total.detach())
    if not math.isfinite(loss):
        raise DataError(f"train: the loss is {loss} at step {step}; lower train.learning_rate or raise train.temperature")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    parts.total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return loss, float(parts.accuracy), float(parts.query_margin), float(len(images))


class Pixels:
    """Pictures as the processor makes them; kept in memory while they fit into `CACHE_BYTES`."""

    def __init__(self, store: Store, retriever: Retriever) -> None:
        self.store, self.retriever = store, retriever
        self._kept: dict[str, torch.Tensor] = {}
        self._bytes = 0

    def __call__(self, image_ids: list[str]) -> torch.Tensor:
        """(n, 3, height, width) float32."""
        import torch

        missing = [i for i in image_ids if i not in self._kept]
        fresh: dict[str, torch.Tensor] = {}
        if missing:
            fresh = dict(zip(missing, self.retriever.pixels([self.store.read_image(i) for i in missing]), strict=True))
            size = sum(x.nbytes for x in fresh.values())
            if self._bytes + size <= CACHE_BYTES:
                self._kept |= fresh
                self._bytes += size
        return torch.stack([self._kept[i] if i in self._kept else fresh[i] for i in image_ids])


def run(params: Params, store: Store) -> StageReport:
    """Train models/candidate on all triplets but the held-out ones.

    Raises:
        DataError: no triplet to train on.
    """
    config, seed = params.train, params.open_run.seed
    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    held_out = held_out_pictures([(t["query_image_id"], t["target_image_id"]) for t in triplets], config.held_out_share)
    examples = training_examples(triplets, held_out)
    if not examples:
        raise DataError(f"train: no triplet to train on among {len(triplets)}; run the dataset's stages first, or lower train.held_out_share")
    retriever = Retriever(config.base_model, revision=config.revision, device=config.device, threads=max(2, params.open_run.threads))
    base_revision = retriever.revision
    curve = fit(retriever, examples, Pixels(store, retriever), config, seed)
    retriever.save(store.folder("models", "candidate"))
    training = {
        "base_model": config.base_model,
        "base_revision": base_revision,
        "seed": seed,
        "recipe": config.model_dump(mode="json", exclude={"device"}),
        "triplets": len(examples),
        "held_out_triplets": len(triplets) - len(examples),
        "held_out_pictures": len(held_out),
        "curve": curve,
    }
    store.write_bytes(store.folder("reports", "training.json"), (json.dumps(training, indent=1) + "\n").encode())
    return StageReport(
        "train",
        read=len(triplets),
        written=1,
        dropped={"held_out": len(triplets) - len(examples)},
        new=config.locked_steps + config.steps,
        done=config.locked_steps + config.steps,
        figures={"loss": curve[-1]["loss"], "accuracy": curve[-1]["accuracy"], "query_margin": curve[-1]["query_margin"], "triplets": float(len(examples))},
    )
