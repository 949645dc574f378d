"""Evaluate: the base checkpoint, the candidate and the model in place on composed retrieval, by each benchmark's own
protocol.

Reads models/candidate, models/promoted (if there is one), and the benchmarks that `evaluate.benchmark` names
(tasks/protocols), or one folder in CIRCO's format, or else the version's held-out triplets; writes
reports/evaluation.json, and reports/evaluation/ with the files for the servers of splits whose answers are hidden. The
first benchmark is the one that promotion goes by.

Beside each composed score stand its halves alone and the gap to the better half: a model that does not beat both
ignores half of the query; what other wordings of the same query give; and 95% intervals over the queries
(tasks/evaluate/bootstrap.py). Images of the queries and answers that also lie in the training data are counted. With
`evaluate.truth` the sample world's truth measures the triplets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.evaluate.benchmarks import benchmarks_of
from tasks.evaluate.bootstrap import LEVEL, RESAMPLES
from tasks.evaluate.contamination import Fingerprints, contamination_of, known_fingerprints
from tasks.evaluate.protocols import PROTOCOLS
from tasks.evaluate.retrieval import HALVES, Answers, answer
from tasks.evaluate.scores import section_of
from tasks.models.retrievers.load import load_retriever
from tasks.records import StageReport
from tasks.store import Store

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


# --- encoding and ranking ---------------------------------------------------------------------------------------------


# --- scoring ----------------------------------------------------------------------------------------------------------


def truth_of(path: Path, triplets: Sequence[dict[str, Any]], source_uris: Mapping[str, str]) -> dict[str, float | int]:
    """What the sample world's truth says of the triplets; the file is read here and nowhere else.

    Args:
        path: JSON lines {"path", "scene", ...}.
        triplets: rows of the table.
        source_uris: image id -> <source>:<path>.
    Raises:
        ConfigError: no such file.
    """
    from tasks.sample import truth
    from tasks.sample.scenes import Scene

    if not path.is_file():
        raise ConfigError(
            f"{path}: missing; 'evaluate.truth' names the sample world's truth file, leave it empty for any other source"
        )
    scenes: dict[str, Scene] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("scene"):
            scenes[row["path"]] = Scene.from_record(row["scene"])
    return truth.measure(triplets, lambda image_id: scenes.get(source_uris.get(image_id, "").partition(":")[2]))


# --- what was seen in training ----------------------------------------------------------------------------------------


# --- the stage --------------------------------------------------------------------------------------------------------


def run(params: Params, store: Store) -> StageReport:
    """Score the models and write reports/evaluation.json.

    Raises:
        DataError: no candidate.
        ConfigError: no benchmark with known answers.
    """
    config = params.evaluate
    candidate, in_place = store.folder("models", "candidate"), store.folder("models", "promoted")
    if not candidate.is_dir():
        raise DataError(f"{candidate}: missing; run `python -m tasks train` first")
    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    benchmarks = benchmarks_of(params, store, triplets)
    scored = [b for b in benchmarks if b.is_scored]
    if not scored:
        raise ConfigError(
            "evaluate.benchmark: every benchmark hides its answers; name one with known answers first, promotion goes by it"
        )
    readers = {b.name: Fingerprints(b.read) for b in benchmarks}
    benchmarks = [replace(b, read=readers[b.name]) for b in benchmarks]
    models = {"base": params.train.base_model, "finetuned": str(candidate)} | (
        {"promoted": str(in_place)} if in_place.is_dir() else {}
    )
    revisions: dict[str, str] = {}
    answers: dict[str, dict[str, Answers]] = {b.name: {} for b in benchmarks}
    for name, model in models.items():
        revision = params.train.revision if name == "base" else None
        retriever = load_retriever(
            model, revision=revision, device=config.device, threads=max(2, params.open_run.threads)
        )
        revisions[name] = retriever.revision
        for benchmark in benchmarks:
            answers[benchmark.name][name] = answer(retriever, benchmark, config.batch_images)
            log.info("evaluate: %s on %s", name, benchmark.name)
    known = known_fingerprints(params, store, triplets)
    sections: dict[str, Any] = {}
    written = 1
    for benchmark in benchmarks:
        protocol = PROTOCOLS[benchmark.protocol]
        if benchmark.is_scored:
            main = params.promote.metric if benchmark.name == scored[0].name else protocol.main
            sections[benchmark.name] = section_of(benchmark, answers[benchmark.name], main, params.open_run.seed)
            sections[benchmark.name]["contamination"] = contamination_of(
                benchmark, readers[benchmark.name].found, known, params
            )
        elif protocol.submission:
            for model, a in answers[benchmark.name].items():
                predicted = [pair for task in a.predicted["composed"] for pair in task]
                for file, content in protocol.submission(predicted).items():
                    store.write_bytes(
                        store.folder("reports", "evaluation", benchmark.name, model, file), json.dumps(content).encode()
                    )
                    written += 1
    first = scored[0].name
    evaluation: dict[str, Any] = {
        **sections.pop(first),
        "base_model": params.train.base_model,
        "revisions": revisions,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": params.open_run.seed},
        "benchmarks": sections,
    }
    if config.truth:
        images = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
        uris = dict(zip(images["image_id"], images["source_uri"], strict=True))
        found = truth_of(Path(config.truth), store.read_table("triplets").to_pylist(), uris)
        evaluation["truth"] = {name: value for name, value in found.items() if isinstance(value, float)}  # shares
        evaluation["truth_counts"] = {name: value for name, value in found.items() if isinstance(value, int)}
    store.write_bytes(store.folder("reports", "evaluation.json"), (json.dumps(evaluation, indent=1) + "\n").encode())
    main = evaluation["main_metric"]
    figures = {
        f"{name}_{half}_{main}": scores[half][main] for name, scores in evaluation["metrics"].items() for half in HALVES
    }
    figures |= {f"{name}_composition_gap": gap["value"] for name, gap in evaluation["composition_gap"].items()}
    return StageReport(
        "evaluate", read=evaluation["queries"], written=written, new=len(models), done=len(models), figures=figures
    )
