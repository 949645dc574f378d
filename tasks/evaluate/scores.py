"""Scores of retrieval results: per-query metrics, means, bootstrap intervals, and a benchmark's part of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.evaluate.bootstrap import interval, resampled_means
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction, Query
from tasks.evaluate.protocols.base import TaskValues
from tasks.evaluate.retrieval import QUERY_MODES, RetrievalResult, retrieve

if TYPE_CHECKING:
    from tasks.models.retrievers.base import Retriever


@dataclass(frozen=True)
class MetricTable:
    """Metrics of every query.

    Attributes:
        metrics: names of the k metrics.
        tasks: per task the values (n, k) of its queries.
    """

    metrics: list[str]
    tasks: list[np.ndarray]


def query_metrics(
    benchmark: Benchmark, predictions: Sequence[Sequence[tuple[Query, Prediction]]], only: Sequence[str] | None = None
) -> MetricTable:
    """The metrics of each query by the benchmark's protocol (`only` some of them); `predictions` per task."""
    measure = PROTOCOLS[benchmark.protocol].measure
    rows = [[measure(query, prediction) for query, prediction in task] for task in predictions]
    metrics = [name for name in rows[0][0] if only is None or name in only]
    return MetricTable(metrics, [np.array([[row[name] for name in metrics] for row in task]) for task in rows])


def mean_metrics(
    benchmark: Benchmark, table: MetricTable, predictions: Sequence[Sequence[tuple[Query, Prediction]]] = ()
) -> dict[str, float]:
    """metric -> unweighted mean over the tasks of their queries' means; with several tasks also <task>.<metric>; with
    the predictions of which the table was made also the protocol's summary.
    """
    means = [task.mean(axis=0) for task in table.tasks]
    out = {name: float(np.mean([m[n] for m in means])) for n, name in enumerate(table.metrics)}
    if len(means) > 1:
        out |= {
            f"{task.name}.{name}": float(m[n])
            for task, m in zip(benchmark.tasks, means, strict=True)
            for n, name in enumerate(table.metrics)
        }
    summary = PROTOCOLS[benchmark.protocol].summary
    if summary is not None and predictions:
        values = [
            TaskValues(task.name, [query for query, _ in made], rows)
            for task, made, rows in zip(benchmark.tasks, predictions, table.tasks, strict=True)
        ]
        out |= summary(table.metrics, values)
    return out


def score_retriever(
    retriever: Retriever,
    benchmark: Benchmark,
    batch_size: int,
    *,
    image_features: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, float]]:
    """query mode -> metric -> score, without intervals: for studies. Arguments as of `retrieve`."""
    result = retrieve(retriever, benchmark, batch_size, image_features)
    return {mode: mean_metrics(benchmark, query_metrics(benchmark, result.predictions[mode])) for mode in QUERY_MODES}


def paraphrase_spread(benchmark: Benchmark, result: RetrievalResult, metric: str) -> dict[str, float]:
    """How much a query's score depends on its wording: means of the metric over the queries with several wordings.

    Returns:
        {"queries", "wordings" (mean count), "mean", "worst" and "best" (each query by its worst, best wording),
        "spread" (best - worst)}; empty where no query has several.
    """
    measure = PROTOCOLS[benchmark.protocol].measure
    values = [
        [measure(query, p)[metric] for p in predictions] for task in result.wordings for query, predictions in task
    ]
    if not values:
        return {}
    worst, best = (float(np.mean([pick(v) for v in values])) for pick in (min, max))
    mean = float(np.mean([np.mean(v) for v in values]))
    counts = {"queries": float(len(values)), "wordings": float(np.mean([len(v) for v in values]))}
    return {**counts, "mean": mean, "worst": worst, "best": best, "spread": best - worst}


class BenchmarkScores:
    """Scores of several models on one benchmark, with bootstrap draws that all models share."""

    def __init__(
        self,
        benchmark: Benchmark,
        results: Mapping[str, RetrievalResult],
        metric: str,
        seed: int,
        only: Sequence[str] | None = None,
    ) -> None:
        """Compute metrics, means and draws.

        Args:
            benchmark: with known answers.
            results: model -> its retrieval result.
            metric: the main metric, of which gap and gain are taken.
            seed: of the bootstrap.
            only: the metrics that the predictions allow; all where None.
        Raises:
            ConfigError: the protocol has no such metric.
        """
        self.modes = [mode for mode in QUERY_MODES if all(mode in r.predictions for r in results.values())]
        tables = {
            (model, mode): query_metrics(benchmark, result.predictions[mode], only)
            for model, result in results.items()
            for mode in self.modes
        }
        self.metric, self.metrics = metric, next(iter(tables.values())).metrics
        if metric not in self.metrics:
            raise ConfigError(f"'promote.metric' is {metric!r}: benchmark {benchmark.name} has {self.metrics}")
        self._draws = resampled_means({f"{m}/{mode}": t.tasks for (m, mode), t in tables.items()}, seed=seed)
        self.means = {
            model: {
                mode: mean_metrics(benchmark, tables[model, mode], result.predictions[mode] if only is None else ())
                for mode in self.modes
            }
            for model, result in results.items()
        }

    def intervals(self, model: str) -> dict[str, dict[str, tuple[float, float]]]:
        """query mode -> metric -> 95% interval of a model's scores."""
        return {
            mode: {name: interval(self._draws[f"{model}/{mode}"][:, n]) for n, name in enumerate(self.metrics)}
            for mode in self.modes
        }

    def composition_gap(self, model: str) -> dict[str, Any]:
        """What the composed query gains over the better of image and text alone: {"over", "value", "interval"}."""
        means = self.means[model]
        better = max(QUERY_MODES[1:], key=lambda mode: means[mode][self.metric])
        return {
            "over": better,
            "value": means["composed"][self.metric] - means[better][self.metric],
            "interval": self._difference(f"{model}/composed", f"{model}/{better}"),
        }

    def gain(self, model: str, rival: str) -> dict[str, Any]:
        """What a model gains over another one, both composed: {"value", "interval"}."""
        value = self.means[model]["composed"][self.metric] - self.means[rival]["composed"][self.metric]
        return {"value": value, "interval": self._difference(f"{model}/composed", f"{rival}/composed")}

    def _difference(self, one: str, other: str) -> tuple[float, float]:
        column = self.metrics.index(self.metric)
        return interval(self._draws[one][:, column] - self._draws[other][:, column])


def benchmark_report(
    benchmark: Benchmark,
    results: Mapping[str, RetrievalResult],
    metric: str,
    seed: int,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A benchmark's part of reports/evaluation.json: scores, intervals, gaps, gains and wordings of every model.

    Arguments and errors as of `BenchmarkScores`.
    """
    protocol = PROTOCOLS[benchmark.protocol]
    scores = BenchmarkScores(benchmark, results, metric, seed, only)
    first = next(iter(results))
    others = [model for model in results if model != first and "finetuned" not in results]
    rivals = [rival for rival in ("promoted", "base") if rival in results and "finetuned" in results]
    spreads = {model: paraphrase_spread(benchmark, result, metric) for model, result in results.items()}
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "rule": protocol.rule,
        "source": protocol.source,
        "split": benchmark.split,
        "queries": sum(len(t.queries) for t in benchmark.tasks),
        "gallery": sum(len(t.gallery) for t in benchmark.tasks),
        "template": next(iter(benchmark.templates.values())),
        "templates": benchmark.templates,
        "instruction": benchmark.instruction,
        "main_metric": metric,
        "metrics": scores.means,
        "intervals": {model: scores.intervals(model) for model in results},
        "composition_gap": {m: scores.composition_gap(m) for m in results if len(scores.modes) == len(QUERY_MODES)},
        "gain": {rival: scores.gain("finetuned", rival) for rival in rivals},
        **({"incomplete": note} if (note := incomplete_note(benchmark)) else {}),
        **({"gain_over_first": {model: scores.gain(model, first) for model in others}} if others else {}),
        "paraphrases": {model: spread for model, spread in spreads.items() if spread},
    }


def incomplete_note(benchmark: Benchmark) -> str | None:
    """What of the whole split is not there, as a sentence; None where all is, or where its size is not known."""
    size = PROTOCOLS[benchmark.protocol].sizes.get(benchmark.split)
    if size is None:
        return None
    there = {
        "queries": sum(len(task.queries) for task in benchmark.tasks),
        "gallery entries": sum(len(task.gallery) for task in benchmark.tasks),
        "tasks": len(benchmark.tasks),
    }
    if benchmark.is_subset:  # of queries, on purpose
        there = {"gallery entries": there["gallery entries"]}
    whole = dict(zip(("queries", "gallery entries", "tasks"), size, strict=True))
    parts = [f"{count:,} of {whole[what]:,} {what}" for what, count in there.items() if count < whole[what]]
    return f"Not the whole split: {', '.join(parts)}. Published scores are of all of it." if parts else None


def composed_scores(evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """model -> query mode -> metric -> score of reports/evaluation.json; the composed scores also hold those of further
    benchmarks, as "<benchmark>:<metric>".
    """
    out = {
        model: {mode: dict(values) for mode, values in modes.items()} for model, modes in evaluation["metrics"].items()
    }
    for name, section in (evaluation.get("benchmarks") or {}).items():
        for model, modes in section["metrics"].items():
            if model in out:
                out[model]["composed"] |= {f"{name}:{metric}": value for metric, value in modes["composed"].items()}
    return out
