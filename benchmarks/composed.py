"""Shared by benchmarks that score a model on the sample world's benchmark: the metrics of its composed queries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import Params

if TYPE_CHECKING:
    import numpy as np


def composed_queries(model: str, folder: Path, params: Params) -> tuple[dict[str, np.ndarray], list[str]]:
    """Each metric of each composed query, and the queries' texts.

    Args:
        model: folder of a saved retriever.
        folder: a benchmark of the sample world (tasks/sample/benchmark.py).
        params: template, batch and threads of the evaluation.
    Returns:
        Metric -> (queries,) float64 in points, 0 to 100; the texts in the same order.
    """
    import numpy as np

    from tasks.evaluate.benchmarks import read_benchmark
    from tasks.evaluate.retrieval import retrieve
    from tasks.evaluate.scores import query_metrics
    from tasks.models.retrievers.load import load_retriever

    benchmark = read_benchmark(folder, params.evaluate.template)
    retriever = load_retriever(model, device="cpu", threads=params.open_run.threads)
    predictions = retrieve(retriever, benchmark, params.evaluate.batch_images).predictions["composed"]
    table = query_metrics(benchmark, predictions)
    rows = 100 * np.concatenate(table.tasks)
    texts = [query.text for task in predictions for query, _ in task]
    return {metric: rows[:, n] for n, metric in enumerate(table.metrics)}, texts
