"""Evaluate models on benchmarks without a run: `python -m tasks evaluate --model ... --benchmark ...`.

    python -m tasks evaluate --model BAAI/BGE-VL-base --benchmark circo=data/CIRCO --benchmark cirr=data/cirr
    python -m tasks evaluate --benchmark circo=data/CIRCO --predictions submission_val.json

--model is a Hugging Face name or a folder and may be repeated; models are compared with the first one. --benchmark is
PROTOCOL=FOLDER, or PROTOCOL:SPLIT=FOLDER (circo:test writes the files for CIRCO's server); the folder is the one that
the benchmark's own page unpacks (a table of them: docs/images-and-models.md). With --predictions nothing is encoded: a
file in the format of the benchmark's server is scored by its protocol; images need not be there.

Everything that can be known is checked before the first batch: names, the files and their columns, that every image is
there and whole (else its queries are counted as left out), that a split has answers, the metric. --check ends there.
Vectors are kept below --vectors, by weights and image, so that a command that is started again does only what is
missing, and several commands share them.

Writes into --out (default: evaluation/): evaluation.json, results.md with published scores beside them, and
submissions/<benchmark>/<model>/ for splits whose answers are hidden.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import BenchmarkConfig
from tasks.errors import ConfigError
from tasks.evaluate.benchmarks import read_named, require_metric
from tasks.evaluate.bootstrap import LEVEL, RESAMPLES
from tasks.evaluate.encode import EncodeSettings, ModelScorer
from tasks.evaluate.protocols import PROTOCOLS, Benchmark
from tasks.evaluate.protocols.base import UnreadableImageError
from tasks.evaluate.readable import dropped_note, with_readable_images
from tasks.evaluate.results_page import results_page
from tasks.evaluate.retrieval import RetrievalResult
from tasks.evaluate.scores import benchmark_report
from tasks.evaluate.submissions import read_submission, submission_files
from tasks.models.retrievers.load import load_retriever, retriever_type
from tasks.store.atomic import atomic_write

log = logging.getLogger(__name__)
DEFAULT_SPLITS = {"mmeb": "test", "icir": "all", "pinpoint": "all", "dtin": "all"}  # the others: val
SEED = 0  # of the bootstrap
OTHER_NAMES = {"mmebv2": "mmeb", "fiq": "fashioniq", "imagenetr": "dtin", "domaintransferimagenet": "dtin"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tool; without any of them `evaluate` is the stage of a run."""
    group = parser.add_argument_group("without a run")
    group.add_argument("--model", action="append", default=[], metavar="NAME_OR_FOLDER", help="may be repeated")
    group.add_argument("--revision", help="pinned revision of a model that is named, not a folder")
    group.add_argument(
        "--benchmark", action="append", default=[], metavar="PROTOCOL[:SPLIT]=FOLDER",
        help=f"may be repeated; protocols: {', '.join(PROTOCOLS)}",
    )  # fmt: skip
    group.add_argument(
        "--subset", action="append", default=[], metavar="BENCHMARK=FILE",
        help="score the queries alone that a file names: CIRCUS' CSV or JSONL, or a JSON list of query ids",
    )  # fmt: skip
    group.add_argument("--template", help="text of a query; default: the benchmark's own template")
    group.add_argument(
        "--instruction", help="task instruction for models that take one; default: the benchmark's own, or the model's"
    )
    group.add_argument("--metric", help="main metric of the first benchmark; default: its protocol's")
    group.add_argument(
        "--predictions", type=Path, nargs="+", default=[], metavar="FILE", help="score submission files, not a model"
    )
    group.add_argument("--check", action="store_true", help="only check the benchmarks; no model is loaded")
    group.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for results (default: %(default)s)")
    group.add_argument("--vectors", type=Path, help="folder where vectors are kept (default: vectors/ in --out)")
    group.add_argument("--batch-images", type=int, default=128, metavar="N", help="images in one call of the model")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, or cuda:0,cuda:1")
    group.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    group.add_argument("--preprocess", default="fast", choices=("fast", "stock"),
                       help="fast: as the released script resizes, up to rounding; stock: exactly so")  # fmt: skip
    group.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that decode images")
    group.add_argument("--dropped-share-max", type=float, default=0.05, metavar="X",
                       help="largest share of a benchmark's queries that broken images may cost")  # fmt: skip


def is_asked(args: argparse.Namespace) -> bool:
    """Whether the arguments are those of the tool."""
    return bool(args.model or args.benchmark or args.predictions or args.check)


def protocol_name(typed: str) -> str:
    """A protocol as people write it: capitals and hyphens do not count (i-CIR, Fashion-IQ, MMEB-V2)."""
    plain = typed.lower().replace("-", "").replace("_", "")
    return OTHER_NAMES.get(plain, plain)


def parse_benchmark(
    text: str, template: str | None, subsets: Mapping[str, str], instruction: str | None = None
) -> BenchmarkConfig:
    """`circo=data/CIRCO` or `circo:test=data/CIRCO`; the name in the report is the part before '='.

    Args:
        text: as given.
        template: of the query text; None for the benchmark's own.
        instruction: task instruction for an MLLM; None for the benchmark's own, or the model's.
        subsets: the part before '=' -> file that names the queries to score.

    Raises:
        ConfigError: another form, or an unknown protocol.
    """
    key, separator, path = text.partition("=")
    typed, _, split = key.partition(":")
    protocol = protocol_name(typed)
    if not separator or not path or not protocol:
        raise ConfigError(f"--benchmark {text!r}: expected PROTOCOL=FOLDER, such as circo=data/CIRCO")
    if protocol not in PROTOCOLS:
        close = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        if protocol == "circus":
            meant = "CIRCUS is subsets of other benchmarks: name one, and the file by --subset BENCHMARK=FILE; "
        raise ConfigError(f"--benchmark {text!r}: unknown protocol {typed!r}; {meant}expected one of {[*PROTOCOLS]}")
    split = split or DEFAULT_SPLITS.get(protocol, "val")
    if not split.isidentifier() and not split.isalnum():
        raise ConfigError(f"--benchmark {text!r}: split {split!r}: expected a name such as val or test")
    return BenchmarkConfig.model_construct(
        name=key.replace(":", "-"),
        protocol=protocol,
        path=path,
        split=split,
        template=template,
        instruction=instruction,
        subset=subsets.get(key),
    )


def parse_subset(text: str) -> tuple[str, str]:
    """`circo=circo_validated.csv` as (the benchmark's part before '=', file).

    Raises:
        ConfigError: another form.
    """
    key, separator, path = text.partition("=")
    if not separator or not key or not path:
        raise ConfigError(f"--subset {text!r}: expected BENCHMARK=FILE, such as circo=circo_validated.csv")
    return key, path


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Name in the report -> Hugging Face name or folder: the last part, or more of them where two have the same."""
    names: dict[str, str] = {}
    for model in models:
        parts = [part for part in model.rstrip("/").split("/") if part not in ("", ".")] or [model]
        for count in range(1, len(parts) + 1):
            name = "-".join(parts[-count:])
            if name not in names:
                break
        if name in names:
            raise ConfigError(f"--model {model!r}: named twice")
        names[name] = model
    return names


def run_command(args: argparse.Namespace) -> Mapping[str, Any]:
    """Check, encode what is missing, score, write; returns the content of evaluation.json.

    Raises:
        ConfigError: arguments, files or names that are wrong; nothing was encoded.
        DataError: files that are not in their protocol's format, or too many broken images.
    """
    require_arguments(args)
    benchmarks = read_all(args)
    if args.check:
        return checked_summary(benchmarks)
    scored = [b for b in benchmarks if b.has_ground_truth]
    only = None
    if args.predictions:
        result, allowed = read_submission(args.predictions, benchmarks[0])
        only = None if allowed == PROTOCOLS[benchmarks[0].protocol].metrics() else allowed
        results = {benchmarks[0].name: {"predictions": result}}
        revisions = {"predictions": ", ".join(map(str, args.predictions))}
    else:
        try:
            results, revisions = encode_and_rank(args, benchmarks)
        except UnreadableImageError as error:  # its header and end were whole
            log.warning("evaluate: %s; every image is decoded now, to leave out what is broken", error)
            benchmarks = [with_readable_images(b, args.dropped_share_max, is_thorough=True) for b in benchmarks]
            scored = [b for b in benchmarks if b.has_ground_truth]
            results, revisions = encode_and_rank(args, benchmarks)
    sections = {}
    for n, benchmark in enumerate(scored):
        metric = args.metric if args.metric and not n else PROTOCOLS[benchmark.protocol].main_metric
        if only and metric not in only and not args.metric:
            metric = only[0]
        section = benchmark_report(benchmark, results[benchmark.name], metric, SEED, only)
        if note := dropped_note(benchmark):
            section["left_out"] = note
        if subset := dict(map(parse_subset, args.subset)).get(benchmark.name.replace("-", ":", 1)):
            section["subset"] = subset
        sections[benchmark.name] = section
    evaluation = {
        "models": {name: {"revision": revision} for name, revision in revisions.items()},
        "benchmarks": sections,
        "precision": args.precision,
        "preprocess": args.preprocess,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": SEED},
    }
    write_results(args.out, evaluation, [b for b in benchmarks if not b.has_ground_truth], results)
    return evaluation


def require_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together.

    Raises:
        ConfigError: as said.
    """
    if args.item or args.part:
        raise ConfigError("evaluate: an item and --part belong to the stage of a run; leave them out")
    if not args.benchmark:
        raise ConfigError("evaluate: --benchmark is missing; expected PROTOCOL=FOLDER, such as circo=data/CIRCO")
    if args.predictions:
        if args.model or len(args.benchmark) != 1:
            raise ConfigError("evaluate: --predictions goes with one --benchmark and without --model")
        if missing := [str(path) for path in args.predictions if not path.is_file()]:
            raise ConfigError(f"--predictions: no such file: {missing}")
    elif not args.model and not args.check:
        raise ConfigError("evaluate: --model is missing; expected a Hugging Face name or a folder")
    for name, value in (("--batch-images", args.batch_images), ("--workers", args.workers)):
        if value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")
    if not 0 <= args.dropped_share_max <= 1:
        raise ConfigError(f"--dropped-share-max {args.dropped_share_max}: expected 0 to 1")


def read_all(args: argparse.Namespace) -> list[Benchmark]:
    """Read and check every benchmark and every model's name, in the arguments' order.

    Raises:
        ConfigError, DataError: as `run_command`.
    """
    subsets = dict(parse_subset(text) for text in args.subset)
    if unknown := sorted(set(subsets) - {text.partition("=")[0] for text in args.benchmark}):
        raise ConfigError(f"--subset: {unknown} are no --benchmark; expected the part before its '='")
    configs = [parse_benchmark(text, args.template, subsets, args.instruction) for text in args.benchmark]
    if len({c.name for c in configs}) < len(configs):
        raise ConfigError(f"--benchmark: names must differ, found {[c.name for c in configs]}")
    models = model_names(args.model)
    read = [read_named(config) for config in configs]
    scored = [b for b in read if b.has_ground_truth]
    if args.metric and not scored:
        raise ConfigError(f"--metric {args.metric}: every benchmark hides its answers; nothing is scored here")
    if args.metric:
        require_metric(args.metric, scored[0], "--metric")
    if args.predictions and not scored:
        raise ConfigError(f"--predictions: {read[0].name} ({read[0].split}) hides its answers; only its server scores")
    for benchmark in read:
        if not benchmark.has_ground_truth and PROTOCOLS[benchmark.protocol].submission is None:
            raise ConfigError(f"benchmark {benchmark.name} ({benchmark.split}) hides its answers and has no server")
    if args.predictions:
        return read  # no image is needed
    for model in models.values():
        retriever_type(model, None if Path(model).is_dir() else args.revision)
    return [with_readable_images(benchmark, args.dropped_share_max) for benchmark in read]


def checked_summary(benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """What was found, by benchmark; printed, too."""
    found = {}
    for b in benchmarks:
        queries, gallery = sum(len(t.queries) for t in b.tasks), sum(len(t.gallery) for t in b.tasks)
        found[b.name] = {"queries": queries, "gallery": gallery, "images": len(b.image_keys())}
        hidden = "" if b.has_ground_truth else ", answers hidden"
        print(f"{b.name} ({b.split}): {queries:,} queries, {gallery:,} in the gallery{hidden}")
        if note := dropped_note(b):
            print(f"  {note}")
    return {"checked": found}


def encode_and_rank(
    args: argparse.Namespace, benchmarks: Sequence[Benchmark]
) -> tuple[dict[str, dict[str, RetrievalResult]], dict[str, str]]:
    """(benchmark -> model -> result, model -> revision), one model in memory at a time."""
    vectors = args.vectors or args.out / "vectors"
    settings = EncodeSettings(args.batch_images, args.workers, args.precision, vectors, args.preprocess == "fast")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results: dict[str, dict[str, RetrievalResult]] = {b.name: {} for b in benchmarks}
    revisions = {}
    for name, model in model_names(args.model).items():
        revision = None if Path(model).is_dir() else args.revision
        loaded = [
            load_retriever(model, revision=revision, device=device, threads=threads)
            for device in args.device.split(",")
        ]
        scorer = ModelScorer(loaded[0], settings, model, loaded[1:])
        revisions[name] = scorer.revision
        for benchmark in benchmarks:
            results[benchmark.name][name] = scorer.retrieve(benchmark)
            log.info("evaluate: %s on %s", name, benchmark.name)
    return results, revisions


def write_results(
    out: Path,
    evaluation: Mapping[str, Any],
    hidden: Sequence[Benchmark],
    results: Mapping[str, Mapping[str, RetrievalResult]],
) -> None:
    """Write evaluation.json, results.md and the files for servers, and print the page."""
    out.mkdir(parents=True, exist_ok=True)
    files = {out / "evaluation.json": json.dumps(evaluation, indent=1) + "\n"}
    for benchmark in hidden:
        for model, result in results[benchmark.name].items():
            folder = out / "submissions" / benchmark.name / model
            for file, content in submission_files(benchmark, result).items():
                files[folder / file] = json.dumps(content)
    page = results_page(evaluation["benchmarks"])
    files[out / "results.md"] = page
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(page)
    for path in files:
        print(f"written: {path}")
