"""Evaluate: the base checkpoint, the candidate and the model in place on composed retrieval, by each benchmark's own protocol.

Reads models/candidate, models/promoted (if there is one), and the benchmarks that `evaluate.benchmark` names (tasks/protocols), or one
folder in CIRCO's format, or else the version's held-out triplets; writes reports/evaluation.json, and reports/evaluation/ with
the files for the servers of splits whose answers are hidden. The first benchmark is the one that promotion goes by.

Beside each composed score stand its halves alone and the gap to the better half: a model that does not beat both ignores half
of the query; what other wordings of the same query give; and 95% intervals over the queries (tasks/evaluate/bootstrap.py). Pictures of the
queries and answers that also lie in the training data are counted. With `evaluate.truth` the sample world's truth measures the triplets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import BenchmarkConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.evaluate.bootstrap import LEVEL, RESAMPLES, interval, resampled_means
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction, Protocol, Query, Task
from tasks.evaluate.protocols.base import filled
from tasks.fingerprints.perceptual import hash_hits, perceptual_hash, thumbnail, thumbnail_distance
from tasks.models.retrievers.clip import Retriever, load_retriever
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.splits import held_out_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.models.retrievers.clip import AnyRetriever

log = logging.getLogger(__name__)

HALVES = ("composed", "image_only", "text_only")
BLOCK_QUERIES = 256


def read_benchmark(folder: Path, template: str, name: str | None = None) -> Benchmark:
    """A benchmark in CIRCO's format, in one folder: annotations.json and images/<id>.jpg; every file of images/ is in the gallery.

    Raises:
        ConfigError: no annotations.json there, or a template without {relative_caption}.
        DataError: an annotation names a picture that is not there.
    """
    path = folder / "annotations.json"
    if not path.is_file():
        raise ConfigError(f"{path}: missing; 'evaluate.benchmark' names a folder with annotations.json in CIRCO's format and images/<id>.jpg")
    return PROTOCOLS["circo"].read(folder, "all", template, name or folder.name)


def held_out_benchmark(triplets: Sequence[Mapping[str, Any]], share: float, template: str, read: Callable[[str], Image]) -> Benchmark:
    """The held-out triplets as a benchmark: their first instruction (the others are wordings), all their pictures as gallery.

    A picture is right when it is the target of a triplet with the same query picture and text.

    Raises:
        DataError: nothing is held out.
    """
    held_out = held_out_pictures([(t["query_image_id"], t["target_image_id"]) for t in triplets], share)
    rows = [t for t in triplets if t["query_image_id"] in held_out]
    if not rows:
        raise DataError(
            f"evaluate: of {len(triplets)} triplets none is held out (train.held_out_share is {share}, and only whole connected components are); "
            "raise the share, or name a folder in evaluate.benchmark"
        )
    gallery = sorted({i for t in rows for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])})
    right: dict[tuple[str, str], set[str]] = {}
    for t in rows:
        right.setdefault((t["query_image_id"], t["instructions"][0]), set()).add(t["target_image_id"])
    queries = []
    for t in rows:
        texts = tuple(filled(template, {"relative_caption": text, "shared_concept": ""}) for text in t["instructions"])
        others = sorted(right[t["query_image_id"], t["instructions"][0]] - {t["target_image_id"]})
        wordings = texts if len(texts) > 1 else ()
        queries.append(Query(t["triplet_id"], t["query_image_id"], texts[0], (t["target_image_id"], *others), wordings))
    return Benchmark("held-out triplets", "circo", "held out", {"": template}, [Task("", queries, gallery)], read)


# --- encoding and ranking ---------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What one model answers to a benchmark.

    Attributes:
        predicted: half -> per task its (query, prediction) pairs.
        wordings: per task, for each query with several wordings, the prediction of each.
    """

    predicted: dict[str, list[list[tuple[Query, Prediction]]]] = field(default_factory=dict)
    wordings: list[list[tuple[Query, list[Prediction]]]] = field(default_factory=list)


def picture_features(retriever: Retriever, benchmark: Benchmark, batch: int) -> dict[str, np.ndarray]:
    """Raw features of every picture by a CLIP, each encoded once: key -> (d,). Studies with a locked picture tower hand them to `measure`."""
    keys = benchmark.pictures()
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(keys), batch):
        part = keys[start : start + batch]
        found.update(zip(part, retriever.raw_images([benchmark.read(key) for key in part]), strict=True))
    return found


def ranked(protocol: Protocol, task: Task, queries: Sequence[Query], rows: np.ndarray, gallery: np.ndarray) -> Iterator[Prediction]:
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


def answer(retriever: AnyRetriever, benchmark: Benchmark, batch: int, pictures: Mapping[str, np.ndarray] | None = None) -> Answers:
    """Rank every query of a benchmark: composed, by its picture alone, by its text alone, and composed in its other wordings.

    Args:
        retriever: the model; how picture and text become one vector is its own affair.
        benchmark: queries and galleries.
        batch: pictures, texts or both together in one pass of the model, a count.
        pictures: raw features, where they are known: studies with a locked picture tower encode it once.
    """
    protocol = PROTOCOLS[benchmark.protocol]
    embedder = retriever.embedder(benchmark.read, batch, pictures)
    said = [w for t in benchmark.tasks for q in t.queries for w in (q.text, *q.wordings)]
    embedder.prepare(benchmark.pictures(), [*said, *(i.text for i in benchmark.items.values())])
    out = Answers({half: [] for half in HALVES})
    for task in benchmark.tasks:
        gallery = embedder.rows([(i.picture, i.text) for i in map(benchmark.item, task.gallery)], "candidate")
        halves = {"composed": [(q.reference, q.text) for q in task.queries], "image_only": [(q.reference, "") for q in task.queries]}
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


# --- scoring ----------------------------------------------------------------------------------------------------------


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
    """metric -> unweighted mean over the tasks of their queries' means; where there are several tasks also <task>.<metric>."""
    means = [part.mean(axis=0) for part in table.parts]
    out = {name: float(np.mean([m[n] for m in means])) for n, name in enumerate(table.names)}
    if len(means) > 1:
        out |= {f"{task.name}.{name}": float(m[n]) for task, m in zip(benchmark.tasks, means, strict=True) for n, name in enumerate(table.names)}
    return out


def measure(retriever: AnyRetriever, benchmark: Benchmark, batch: int, *, pictures: Mapping[str, np.ndarray] | None = None) -> dict[str, dict[str, float]]:
    """half -> metric -> score, without intervals: for benchmarks and studies. Arguments as of `answer`."""
    answers = answer(retriever, benchmark, batch, pictures)
    return {half: means_of(benchmark, table_of(benchmark, answers.predicted[half])) for half in HALVES}


def paraphrase_spread(benchmark: Benchmark, answers: Answers, metric: str) -> dict[str, float]:
    """How much a query's score hangs on its words: over the queries with several wordings, means of the metric.

    Returns:
        {"queries", "wordings" (mean count), "mean", "worst" and "best" (each query by its worst, best wording), "spread" (best - worst)};
        empty where no query has several.
    """
    measure_one = PROTOCOLS[benchmark.protocol].measure
    values = [[measure_one(query, p)[metric] for p in predictions] for task in answers.wordings for query, predictions in task]
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
        gaps[model] = {"over": better, "value": found["composed"][metric] - found[better][metric], "interval": interval(difference)}
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
        "intervals": {model: {half: {name: interval(draws[f"{model}/{half}"][:, n]) for n, name in enumerate(names)} for half in HALVES} for model in answers},
        "composition_gap": gaps,
        "gain": gains,
        "paraphrases": {model: spread for model, spread in spreads.items() if spread},
    }


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
        raise ConfigError(f"{path}: missing; 'evaluate.truth' names the sample world's truth file, leave it empty for any other source")
    scenes: dict[str, Scene] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("scene"):
            scenes[row["path"]] = Scene.from_record(row["scene"])
    return truth.measure(triplets, lambda image_id: scenes.get(source_uris.get(image_id, "").partition(":")[2]))


# --- what was seen in training ----------------------------------------------------------------------------------------


class Fingerprints:
    """Wraps a picture reader and keeps the perceptual hash and thumbnail of each picture that passes, for a search for copies."""

    def __init__(self, read: Callable[[str], Image]) -> None:
        self._read = read
        self.found: dict[str, tuple[int, bytes]] = {}

    def __call__(self, key: str) -> Image:
        image = self._read(key)
        if key not in self.found:
            self.found[key] = (perceptual_hash(image), thumbnail(image))
        return image


def copies_among(found: Mapping[str, tuple[int, bytes]], known: Sequence[tuple[int, bytes]], *, distance_bits: int, cell_distance: float) -> set[str]:
    """Keys of pictures of which a copy is known, by ingest's own rule for near-duplicates (tasks/fingerprints/perceptual.py).

    Args:
        found: key -> (hash, thumbnail).
        known: hashes and thumbnails of training pictures.
        distance_bits: as ingest.hash_distance_bits.
        cell_distance: as ingest.thumbnail_distance.
    """
    if not found or not known:
        return set()
    keys = list(found)
    thumbnails = np.stack([np.frombuffer(t, np.uint8) for _, t in known])
    hashes = np.array([found[key][0] for key in keys], np.uint64)
    copies = set()
    for row, hits in hash_hits(hashes, np.array([h for h, _ in known], np.uint64), distance_bits=distance_bits):
        if len(hits) and bool((thumbnail_distance(found[keys[row]][1], thumbnails[hits]) <= cell_distance).any()):
            copies.add(keys[row])
    return copies


def trained_pictures(triplets: Sequence[Mapping[str, Any]], share: float) -> set[str]:
    """Ids of the pictures that training may show: of all triplets, but for the held-out ones."""
    held_out = held_out_pictures([(t["query_image_id"], t["target_image_id"]) for t in triplets], share)
    rows = [t for t in triplets if t["query_image_id"] not in held_out and t["target_image_id"] not in held_out]
    return {i for t in rows for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])} - held_out


def known_fingerprints(params: Params, store: Store, triplets: Sequence[Mapping[str, Any]]) -> list[tuple[int, bytes]]:
    """Hash and thumbnail of each picture that training may have shown: those of the version, and of train.datasets' files."""
    shown = trained_pictures(triplets, params.train.held_out_share)
    columns = store.read_table("images", ["image_id", "phash", "thumbnail"]).to_pydict()
    rows = zip(columns["image_id"], columns["phash"], columns["thumbnail"], strict=True)
    known = [(int(h, 16), t) for i, h, t in rows if i in shown and h and t]
    for dataset in params.train.datasets:
        from tasks.train.datasets import read_dataset

        _, files, _ = read_dataset(dataset)
        for path in files.values():
            from PIL import Image

            with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
                whole = image.convert("RGB")
            known.append((perceptual_hash(whole), thumbnail(whole)))
    return known


def contamination_of(benchmark: Benchmark, found: Mapping[str, tuple[int, bytes]], known: Sequence[tuple[int, bytes]], params: Params) -> dict[str, Any]:
    """How many of the benchmark's pictures were trained on.

    Returns:
        {"pictures", "copies", "share"} of the pictures of queries and answers, the same of the other pictures of the gallery
        ("distractors", "distractor_copies"), and some of the copies' keys.
    """
    copies = copies_among(found, known, distance_bits=params.ingest.hash_distance_bits, cell_distance=params.ingest.thumbnail_distance)
    asked: set[str] = set()
    for task in benchmark.tasks:
        for query in task.queries:
            asked.update(p for p in (query.reference, *(benchmark.item(key).picture for key in query.right)) if p)
    others = set(found) - asked
    return {
        "pictures": len(asked),
        "copies": len(copies & asked),
        "share": len(copies & asked) / max(1, len(asked)),
        "distractors": len(others),
        "distractor_copies": len(copies & others),
        "examples": sorted(copies & asked)[:10],
    }


# --- the stage --------------------------------------------------------------------------------------------------------


def benchmarks_of(params: Params, store: Store, triplets: Sequence[Mapping[str, Any]]) -> list[Benchmark]:
    """The benchmarks that params name, or the held-out split.

    Raises:
        ConfigError: two of one name.
    """
    config = params.evaluate
    if not config.benchmark:
        return [held_out_benchmark(triplets, params.train.held_out_share, config.template, store.read_image)]
    if isinstance(config.benchmark, str):
        return [read_benchmark(Path(config.benchmark), config.template)]
    named: Sequence[BenchmarkConfig] = config.benchmark
    if len({b.name for b in named}) < len(named):
        raise ConfigError(f"evaluate.benchmark: names must differ, found {[b.name for b in named]}")
    return [PROTOCOLS[b.protocol].read(Path(b.path), b.split, b.template, b.name) for b in named]


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
        raise ConfigError("evaluate.benchmark: every benchmark hides its answers; name one with known answers first, promotion goes by it")
    readers = {b.name: Fingerprints(b.read) for b in benchmarks}
    benchmarks = [replace(b, read=readers[b.name]) for b in benchmarks]
    models = {"base": params.train.base_model, "finetuned": str(candidate)} | ({"promoted": str(in_place)} if in_place.is_dir() else {})
    revisions: dict[str, str] = {}
    answers: dict[str, dict[str, Answers]] = {b.name: {} for b in benchmarks}
    for name, model in models.items():
        revision = params.train.revision if name == "base" else None
        retriever = load_retriever(model, revision=revision, device=config.device, threads=max(2, params.open_run.threads))
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
            sections[benchmark.name]["contamination"] = contamination_of(benchmark, readers[benchmark.name].found, known, params)
        elif protocol.submission:
            for model, a in answers[benchmark.name].items():
                predicted = [pair for task in a.predicted["composed"] for pair in task]
                for file, content in protocol.submission(predicted).items():
                    store.write_bytes(store.folder("reports", "evaluation", benchmark.name, model, file), json.dumps(content).encode())
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
    figures = {f"{name}_{half}_{main}": scores[half][main] for name, scores in evaluation["metrics"].items() for half in HALVES}
    figures |= {f"{name}_composition_gap": gap["value"] for name, gap in evaluation["composition_gap"].items()}
    return StageReport("evaluate", read=evaluation["queries"], written=written, new=len(models), done=len(models), figures=figures)
