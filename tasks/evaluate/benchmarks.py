"""Read the benchmarks that `evaluate.benchmark` names, or build one from the held-out triplets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import BenchmarkConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Query, Task
from tasks.evaluate.protocols.base import filled
from tasks.store import Store
from tasks.train.splits import held_out_images

if TYPE_CHECKING:
    from PIL.Image import Image


def read_benchmark(folder: Path, template: str, name: str | None = None) -> Benchmark:
    """A benchmark in CIRCO's format, in one folder: annotations.json and images/<id>.jpg; every file of images/ is in
    the gallery.

    Raises:
        ConfigError: no annotations.json there, or a template without {relative_caption}.
        DataError: an annotation names an image that is not there.
    """
    path = folder / "annotations.json"
    if not path.is_file():
        raise ConfigError(
            f"{path}: missing; 'evaluate.benchmark' names a folder with annotations.json in CIRCO's format and images/<id>.jpg"
        )
    return PROTOCOLS["circo"].read(folder, "all", template, name or folder.name)


def held_out_benchmark(
    triplets: Sequence[Mapping[str, Any]], share: float, template: str, read: Callable[[str], Image]
) -> Benchmark:
    """The held-out triplets as a benchmark: their first instruction (the others are wordings), all their images as
    gallery.

    An image is right when it is the target of a triplet with the same query image and text.

    Raises:
        DataError: nothing is held out.
    """
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], share)
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
