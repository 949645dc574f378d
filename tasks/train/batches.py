"""Training examples, and the batches that are made from them.

A batch is put together from neighbourhoods: triplets that share images come in the same batch, so that a step encodes
few distinct images, and those are each other's hard negatives (batch mining, as in B3). The order of batches,
instructions and negatives follows from the seed alone.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tasks.config import TrainConfig
from tasks.errors import DataError
from tasks.store.id_groups import connected_ids

NEIGHBOURHOOD_TRIPLETS = 8  # most triplets of one neighbourhood that come together in a batch


@dataclass(frozen=True)
class Example:
    """A triplet to train on.

    Attributes:
        query: image id.
        target: image id.
        negatives: ids of the mined negatives, without the query image.
        instructions: texts; one is drawn per step.
        target_scores: the judge's P(yes) of the target, one per instruction; empty where nothing was judged.
        image_scores: image id -> the judge's highest P(yes), of the query image and the negatives.
    """

    query: str
    target: str
    negatives: tuple[str, ...]
    instructions: tuple[str, ...]
    target_scores: tuple[float, ...] = ()
    image_scores: Mapping[str, float] = field(default_factory=dict)


class WeightedDataset(NamedTuple):
    """Examples of one dataset, and the share of the batches that come from it, relative to the other weights."""

    examples: Sequence[Example]
    weight: float


@dataclass(frozen=True)
class BatchPlan:
    """One step: which images and texts are encoded, and which image is whose target.

    Attributes:
        images: (c) distinct images; their ids, or their rows in the locked phase.
        positive: (b) position of each query's target.
        query_image: (b) position of each query's own image.
        texts: (b) one instruction each.
        copies: (c) how often the batch names each image.
        own_candidates: (b, k) positions of each query's target, own image and mined negatives.
        own_scores: (b, k) the judge's P(yes) of those; NaN where there is none.
    """

    images: list[Any]
    positive: list[int]
    query_image: list[int]
    texts: list[str]
    copies: list[int]
    own_candidates: list[list[int]]
    own_scores: list[list[float]]


def training_examples(triplets: Sequence[Mapping[str, Any]], held_out: set[str]) -> list[Example]:
    """Triplets without a held-out image as query or target; held-out negatives are left out.

    Args:
        triplets: rows of the table.
        held_out: image ids that are never trained on.
    """
    examples = []
    for t in triplets:
        query, target = t["query_image_id"], t["target_image_id"]
        if query in held_out or target in held_out:
            continue
        negatives = tuple(i for i in t["negative_image_ids"] if i not in held_out and i not in (query, target))
        scores = dict(zip(t["negative_image_ids"], t.get("judge_negative") or (), strict=False))
        image_scores = {i: scores[i] for i in (query, *negatives) if i in scores}
        target_scores = tuple(t.get("judge_target") or ())
        examples.append(Example(query, target, negatives, tuple(t["instructions"]), target_scores, image_scores))
    return examples


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
        raise DataError(
            "train: no triplet to make a batch of; run the dataset's stages first, or look into train.datasets"
        )
    component = connected_ids([(e.query, e.target) for e in examples])
    waiting: list[Example] = []
    while True:
        neighbourhoods: dict[str, list[Example]] = {}
        for e in examples:
            neighbourhoods.setdefault(component[e.query], []).append(e)
        groups = []
        for members in neighbourhoods.values():
            rng.shuffle(members)
            starts = range(0, len(members), NEIGHBOURHOOD_TRIPLETS)
            groups += [members[i : i + NEIGHBOURHOOD_TRIPLETS] for i in starts]
        rng.shuffle(groups)
        for group in groups:
            waiting += group
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]


def mixed_batches(datasets: Sequence[WeightedDataset], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end, each from one dataset, drawn by weight.

    Datasets are not mixed within a batch: images of different datasets are too easy to tell apart.

    Args:
        datasets: at least one; a single one takes no random draw.
        size: examples of a batch, a count; fewer where a dataset has fewer.
        rng: of the draws and the orders.
    """
    streams = [batches(examples, min(size, len(examples)), rng) for examples, _ in datasets]
    weights = [weight for _, weight in datasets]
    while True:
        yield next(rng.choices(streams, weights)[0] if len(streams) > 1 else streams[0])


def plan_batch(
    batch: Sequence[Example],
    negatives: Sequence[Sequence[str]],
    instruction_numbers: Sequence[int],
    images: list[Any],
    position: Mapping[str, int],
) -> BatchPlan:
    """Build a step's plan from what was drawn.

    Args:
        batch: its examples.
        negatives: the mined negatives drawn for each.
        instruction_numbers: the instruction drawn for each.
        images: distinct images to encode.
        position: image id -> position in `images`.
    """
    own_images = [(e.target, e.query, *n) for e, n in zip(batch, negatives, strict=True)]
    counts = Counter(position[i] for row in own_images for i in row)
    width = max(len(row) for row in own_images)
    own_candidates = [[position[i] for i in row] + [position[row[0]]] * (width - len(row)) for row in own_images]
    own_scores = []
    for e, n, row in zip(batch, instruction_numbers, own_images, strict=True):
        target_score = e.target_scores[n] if n < len(e.target_scores) else math.nan
        scores = [target_score, *(e.image_scores.get(i, math.nan) for i in row[1:])]
        own_scores.append(scores + [math.nan] * (width - len(row)))
    return BatchPlan(
        images=images,
        positive=[position[e.target] for e in batch],
        query_image=[position[e.query] for e in batch],
        texts=[e.instructions[n] for e, n in zip(batch, instruction_numbers, strict=True)],
        copies=[max(1, counts[n]) for n in range(len(images))],
        own_candidates=own_candidates,
        own_scores=own_scores,
    )


def plan_steps(datasets: Sequence[WeightedDataset], config: TrainConfig, rng: random.Random) -> Iterator[BatchPlan]:
    """The steps of the phase that trains both towers, without end."""
    for batch in mixed_batches(datasets, config.batch_triplets, rng):
        negatives = [rng.sample(e.negatives, min(config.negatives, len(e.negatives))) for e in batch]
        targets, queries = (e.target for e in batch), (e.query for e in batch)
        images = list(dict.fromkeys([*targets, *queries, *(i for n in negatives for i in n)]))
        instruction_numbers = [rng.choice(range(len(e.instructions))) for e in batch]
        yield plan_batch(batch, negatives, instruction_numbers, images, {image: n for n, image in enumerate(images)})


def plan_locked_steps(
    examples: Sequence[Example], pool: Sequence[str], config: TrainConfig, rng: random.Random
) -> Iterator[BatchPlan]:
    """The steps of the locked phase (image tower frozen), without end; `images` are rows of the pool.

    Args:
        examples: at least one.
        pool: ids of all images; each can be a candidate for every query, because its features are known.
        config: locked_batch_triplets and locked_candidates.
        rng: of the draws.
    """
    row = {image: n for n, image in enumerate(pool)}
    waiting: list[Example] = []
    while True:
        while len(waiting) < config.locked_batch_triplets:
            waiting += rng.sample(examples, len(examples))
        batch, waiting = waiting[: config.locked_batch_triplets], waiting[config.locked_batch_triplets :]
        own_rows = list(dict.fromkeys(row[i] for e in batch for i in (e.target, e.query)))
        if len(pool) <= config.locked_candidates:
            rows = list(range(len(pool)))
        else:
            rows = list(dict.fromkeys([*own_rows, *rng.sample(range(len(pool)), config.locked_candidates)]))
        position = {pool[r]: n for n, r in enumerate(rows)}
        instruction_numbers = [rng.choice(range(len(e.instructions))) for e in batch]
        negatives = [[i for i in e.negatives if i in position] for e in batch]
        yield plan_batch(batch, negatives, instruction_numbers, rows, position)
