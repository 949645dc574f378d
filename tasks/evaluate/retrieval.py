"""Encode a benchmark's gallery and queries with a retriever, and rank the gallery for each query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction, Protocol, Query, Task
from tasks.knn.unit_rows import unit_rows

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Content, ContentEncoder, Retriever
    from tasks.models.retrievers.clip import ClipRetriever

QUERY_MODES = ("composed", "image_only", "text_only")
QUERIES_PER_BLOCK = 256
SIMILARITIES_PER_BLOCK = 32_000_000  # 128 MB, whatever the size of the gallery


@dataclass
class RetrievalResult:
    """What one model retrieves on a benchmark.

    Attributes:
        predictions: query mode -> per task its (query, prediction) pairs.
        wordings: per task, for each query with several wordings, the prediction of each wording.
    """

    predictions: dict[str, list[list[tuple[Query, Prediction]]]] = field(default_factory=dict)
    wordings: list[list[tuple[Query, list[Prediction]]]] = field(default_factory=list)


def encode_images(retriever: ClipRetriever, benchmark: Benchmark, batch_size: int) -> dict[str, np.ndarray]:
    """Raw CLIP features of every image of a benchmark, each encoded once: key -> (d,).

    Studies with a locked image tower pass them to `retrieve` for each of their models.
    """
    keys = benchmark.image_keys()
    features: dict[str, np.ndarray] = {}
    for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        rows = retriever.raw_image_features([benchmark.read_image(key) for key in batch])
        features.update(zip(batch, rows, strict=True))
    return features


def with_more_references(
    encoder: ContentEncoder, queries: Sequence[Query], mode: str, vectors: np.ndarray
) -> np.ndarray:
    """The queries' vectors; of a query with several images the mean over them, scaled to unit length.

    Args:
        encoder: of the benchmark's contents.
        queries: n.
        mode: one of QUERY_MODES.
        vectors: (n, d) of each query's first image.
    """
    several = [n for n, query in enumerate(queries) if query.more_references]
    if not several or mode == "text_only":
        return vectors
    pairs = [(n, key) for n in several for key in queries[n].more_references]
    texts = [queries[n].text if mode == "composed" else "" for n, _ in pairs]
    more = encoder.encode([(key, text) for (_, key), text in zip(pairs, texts, strict=True)], "query")
    sums = vectors.copy()
    np.add.at(sums, [n for n, _ in pairs], more)
    vectors = vectors.copy()
    vectors[several] = unit_rows(sums[several])
    return vectors


def predict_queries(
    protocol: Protocol, task: Task, queries: Sequence[Query], vectors: np.ndarray, gallery: np.ndarray
) -> Iterator[Prediction]:
    """The protocol's prediction for each query.

    Args:
        protocol: ranks the gallery.
        task: the task that the gallery belongs to.
        queries: n queries of it.
        vectors: (n, d) unit rows of the queries; a row of zeros where a query has nothing in this mode.
        gallery: (m, d) unit rows.
    """
    size = max(1, min(QUERIES_PER_BLOCK, SIMILARITIES_PER_BLOCK // max(1, len(gallery))))
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        similarity = vectors[block] @ gallery.T  # (block, m)
        for query, row in zip(queries[block], similarity, strict=True):
            yield protocol.predict(task, query, row)


def retrieve(
    retriever: Retriever,
    benchmark: Benchmark,
    batch_size: int,
    image_features: Mapping[str, np.ndarray] | None = None,
) -> RetrievalResult:
    """Rank the gallery for every query of a benchmark, in each query mode and in every wording.

    Args:
        retriever: the model.
        benchmark: queries and galleries.
        batch_size: images, texts or both together in one pass of the model, a count.
        image_features: key -> (d,) raw features, where they are known already (`encode_images`).
    """
    protocol = PROTOCOLS[benchmark.protocol]
    encoder = retriever.content_encoder(benchmark.read_image, batch_size, image_features)
    texts = [w for t in benchmark.tasks for q in t.queries for w in (q.text, *q.wordings)]
    encoder.prepare(benchmark.image_keys(), [*texts, *(i.text for i in benchmark.items.values())])
    result = RetrievalResult({mode: [] for mode in QUERY_MODES})
    for task in benchmark.tasks:
        gallery = encoder.encode([(i.image, i.text) for i in map(benchmark.item, task.gallery)], "candidate")
        contents: dict[str, list[Content]] = {
            "composed": [(q.reference, q.text) for q in task.queries],
            "image_only": [(q.reference, "") for q in task.queries],
            "text_only": [(None, q.text) for q in task.queries],
        }
        for mode in QUERY_MODES:
            vectors = with_more_references(encoder, task.queries, mode, encoder.encode(contents[mode], "query"))
            predictions = predict_queries(protocol, task, task.queries, vectors, gallery)
            result.predictions[mode].append(list(zip(task.queries, predictions, strict=True)))
        several = [q for q in task.queries if q.wordings]
        if several:
            pairs = [(q, wording) for q in several for wording in q.wordings]
            vectors = encoder.encode([(q.reference, wording) for q, wording in pairs], "query")
            predictions = predict_queries(protocol, task, [q for q, _ in pairs], vectors, gallery)
            result.wordings.append([(q, [next(predictions) for _ in q.wordings]) for q in several])
    return result
