"""Evaluate: score the base checkpoint, the fine-tuned candidate and the promoted model on composed image retrieval.

Reads    models/candidate, models/promoted (where there is one), the base checkpoint (train.base_model), the benchmarks
         that `evaluate.benchmark` names (tasks/evaluate/protocols), or one folder in CIRCO's format, or else the
         version's held-out triplets; data/images, data/shards and data/triplets.
Writes   reports/evaluation.json, and reports/evaluation/<benchmark>/<model>/ with the submission files of splits whose
         answers are hidden. The first benchmark with known answers is the one that promotion uses.

In parts (`--part i/n`), a part makes some of the scorings (models x benchmarks) and leaves them below `.run/parts`; the
call without --part makes the rest and writes the report, the same bytes as without parts (tasks/evaluate/scoring.py).

For each model and benchmark the report holds the composed score and, beside it, the scores of the query image alone and
of the text alone with the composition gap: a model that does not beat both ignores half of the query. It also holds the
spread over the wordings of one query, 95% intervals over the queries (tasks/evaluate/bootstrap.py), and how many images
of queries and answers also lie in the training data (tasks/evaluate/contamination.py). With `evaluate.truth` the sample
world's truth file measures the version's triplets as well.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.config.public import public_name
from tasks.errors import ConfigError, DataError
from tasks.evaluate.benchmarks import read_benchmarks, require_metric
from tasks.evaluate.bootstrap import LEVEL, RESAMPLES
from tasks.evaluate.contamination import (
    Fingerprint,
    FingerprintRecorder,
    benchmark_fingerprints,
    contamination_report,
    training_fingerprints,
)
from tasks.evaluate.encode import EncodeSettings, ModelScorer
from tasks.evaluate.protocols import PROTOCOLS, Benchmark
from tasks.evaluate.protocols.base import UnreadableImageError
from tasks.evaluate.readable import dropped_note, with_readable_images
from tasks.evaluate.retrieval import QUERY_MODES, RetrievalResult, retrieve
from tasks.evaluate.scores import benchmark_report
from tasks.evaluate.scoring import Scoring, ScoringFiles, of_part
from tasks.evaluate.submissions import submission_files
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
    params: Params, models: Mapping[str, str], scorings: Sequence[tuple[str, Benchmark]], files: ScoringFiles
) -> Iterator[tuple[str, Benchmark, Scoring]]:
    """Run models on benchmarks, one model in memory at a time; what a part has left in a file is read.

    Args:
        params: the run's.
        models: model name in the report -> Hugging Face name or folder.
        scorings: model and benchmark, those of a model side by side.
        files: of the parts.
    """
    settings = encode_settings(params, files.store)
    scorer, loaded = None, ""
    for name, benchmark in scorings:
        if kept := files.read(benchmark, name):
            yield name, benchmark, kept
            continue
        if scorer is None or loaded != name:
            revision = params.train.revision if name == "base" else None
            threads = max(2, params.open_run.threads)
            scorer = None  # its memory first
            retriever = load_retriever(models[name], revision=revision, device=params.evaluate.device, threads=threads)
            scorer, loaded = ModelScorer(retriever, settings, models[name]), name
        if name != next(iter(models)):
            result, fingerprints = scorer.retrieve(benchmark, retrieve), dict[str, Fingerprint]()
        else:  # the first model's reading of the images also gives their fingerprints
            recorder = FingerprintRecorder(benchmark.read_image)
            result = scorer.retrieve(replace(benchmark, read_image=recorder), retrieve)
            fingerprints = benchmark_fingerprints(benchmark, recorder, settings.vectors)
        log.info("evaluate: %s on %s", name, benchmark.name)
        yield name, benchmark, Scoring(result, scorer.revision, fingerprints)


def encode_settings(params: Params, store: Store) -> EncodeSettings:
    """How the run's models encode; vectors lie in the run's worktree, or in the folder that the parameters name."""
    config = params.evaluate
    vectors = Path(config.vectors) if config.vectors else store.folder(".run", "vectors")
    return EncodeSettings(config.batch_images, config.workers, config.precision, vectors)


def collect(
    benchmarks: Sequence[Benchmark], scorings: Iterable[tuple[str, Benchmark, Scoring]]
) -> tuple[Results, dict[str, str], dict[str, dict[str, Fingerprint]]]:
    """(benchmark -> model -> result, model -> revision, benchmark -> image key -> fingerprint) of all scorings."""
    results: Results = {b.name: {} for b in benchmarks}
    revisions: dict[str, str] = {}
    fingerprints: dict[str, dict[str, Fingerprint]] = {b.name: {} for b in benchmarks}
    for name, benchmark, scoring in scorings:
        results[benchmark.name][name], revisions[name] = scoring.result, scoring.revision
        fingerprints[benchmark.name] |= scoring.fingerprints
    return results, revisions, fingerprints


def collect_all(
    params: Params, models: Mapping[str, str], benchmarks: list[Benchmark], files: ScoringFiles
) -> tuple[list[Benchmark], tuple[Results, dict[str, str], dict[str, dict[str, Fingerprint]]]]:
    """The benchmarks and what `collect` makes of them; an image that is found broken only now is left out of them."""
    try:
        return benchmarks, collect(benchmarks, retrieve_all(params, models, pairs(models, benchmarks), files))
    except UnreadableImageError as error:  # its header and end were whole
        log.warning("evaluate: %s; every image is decoded now, to leave out what is broken", error)
        share_max = params.evaluate.dropped_queries_share_max
        benchmarks = [with_readable_images(b, share_max, is_thorough=True) for b in benchmarks]
        return benchmarks, collect(benchmarks, retrieve_all(params, models, pairs(models, benchmarks), files))


def pairs(models: Mapping[str, str], benchmarks: Sequence[Benchmark]) -> list[tuple[str, Benchmark]]:
    """Every model with every benchmark, by model: a model is loaded once."""
    return [(name, benchmark) for name in models for benchmark in benchmarks]


def evaluate_part(
    params: Params,
    models: Mapping[str, str],
    scorings: Sequence[tuple[str, Benchmark]],
    files: ScoringFiles,
    part: tuple[int, int],
) -> StageReport:
    """Make the i-th of n parts of the scorings; they wait in files for the call that writes the report."""
    missing = [(name, b) for name, b in of_part(scorings, part) if not files.path(b, name).exists()]
    for name, benchmark, scoring in retrieve_all(params, models, missing, files):
        files.write(benchmark, name, scoring)
    return StageReport("evaluate", notes=[f"part {part[0]} of {part[1]}: {len(missing)} scorings made now"])


def write_submissions(store: Store, benchmark: Benchmark, results: Mapping[str, RetrievalResult]) -> int:
    """Write each model's files for the benchmark's server; returns how many files."""
    written = 0
    for model, result in results.items():
        for file, content in submission_files(benchmark, result).items():
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
        if note := dropped_note(benchmark):
            sections[benchmark.name]["left_out"] = note
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


def run(params: Params, store: Store, part: tuple[int, int] | None = None) -> StageReport:
    """Score the models and write reports/evaluation.json; or make the i-th of n parts of the scorings.

    Raises:
        DataError: no candidate.
        ConfigError: no benchmark with known answers.
    """
    models = model_paths(params, store)
    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    benchmarks = read_benchmarks(params, store, triplets)
    scored = [b for b in benchmarks if b.has_ground_truth]
    if not scored:
        raise ConfigError("evaluate.benchmark: every benchmark hides its answers; name one with known answers first")
    require_metric(params.promote.metric, scored[0])
    files = ScoringFiles(params, store, models)
    if part is not None and part[1] > 1:
        return evaluate_part(params, models, pairs(models, benchmarks), files, part)
    benchmarks, (results, revisions, fingerprints) = collect_all(params, models, benchmarks, files)
    scored = [b for b in benchmarks if b.has_ground_truth]
    sections = score_benchmarks(params, scored, results)
    known = training_fingerprints(params, store, triplets)
    for b in scored:
        sections[b.name]["contamination"] = contamination_report(b, fingerprints[b.name], known, params)
    submissions = sum(write_submissions(store, b, results[b.name]) for b in benchmarks if not b.has_ground_truth)
    evaluation = whole_report(params, store, sections, scored[0].name, revisions)
    store.write_bytes(store.folder("reports", "evaluation.json"), (json.dumps(evaluation, indent=1) + "\n").encode())
    files.remove()
    shutil.rmtree(store.folder(".run", "vectors"), ignore_errors=True)
    return StageReport(
        "evaluate",
        read=evaluation["queries"],
        written=1 + submissions,
        new=len(models),
        done=len(models),
        figures=report_figures(evaluation),
        notes=[note for b in benchmarks if (note := dropped_note(b))],
    )


def whole_report(
    params: Params, store: Store, sections: dict[str, Any], first: str, revisions: Mapping[str, str]
) -> dict[str, Any]:
    """The content of reports/evaluation.json.

    Args:
        params: the run's.
        store: for the truth file's figures.
        sections: benchmark -> its part of the report.
        first: name of the benchmark that promotion uses.
        revisions: model -> revision of its weights.
    """
    evaluation: dict[str, Any] = {
        **sections.pop(first),
        "base_model": public_name(params.train.base_model),
        "revisions": dict(revisions),
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": params.open_run.seed},
        "benchmarks": sections,
    }
    if params.evaluate.truth:
        evaluation |= truth_report(Path(params.evaluate.truth), store)
    return evaluation
