"""Evaluate: score the base checkpoint, the fine-tuned candidate and the promoted model on composed image retrieval.

Reads    models/candidate, models/promoted (where there is one), the base checkpoint (train.base_model), the benchmarks
         that `evaluate.benchmark` names (tasks/evaluate/protocols), or one folder in CIRCO's format, or else the
         version's held-out triplets; data/images and data/triplets.
Writes   reports/evaluation.json, and reports/evaluation/<benchmark>/<model>/ with the submission files of splits whose
         answers are hidden. The first benchmark with known answers is the one that promotion uses.

For each model and benchmark the report holds the composed score and, beside it, the scores of the query image alone and
of the text alone with the composition gap: a model that does not beat both ignores half of the query. It also holds the
spread over the wordings of one query, 95% intervals over the queries (tasks/evaluate/bootstrap.py), and how many images
of queries and answers also lie in the training data (tasks/evaluate/contamination.py). With `evaluate.truth` the sample
world's truth file measures the version's triplets as well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.evaluate.benchmarks import read_benchmarks
from tasks.evaluate.bootstrap import LEVEL, RESAMPLES
from tasks.evaluate.contamination import FingerprintRecorder, contamination_report, training_fingerprints
from tasks.evaluate.protocols import PROTOCOLS, Benchmark
from tasks.evaluate.retrieval import QUERY_MODES, RetrievalResult, retrieve
from tasks.evaluate.scores import benchmark_report
from tasks.evaluate.truth import truth_report
from tasks.models.retrievers.load import load_retriever
from tasks.records import StageReport
from tasks.store import Store

log = logging.getLogger(__name__)

Results = dict[str, dict[str, RetrievalResult]]  # benchmark -> model -> result


def model_paths(params: Params, store: Store) -> dict[str, str]:
    """Model name in the report -> Hugging Face name or folder, in the order of scoring.

    Raises:
        DataError: there is no candidate.
    """
    candidate, promoted = store.folder("models", "candidate"), store.folder("models", "promoted")
    if not candidate.is_dir():
        raise DataError(f"{candidate}: missing; run `python -m tasks train` first")
    models = {"base": params.train.base_model, "finetuned": str(candidate)}
    return models | ({"promoted": str(promoted)} if promoted.is_dir() else {})


def retrieve_all(
    params: Params, models: Mapping[str, str], benchmarks: Sequence[Benchmark]
) -> tuple[Results, dict[str, str]]:
    """Run every model on every benchmark, one model in memory at a time.

    Returns:
        The results, and model -> revision of its weights.
    """
    results: Results = {b.name: {} for b in benchmarks}
    revisions: dict[str, str] = {}
    for name, model in models.items():
        revision = params.train.revision if name == "base" else None
        threads = max(2, params.open_run.threads)
        retriever = load_retriever(model, revision=revision, device=params.evaluate.device, threads=threads)
        revisions[name] = retriever.revision
        for benchmark in benchmarks:
            results[benchmark.name][name] = retrieve(retriever, benchmark, params.evaluate.batch_images)
            log.info("evaluate: %s on %s", name, benchmark.name)
    return results, revisions


def write_submissions(store: Store, benchmark: Benchmark, results: Mapping[str, RetrievalResult]) -> int:
    """Write each model's files for the benchmark's server; returns how many files."""
    submission, written = PROTOCOLS[benchmark.protocol].submission, 0
    if submission is None:
        return written
    for model, result in results.items():
        predictions = [pair for task in result.predictions["composed"] for pair in task]
        for file, content in submission(predictions).items():
            path = store.folder("reports", "evaluation", benchmark.name, model, file)
            store.write_bytes(path, json.dumps(content).encode())
            written += 1
    return written


def score_benchmarks(params: Params, benchmarks: Sequence[Benchmark], results: Results) -> dict[str, Any]:
    """Benchmark name -> its part of reports/evaluation.json; the first benchmark is scored by promote.metric."""
    sections = {}
    for n, benchmark in enumerate(benchmarks):
        metric = PROTOCOLS[benchmark.protocol].main_metric if n else params.promote.metric
        sections[benchmark.name] = benchmark_report(benchmark, results[benchmark.name], metric, params.open_run.seed)
    return sections


def report_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the stage's report: every model's main metric in each query mode, and its composition gap."""
    metric = evaluation["main_metric"]
    figures = {
        f"{model}_{mode}_{metric}": scores[mode][metric]
        for model, scores in evaluation["metrics"].items()
        for mode in QUERY_MODES
    }
    return figures | {f"{model}_composition_gap": g["value"] for model, g in evaluation["composition_gap"].items()}


def run(params: Params, store: Store) -> StageReport:
    """Score the models and write reports/evaluation.json.

    Raises:
        DataError: no candidate.
        ConfigError: no benchmark with known answers.
    """
    models = model_paths(params, store)
    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    benchmarks = read_benchmarks(params, store, triplets)
    recorders = {b.name: FingerprintRecorder(b.read_image) for b in benchmarks}
    benchmarks = [replace(b, read_image=recorders[b.name]) for b in benchmarks]
    scored = [b for b in benchmarks if b.has_ground_truth]
    if not scored:
        raise ConfigError("evaluate.benchmark: every benchmark hides its answers; name one with known answers first")
    results, revisions = retrieve_all(params, models, benchmarks)
    sections = score_benchmarks(params, scored, results)
    known = training_fingerprints(params, store, triplets)
    for b in scored:
        sections[b.name]["contamination"] = contamination_report(b, recorders[b.name].fingerprints, known, params)
    submissions = sum(write_submissions(store, b, results[b.name]) for b in benchmarks if not b.has_ground_truth)
    evaluation: dict[str, Any] = {
        **sections.pop(scored[0].name),
        "base_model": params.train.base_model,
        "revisions": revisions,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": params.open_run.seed},
        "benchmarks": sections,
    }
    if params.evaluate.truth:
        evaluation |= truth_report(Path(params.evaluate.truth), store)
    store.write_bytes(store.folder("reports", "evaluation.json"), (json.dumps(evaluation, indent=1) + "\n").encode())
    return StageReport(
        "evaluate",
        read=evaluation["queries"],
        written=1 + submissions,
        new=len(models),
        done=len(models),
        figures=report_figures(evaluation),
    )
