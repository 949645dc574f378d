"""Encode galleries and queries, and rank the gallery for each query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction, Protocol, Query, Task
from tasks.models.retrievers.clip import Retriever

if TYPE_CHECKING:
    from tasks.models.retrievers.load import AnyRetriever


HALVES = ("composed", "image_only", "text_only")
BLOCK_QUERIES = 256


@dataclass
class Answers:
    """What one model answers to a benchmark.

    Attributes:
        predicted: half -> per task its (query, prediction) pairs.
        wordings: per task, for each query with several wordings, the prediction of each.
    """

    predicted: dict[str, list[list[tuple[Query, Prediction]]]] = field(default_factory=dict)
    wordings: list[list[tuple[Query, list[Prediction]]]] = field(default_factory=list)


def image_features(retriever: Retriever, benchmark: Benchmark, batch: int) -> dict[str, np.ndarray]:
    """Raw features of every image by a CLIP, each encoded once: key -> (d,). Studies with a locked image tower hand
    them to `measure`.
    """
    keys = benchmark.images()
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(keys), batch):
        part = keys[start : start + batch]
        found.update(zip(part, retriever.raw_images([benchmark.read(key) for key in part]), strict=True))
    return found


def ranked(
    protocol: Protocol, task: Task, queries: Sequence[Query], rows: np.ndarray, gallery: np.ndarray
) -> Iterator[Prediction]:
    """The protocol's prediction of each query.

    Args:
        protocol: ranks.
        task: whose gallery it is.
        queries: n queries of it.
        rows: (n, d) their unit vectors; a row of zeros is a query without that half.
        gallery: (m, d) unit vectors.
    """
    for start in range(0, len(queries), BLOCK_QUERIES):
        similarity = rows[start : start + BLOCK_QUERIES] @ gallery.T  # (block, m)
        for query, row in zip(queries[start : start + BLOCK_QUERIES], similarity, strict=True):
            yield protocol.predict(task, query, row)


def answer(
    retriever: AnyRetriever, benchmark: Benchmark, batch: int, images: Mapping[str, np.ndarray] | None = None
) -> Answers:
    """Rank every query of a benchmark: composed, by its image alone, by its text alone, and composed in its other
    wordings.

    Args:
        retriever: the model; how image and text become one vector is its own affair.
        benchmark: queries and galleries.
        batch: images, texts or both together in one pass of the model, a count.
        images: raw features, where they are known: studies with a locked image tower encode it once.
    """
    protocol = PROTOCOLS[benchmark.protocol]
    embedder = retriever.embedder(benchmark.read, batch, images)
    said = [w for t in benchmark.tasks for q in t.queries for w in (q.text, *q.wordings)]
    embedder.prepare(benchmark.images(), [*said, *(i.text for i in benchmark.items.values())])
    out = Answers({half: [] for half in HALVES})
    for task in benchmark.tasks:
        gallery = embedder.rows([(i.image, i.text) for i in map(benchmark.item, task.gallery)], "candidate")
        halves = {
            "composed": [(q.reference, q.text) for q in task.queries],
            "image_only": [(q.reference, "") for q in task.queries],
        }
        halves["text_only"] = [(None, q.text) for q in task.queries]
        for half, contents in halves.items():
            predicted = ranked(protocol, task, task.queries, embedder.rows(contents, "query"), gallery)
            out.predicted[half].append(list(zip(task.queries, predicted, strict=True)))
        several = [q for q in task.queries if q.wordings]
        asked = [(q, w) for q in several for w in q.wordings]
        if asked:
            rows = embedder.rows([(q.reference, w) for q, w in asked], "query")
            predictions = ranked(protocol, task, [q for q, _ in asked], rows, gallery)
            out.wordings.append([(q, [next(predictions) for _ in q.wordings]) for q in several])
    return out
