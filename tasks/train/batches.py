"""Training examples and the batches made from them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.config import TrainConfig
from tasks.errors import DataError
from tasks.store.id_groups import connected_ids


@dataclass(frozen=True)
class Example:
    """A triplet to train on; images by id, mined negatives without the query image.

    Attributes:
        query: image.
        target: image.
        negatives: images.
        instructions: texts, one is drawn per step.
        judged_target: P(yes) of the target, one per instruction; empty where nobody judged.
        judged: image -> highest P(yes), of the query image and the negatives.
    """

    query: str
    target: str
    negatives: tuple[str, ...]
    instructions: tuple[str, ...]
    judged_target: tuple[float, ...] = ()
    judged: Mapping[str, float] = field(default_factory=dict)


GROUP_TRIPLETS = 8  # triplets of one neighbourhood that come together in a batch, at most


def training_examples(triplets: Sequence[Mapping[str, Any]], held_out: set[str]) -> list[Example]:
    """Triplets with no held-out image as query or target; held-out images among their negatives are left out."""
    out = []
    for t in triplets:
        query, target = t["query_image_id"], t["target_image_id"]
        if query in held_out or target in held_out:
            continue
        negatives = tuple(i for i in t["negative_image_ids"] if i not in held_out and i not in (query, target))
        scores = dict(zip(t["negative_image_ids"], t.get("judge_negative") or (), strict=False))
        judged = {i: scores[i] for i in (query, *negatives) if i in scores}
        out.append(
            Example(query, target, negatives, tuple(t["instructions"]), tuple(t.get("judge_target") or ()), judged)
        )
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
        raise DataError(
            "train: no triplet to make a batch of; run the dataset's stages first, or look into train.datasets"
        )
    of = connected_ids([(e.query, e.target) for e in examples])
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


def mixed_batches(
    datasets: Sequence[tuple[Sequence[Example], float]], size: int, rng: random.Random
) -> Iterator[list[Example]]:
    """Batches without end, each from one dataset, drawn by weight: images of different datasets are told apart too
    easily.

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
    """One step: which images are encoded, with which texts, and what is what.

    Attributes:
        shown: (c) distinct images; their ids, or their rows in the locked phase.
        positive: (b) position of each query's target.
        query: (b) position of each query's own image.
        texts: (b) one instruction each.
        copies: (c) how often the batch names each image.
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


def plan_of(
    batch: Sequence[Example],
    negatives: Sequence[Sequence[str]],
    said: Sequence[int],
    shown: list[Any],
    place: Mapping[str, int],
) -> Plan:
    """Put a step together from what was drawn.

    Args:
        batch: its examples.
        negatives: of each the mined negatives.
        said: of each the instruction's number.
        shown: distinct images.
        place: image id -> position among them.
    """
    named = [(e.target, e.query, *n) for e, n in zip(batch, negatives, strict=True)]
    counts = Counter(place[i] for row in named for i in row)
    width = max(len(row) for row in named)
    columns = [[place[i] for i in row] + [place[row[0]]] * (width - len(row)) for row in named]
    scores = []
    for e, n, row in zip(batch, said, named, strict=True):
        found = [
            e.judged_target[n] if n < len(e.judged_target) else math.nan,
            *(e.judged.get(i, math.nan) for i in row[1:]),
        ]
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


def plans(
    datasets: Sequence[tuple[Sequence[Example], float]], config: TrainConfig, rng: random.Random
) -> Iterator[Plan]:
    """The steps of the phase that trains both towers, without end."""
    for batch in mixed_batches(datasets, config.batch_triplets, rng):
        negatives = [rng.sample(e.negatives, min(config.negatives, len(e.negatives))) for e in batch]
        shown = list(
            dict.fromkeys([*(e.target for e in batch), *(e.query for e in batch), *(i for n in negatives for i in n)])
        )
        said = [rng.choice(range(len(e.instructions))) for e in batch]
        yield plan_of(batch, negatives, said, shown, {image: n for n, image in enumerate(shown)})


def locked_plans(
    examples: Sequence[Example], pool: Sequence[str], config: TrainConfig, rng: random.Random
) -> Iterator[Plan]:
    """The steps of the phase with the image tower locked, without end; `shown` are rows of the pool."""
    place = {image: n for n, image in enumerate(pool)}
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
