"""Read the benchmarks that `evaluate.benchmark` names, or build one from the held-out triplets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import BenchmarkConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Query, Task
from tasks.evaluate.protocols.base import fill_template
from tasks.evaluate.readable import with_readable_images
from tasks.evaluate.subset import with_subset
from tasks.store import Store
from tasks.train.splits import held_out_images

if TYPE_CHECKING:
    from PIL.Image import Image


def read_benchmark(folder: Path, template: str, name: str | None = None) -> Benchmark:
    """Read a benchmark in CIRCO's format from one folder: annotations.json and images/<id>.jpg.

    Every file in images/ is in the gallery.

    Raises:
        ConfigError: no annotations.json there, or a template without {relative_caption}.
        DataError: an annotation names an image that is not there.
    """
    path = folder / "annotations.json"
    if not path.is_file():
        raise ConfigError(
            f"{path}: missing; 'evaluate.benchmark' names a folder with annotations.json in CIRCO's format and "
            "images/<id>.jpg"
        )
    return PROTOCOLS["circo"].read(folder, "all", template, name or folder.name)


def held_out_benchmark(
    triplets: Sequence[Mapping[str, Any]], share: float, template: str, read_image: Callable[[str], Image]
) -> Benchmark:
    """The held-out triplets as a benchmark: their first instruction (the others are wordings), all their images as
    gallery.

    The ground truths of a query are the targets of all triplets with the same query image and first instruction.

    Args:
        triplets: rows of the table, all of the version.
        share: train.held_out_share.
        template: of the query text; may use {relative_caption} and {shared_concept} (empty here).
        read_image: image id -> image.
    Raises:
        DataError: nothing is held out.
    """
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], share)
    rows = [t for t in triplets if t["query_image_id"] in held_out]
    if not rows:
        raise DataError(
            f"evaluate: of {len(triplets)} triplets none is held out (train.held_out_share is {share}, and only whole "
            "connected components are); raise the share, or name a folder in evaluate.benchmark"
        )
    gallery = sorted({i for t in rows for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])})
    targets: dict[tuple[str, str], set[str]] = {}
    for t in rows:
        targets.setdefault((t["query_image_id"], t["instructions"][0]), set()).add(t["target_image_id"])
    queries = []
    for t in rows:
        reference, target = t["query_image_id"], t["target_image_id"]
        texts = tuple(
            fill_template(template, {"relative_caption": text, "shared_concept": ""}) for text in t["instructions"]
        )
        other_targets = sorted(targets[reference, t["instructions"][0]] - {target})
        wordings = texts if len(texts) > 1 else ()
        queries.append(Query(t["triplet_id"], reference, texts[0], (target, *other_targets), wordings))
    return Benchmark("held-out triplets", "circo", "held out", {"": template}, [Task("", queries, gallery)], read_image)


def read_benchmarks(params: Params, store: Store, triplets: Sequence[Mapping[str, Any]]) -> list[Benchmark]:
    """The benchmarks that `evaluate.benchmark` names, in its order, or the held-out triplets where it names none.

    Raises:
        ConfigError: two of the same name.
        DataError: too large a share of a benchmark's queries needs an image that is missing or broken.
    """
    config = params.evaluate
    if not config.benchmark:
        return [held_out_benchmark(triplets, params.train.held_out_share, config.template, store.read_image)]
    share_max = config.dropped_queries_share_max
    if isinstance(config.benchmark, str):
        folder = Path(config.benchmark)
        return [with_readable_images(checked(read_benchmark(folder, config.template)), share_max)]
    named: Sequence[BenchmarkConfig] = config.benchmark
    if len({b.name for b in named}) < len(named):
        raise ConfigError(f"evaluate.benchmark: names must differ, found {[b.name for b in named]}")
    return [with_readable_images(read_named(b), share_max) for b in named]


def read_named(config: BenchmarkConfig) -> Benchmark:
    """Read one benchmark by its protocol, and check what can be known from its files alone.

    Raises:
        ConfigError: its folder or files are not there.
        DataError: its files are not in the protocol's format, or contradict each other.
    """
    folder = Path(config.path)
    if not folder.is_dir():
        raise ConfigError(f"benchmark {config.name}: {folder}: no such folder; its download page says what it holds")
    try:
        made = PROTOCOLS[config.protocol].read(folder, config.split, config.template, config.name)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"benchmark {config.name}: {folder}: not in the format of '{config.protocol}' "
            f"({type(error).__name__}: {error}); see the docstring of tasks/evaluate/protocols/{config.protocol}.py"
        ) from error
    made = checked(made if config.instruction is None else replace(made, instruction=config.instruction))
    return with_subset(made, Path(config.subset)) if config.subset else made


def checked(benchmark: Benchmark) -> Benchmark:
    """The benchmark, if its queries are in order.

    Raises:
        DataError: no queries, an id twice, a query that ranks nothing, or answers of only some of the queries.
    """
    queries = [query for task in benchmark.tasks for query in task.queries]
    name = f"benchmark {benchmark.name} ({benchmark.split})"
    if not queries:
        raise DataError(f"{name}: no queries; download its files again")
    ids = Counter(query.query_id for query in queries)
    if twice := [i for i, count in ids.items() if count > 1]:
        raise DataError(f"{name}: query ids {twice[:3]} stand there more than once; download its files again")
    answered = sum(bool(query.ground_truths) or not query.is_answerable for query in queries)
    if 0 < answered < len(queries):
        first = next(query.query_id for query in queries if query.is_answerable and not query.ground_truths)
        raise DataError(
            f"{name}: {answered} of {len(queries)} queries have answers, query {first} has none; a split has all "
            "(val) or hides all (test)"
        )
    for task in benchmark.tasks:
        if not task.gallery:
            raise DataError(f"{name}: the gallery of task {task.name!r} is empty; download its images")
        for query in task.queries:
            if unknown := [key for key in query.ground_truths if key not in task.positions]:
                raise DataError(f"{name}: the answers {unknown[:3]} of query {query.query_id} are not in the gallery")
    return benchmark


def require_metric(metric: str, benchmark: Benchmark, parameter: str = "promote.metric") -> None:
    """Refuse a metric that the benchmark's protocol does not have, before anything is encoded.

    Raises:
        ConfigError: as said.
    """
    metrics = PROTOCOLS[benchmark.protocol].metrics()
    if metric not in metrics:
        raise ConfigError(f"'{parameter}' is {metric!r}: benchmark {benchmark.name} has {metrics}")
