"""Scores of a retriever on a benchmark: tables of metrics, means, paraphrase spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.evaluate.bootstrap import interval, resampled_means
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction, Query
from tasks.evaluate.retrieval import HALVES, Answers, answer

if TYPE_CHECKING:
    from tasks.models.retrievers.load import AnyRetriever


@dataclass(frozen=True)
class Table:
    """Metrics of every query: `parts` holds (n, k) values per task, k metrics in the order of `names`."""

    names: list[str]
    parts: list[np.ndarray]


def table_of(benchmark: Benchmark, predicted: Sequence[Sequence[tuple[Query, Prediction]]]) -> Table:
    """Each query's metrics, by the benchmark's protocol."""
    measure = PROTOCOLS[benchmark.protocol].measure
    rows = [[measure(query, prediction) for query, prediction in task] for task in predicted]
    names = list(rows[0][0])
    return Table(names, [np.array([[row[name] for name in names] for row in task]) for task in rows])


def means_of(benchmark: Benchmark, table: Table) -> dict[str, float]:
    """metric -> unweighted mean over the tasks of their queries' means; where there are several tasks also
    <task>.<metric>.
    """
    means = [part.mean(axis=0) for part in table.parts]
    out = {name: float(np.mean([m[n] for m in means])) for n, name in enumerate(table.names)}
    if len(means) > 1:
        out |= {
            f"{task.name}.{name}": float(m[n])
            for task, m in zip(benchmark.tasks, means, strict=True)
            for n, name in enumerate(table.names)
        }
    return out


def measure(
    retriever: AnyRetriever, benchmark: Benchmark, batch: int, *, images: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, float]]:
    """half -> metric -> score, without intervals: for benchmarks and studies. Arguments as of `answer`."""
    answers = answer(retriever, benchmark, batch, images)
    return {half: means_of(benchmark, table_of(benchmark, answers.predicted[half])) for half in HALVES}


def paraphrase_spread(benchmark: Benchmark, answers: Answers, metric: str) -> dict[str, float]:
    """How much a query's score hangs on its words: over the queries with several wordings, means of the metric.

    Returns:
        {"queries", "wordings" (mean count), "mean", "worst" and "best" (each query by its worst, best wording),
        "spread" (best - worst)}; empty where no query has several.
    """
    measure_one = PROTOCOLS[benchmark.protocol].measure
    values = [
        [measure_one(query, p)[metric] for p in predictions] for task in answers.wordings for query, predictions in task
    ]
    if not values:
        return {}
    worst, best = (float(np.mean([pick(v) for v in values])) for pick in (min, max))
    mean = float(np.mean([np.mean(v) for v in values]))
    counts = {"queries": float(len(values)), "wordings": float(np.mean([len(v) for v in values]))}
    return {**counts, "mean": mean, "worst": worst, "best": best, "spread": best - worst}


def section_of(benchmark: Benchmark, answers: Mapping[str, Answers], metric: str, seed: int) -> dict[str, Any]:
    """A benchmark's part of the report: scores, intervals, gaps, wordings of every model.

    Args:
        benchmark: with known answers.
        answers: model -> its answers.
        metric: what gap, gain and spread are taken of.
        seed: of the bootstrap.
    Raises:
        ConfigError: the protocol has no such metric.
    """
    tables = {(model, half): table_of(benchmark, a.predicted[half]) for model, a in answers.items() for half in HALVES}
    if metric not in (known := next(iter(tables.values())).names):
        raise ConfigError(f"'promote.metric' is {metric!r}: benchmark {benchmark.name} has {known}")
    draws = resampled_means({f"{model}/{half}": t.parts for (model, half), t in tables.items()}, seed=seed)
    names = next(iter(tables.values())).names
    at = names.index(metric)
    metrics = {model: {half: means_of(benchmark, tables[model, half]) for half in HALVES} for model in answers}
    gaps = {}
    for model, found in metrics.items():
        better = max(HALVES[1:], key=lambda half: found[half][metric])
        difference = draws[f"{model}/composed"][:, at] - draws[f"{model}/{better}"][:, at]
        gaps[model] = {
            "over": better,
            "value": found["composed"][metric] - found[better][metric],
            "interval": interval(difference),
        }
    gains = {}
    for rival in ("promoted", "base"):
        if rival in answers and "finetuned" in answers:
            difference = draws["finetuned/composed"][:, at] - draws[f"{rival}/composed"][:, at]
            value = metrics["finetuned"]["composed"][metric] - metrics[rival]["composed"][metric]
            gains[rival] = {"value": value, "interval": interval(difference)}
    spreads = {model: paraphrase_spread(benchmark, a, metric) for model, a in answers.items()}
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "rule": (PROTOCOLS[benchmark.protocol].read.__globals__["__doc__"] or "").split("\n")[0],
        "source": PROTOCOLS[benchmark.protocol].source,
        "split": benchmark.split,
        "queries": sum(len(t.queries) for t in benchmark.tasks),
        "gallery": sum(len(t.gallery) for t in benchmark.tasks),
        "template": next(iter(benchmark.templates.values())),
        "templates": benchmark.templates,
        "main_metric": metric,
        "metrics": metrics,
        "intervals": {
            model: {
                half: {name: interval(draws[f"{model}/{half}"][:, n]) for n, name in enumerate(names)}
                for half in HALVES
            }
            for model in answers
        },
        "composition_gap": gaps,
        "gain": gains,
        "paraphrases": {model: spread for model, spread in spreads.items() if spread},
    }


def composed_scores(evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """model -> half -> metric -> score of reports/evaluation.json; metrics of further benchmarks join the composed ones
    as "<name>:<metric>".
    """
    out = {
        model: {half: dict(values) for half, values in halves.items()}
        for model, halves in evaluation["metrics"].items()
    }
    for name, section in (evaluation.get("benchmarks") or {}).items():
        for model, halves in section["metrics"].items():
            if model in out:
                out[model]["composed"] |= {f"{name}:{metric}": value for metric, value in halves["composed"].items()}
    return out
