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
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from tasks.config import TrainConfig
from tasks.errors import DataError
from tasks.store.id_groups import connected_ids
from tasks.train.spliced import with_spliced

NEIGHBOURHOOD_TRIPLETS = 8  # most triplets of one neighbourhood that come together in a batch


class Candidate(NamedTuple):
    """A candidate with a text: beside its image, or alone.

    Attributes:
        image: image id; None where the candidate is a text alone.
        text: not empty.
    """

    image: str | None
    text: str


CandidateId: TypeAlias = str | Candidate  # an image alone is its id


def image_of(candidate: CandidateId) -> str | None:
    """The id of a candidate's image; None for a text alone."""
    return candidate if isinstance(candidate, str) else candidate.image


@dataclass(frozen=True)
class Example:
    """A triplet to train on.

    Attributes:
        query: image id; None where the query is a text alone.
        target: an image id, or a candidate with a text.
        negatives: the mined negatives, without the query image; each as the target.
        instructions: texts; one is drawn per step.
        target_scores: the judge's P(yes) of the target, one per instruction; empty where nothing was judged.
        image_scores: image id -> the judge's highest P(yes), of the query image and the negatives.
        task: task instruction for an MLLM; empty for none, None for the model's own. One for a whole dataset.
        is_symmetric: the loss also asks for the query of the target. As `task` of a whole dataset.
        is_contrasted: the loss asks for the target at all. As `task`.
        keep_base: weight of what the features have moved from the base model's. As `task`.
    """

    query: str | None
    target: CandidateId
    negatives: tuple[CandidateId, ...]
    instructions: tuple[str, ...]
    target_scores: tuple[float, ...] = ()
    image_scores: Mapping[CandidateId, float] = field(default_factory=dict)
    task: str | None = None
    is_symmetric: bool = False
    is_contrasted: bool = True
    keep_base: float = 0.0

    @property
    def query_candidate(self) -> CandidateId | None:
        """The query image as a candidate of the target's kind, which is always a negative; None where it cannot be one:
        without a query image, or beside candidates that are texts alone.
        """
        if self.query is None or isinstance(self.target, str):
            return self.query
        return None if self.target.image is None else Candidate(self.query, self.target.text)

    @property
    def link(self) -> tuple[str, str]:
        """The two images that tie the example to others; the one that there is, twice; a text where there is none."""
        target = image_of(self.target)
        first = self.query or target or f"text:{self.instructions[0]}"
        return first, target or first


@runtime_checkable
class ExampleStream(Protocol):
    """Examples that are read as they are needed (tasks/train/stream.py)."""

    def __len__(self) -> int:
        """Records, a count."""

    def shuffled(self, rng: random.Random) -> Iterator[Example]:
        """Examples without end, each pass in a new order that follows from `rng`."""


class WeightedDataset(NamedTuple):
    """Examples of one dataset, and the share of the batches that come from it, relative to the other weights.

    `is_locked` says that the locked phase takes batches of it too: every candidate is one image of the version.
    `held_beside` of its captions are held to the base in each step of the other datasets, a count; `held_spliced` is
    the share of those that are spliced from two.
    """

    examples: Sequence[Example] | ExampleStream
    weight: float
    is_locked: bool = False
    held_beside: int = 0
    held_spliced: float = 0.0


@dataclass(frozen=True)
class BatchPlan:
    """One step: which images and texts are encoded, and which image is whose target.

    Where every candidate is an image and every query has one, the candidates are the images, `candidates` is None and
    c = m.

    Attributes:
        images: (m) distinct images; their ids, or their rows in the locked phase.
        positive: (b) position of each query's target among the candidates.
        query_image: (b) position of each query's own image among the images; -1 where it has none.
        texts: (b) one instruction each.
        copies: (c) how often the batch names each candidate.
        own_candidates: (b, k) positions of each query's target, own image and mined negatives among the candidates.
        own_scores: (b, k) the judge's P(yes) of those; NaN where there is none.
        candidates: (c) position of each candidate's image and of its text in `candidate_texts`; -1 where it has none.
        candidate_texts: distinct texts of the candidates.
        query_candidate: (b) position of each query's own image among the candidates; -1 where it is none of them.
        broken: positions of images that could not be read: nothing is learnt from them.
        task: task instruction of the queries for an MLLM; None for the model's own.
        is_symmetric: the loss also asks for the query of each target.
        is_contrasted: the loss asks for the targets at all.
        keep_base: weight of what features have moved from the base model's: those of the held texts, or else of the
            queries and images.
        held_texts: (h) captions of another dataset.
    """

    images: list[Any]
    positive: list[int]
    query_image: list[int]
    texts: list[str]
    copies: list[int]
    own_candidates: list[list[int]]
    own_scores: list[list[float]]
    candidates: list[tuple[int, int]] | None = None
    candidate_texts: list[str] = field(default_factory=list)
    query_candidate: list[int] = field(default_factory=list)
    broken: frozenset[int] = frozenset()
    task: str | None = None
    is_symmetric: bool = False
    is_contrasted: bool = True
    keep_base: float = 0.0
    held_texts: list[str] = field(default_factory=list)

    @property
    def candidate_parts(self) -> list[tuple[int, int]]:
        """(c) position of each candidate's image and text; -1 where it has none."""
        return [(n, -1) for n in range(len(self.images))] if self.candidates is None else self.candidates

    @property
    def broken_candidates(self) -> list[int]:
        """Positions of the candidates whose image could not be read."""
        return [n for n, (image, _) in enumerate(self.candidate_parts) if image in self.broken]

    @property
    def readable_queries(self) -> list[int]:
        """Positions of the queries whose own image and target could be read."""
        parts = self.candidate_parts
        named = zip(self.query_image, self.positive, strict=True)
        return [n for n, (query, target) in enumerate(named) if not {query, parts[target][0]} & self.broken]


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


def batches(examples: Sequence[Example] | ExampleStream, size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end: each pass over the examples in a new order, neighbours kept together.

    Args:
        examples: at least one; a stream comes in its own order.
        size: examples of a batch, a count; a pass's last few join the next pass.
        rng: of the order.
    Raises:
        DataError: no example.
    """
    if not examples:
        raise DataError(
            "train: no triplet to make a batch of; run the dataset's stages first, or look into train.datasets"
        )
    if isinstance(examples, ExampleStream):
        stream = examples.shuffled(rng)
        while True:
            yield list(islice(stream, size))
    component = connected_ids([e.link for e in examples])
    waiting: list[Example] = []
    while True:
        neighbourhoods: dict[str, list[Example]] = {}
        for e in examples:
            neighbourhoods.setdefault(component[e.link[0]], []).append(e)
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
    streams = [batches(d.examples, min(size, len(d.examples)), rng) for d in datasets]
    weights = [d.weight for d in datasets]
    while True:
        yield next(rng.choices(streams, weights)[0] if len(streams) > 1 else streams[0])


def plan_batch(
    batch: Sequence[Example],
    negatives: Sequence[Sequence[CandidateId]],
    instruction_numbers: Sequence[int],
    images: list[Any],
    position: Mapping[CandidateId, int],
) -> BatchPlan:
    """Build a step's plan from what was drawn.

    Args:
        batch: its examples.
        negatives: the mined negatives drawn for each.
        instruction_numbers: the instruction drawn for each.
        images: distinct candidates to encode.
        position: candidate -> position in `images`.
    """
    own_images = []
    for e, drawn in zip(batch, negatives, strict=True):
        own = e.query_candidate
        own_images.append((e.target, *(() if own is None else (own,)), *drawn))
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
        query_image=[-1 if e.query_candidate is None else position[e.query_candidate] for e in batch],
        texts=[e.instructions[n] for e, n in zip(batch, instruction_numbers, strict=True)],
        copies=[max(1, counts[n]) for n in range(len(images))],
        own_candidates=own_candidates,
        own_scores=own_scores,
        task=batch[0].task,
        is_symmetric=batch[0].is_symmetric,
        is_contrasted=batch[0].is_contrasted,
        keep_base=batch[0].keep_base,
    )


def with_texts(plan: BatchPlan, batch: Sequence[Example]) -> BatchPlan:
    """A plan whose `images` are candidates of any kind, taken apart into distinct images and texts.

    Args:
        plan: as `plan_batch` made it.
        batch: its examples.
    """
    named = [image_of(c) for c in plan.images] + [e.query for e in batch]
    images = list(dict.fromkeys(i for i in named if i is not None))
    texts = list(dict.fromkeys(c.text for c in plan.images if isinstance(c, Candidate)))
    image_position: dict[str | None, int] = {None: -1} | {image: n for n, image in enumerate(images)}
    text_position = {text: n for n, text in enumerate(texts)}
    return replace(
        plan,
        images=images,
        query_image=[image_position[e.query] for e in batch],
        query_candidate=plan.query_image,
        candidates=[
            (image_position[image_of(c)], text_position[c.text] if isinstance(c, Candidate) else -1)
            for c in plan.images
        ],
        candidate_texts=texts,
    )


def plan_steps(datasets: Sequence[WeightedDataset], config: TrainConfig, rng: random.Random) -> Iterator[BatchPlan]:
    """The steps of the phase that trains both towers, without end."""
    for batch in mixed_batches(datasets, config.batch_triplets, rng):
        negatives = [rng.sample(e.negatives, min(config.negatives, len(e.negatives))) for e in batch]
        own = (e.query_candidate for e in batch)
        named = [*(e.target for e in batch), *(i for i in own if i is not None), *(i for n in negatives for i in n)]
        candidates = list(dict.fromkeys(named))
        instruction_numbers = [rng.choice(range(len(e.instructions))) for e in batch]
        position = {candidate: n for n, candidate in enumerate(candidates)}
        plan = plan_batch(batch, negatives, instruction_numbers, candidates, position)
        is_plain = all(isinstance(c, str) for c in candidates) and all(e.query is not None for e in batch)
        yield with_held_texts(plan if is_plain else with_texts(plan, batch), datasets, rng)


def with_held_texts(plan: BatchPlan, datasets: Sequence[WeightedDataset], rng: random.Random) -> BatchPlan:
    """The plan with captions of the first dataset that is held beside it; as it is where it holds its own, or none is.

    Args:
        plan: of one of the datasets.
        datasets: all; without `held_beside` nothing is drawn.
        rng: of the draw.
    """
    beside = next((d for d in datasets if d.held_beside), None)
    if beside is None or plan.keep_base:
        return plan
    assert isinstance(beside.examples, Sequence)  # the version's own rows
    drawn = rng.sample(beside.examples, min(beside.held_beside, len(beside.examples)))
    texts = [e.instructions[0] for e in drawn]
    if beside.held_spliced:
        texts = with_spliced(texts, beside.held_spliced, rng)
    return replace(plan, keep_base=drawn[0].keep_base, held_texts=texts)


def locked_batches(datasets: Sequence[WeightedDataset], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end for the locked phase, each from one dataset, drawn by weight; every pass in a new order.

    Args:
        datasets: at least one, none of them a stream; a single one takes no random draw.
        size: examples of a batch, a count.
        rng: of the draws and the orders.
    """
    waiting: list[list[Example]] = [[] for _ in datasets]
    weights = [d.weight for d in datasets]
    while True:
        n = rng.choices(range(len(datasets)), weights)[0] if len(datasets) > 1 else 0
        examples = datasets[n].examples
        assert isinstance(examples, Sequence)
        while len(waiting[n]) < size:
            waiting[n] += rng.sample(examples, len(examples))
        yield waiting[n][:size]
        waiting[n] = waiting[n][size:]


def plan_locked_steps(
    examples: Sequence[Example],
    pool: Sequence[str],
    config: TrainConfig,
    rng: random.Random,
    further: Sequence[WeightedDataset] = (),
) -> Iterator[BatchPlan]:
    """The steps of the locked phase (image tower frozen), without end; `images` are rows of the pool.

    Args:
        examples: at least one.
        pool: ids of all images; each can be a candidate for every query, because its features are known.
        config: locked_batch_triplets and locked_candidates.
        rng: of the draws.
        further: datasets whose candidates are images of the pool too.
    """
    row: dict[Any, int] = {image: n for n, image in enumerate(pool)}
    datasets = [WeightedDataset(examples, config.version_weight), *further]
    for batch in locked_batches(datasets, config.locked_batch_triplets, rng):
        own_rows = list(dict.fromkeys(row[i] for e in batch for i in (e.target, e.query) if i is not None))
        if len(pool) <= config.locked_candidates:
            rows = list(range(len(pool)))
        else:
            rows = list(dict.fromkeys([*own_rows, *rng.sample(range(len(pool)), config.locked_candidates)]))
        position: dict[Any, int] = {pool[r]: n for n, r in enumerate(rows)}
        instruction_numbers = [rng.choice(range(len(e.instructions))) for e in batch]
        negatives = [[i for i in e.negatives if i in position] for e in batch]
        yield with_held_texts(plan_batch(batch, negatives, instruction_numbers, rows, position), datasets, rng)
