"""What every benchmark is made of: composed queries over a gallery, in one task or several; and how they are ranked.

Pure but for reading annotation files and images. An image is named by a key, the benchmark's own id as text. A gallery
entry is an image unless `Benchmark.items` says otherwise (MMEB ranks texts, and images with texts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


class Item(NamedTuple):
    """A gallery entry: an image, a text, or both."""

    image: str | None
    text: str = ""


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        query_id: the benchmark's own.
        reference: key of its image; None where it has none.
        text: the template filled in; empty where it has none.
        right: gallery keys that answer it, the one target first; empty where the benchmark hides them.
        wordings: the same query in several words, `text` the first; empty where there is one wording.
        candidates: gallery keys that it is ranked over; the whole gallery where empty.
        group: gallery keys of CIRR's group of near-copies.
    """

    query_id: str
    reference: str | None
    text: str
    right: tuple[str, ...]
    wordings: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    group: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Queries over one gallery: a category of FashionIQ, a task of GeneCIS, a dataset of MMEB.

    Attributes:
        name: empty for a benchmark of one task.
        queries: in the file's order.
        gallery: keys, in the order of their vectors.
    """

    name: str
    queries: list[Query]
    gallery: list[str]

    @cached_property
    def place(self) -> dict[str, int]:
        """Gallery key -> position."""
        return {key: n for n, key in enumerate(self.gallery)}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it was read.

    Attributes:
        name: for the report.
        protocol: name of its protocol.
        split: val, test, ...
        templates: per task the query template that made the texts; stored with each score.
        tasks: at least one.
        read: image key -> image, RGB.
        items: gallery key -> entry, for galleries that are not of images alone.
    """

    name: str
    protocol: str
    split: str
    templates: dict[str, str]
    tasks: list[Task]
    read: Callable[[str], Image]
    items: Mapping[str, Item] = field(default_factory=dict)

    def item(self, key: str) -> Item:
        """The gallery entry of a key."""
        return self.items.get(key, Item(key))

    def images(self) -> list[str]:
        """Keys of all images, each once, in the order of gallery and queries."""
        found: dict[str, None] = {}
        for task in self.tasks:
            for key in task.gallery:
                if (image := self.item(key).image) is not None:
                    found[image] = None
            found.update(dict.fromkeys(q.reference for q in task.queries if q.reference is not None))
        return list(found)

    @property
    def is_scored(self) -> bool:
        """Whether the right answers are known."""
        return all(q.right for t in self.tasks for q in t.queries)


class Prediction(NamedTuple):
    """What a model answers to one query: keys, best first; `group` is CIRR's subset ranking."""

    ranked: list[str]
    group: Sequence[str] = ()


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is read, ranked and scored.

    Attributes:
        name: as evaluate.benchmark names it.
        templates: pinned query template per task ("" for all).
        main: the metric that stands for the benchmark.
        read: (folder, split, template or None, name) -> Benchmark.
        predict: (task, query, similarity to each gallery entry (m,)) -> Prediction.
        measure: (query, prediction) -> metric -> value of this one query.
        submission: predictions -> file name -> content, in the form of the benchmark's server; None where it has no
            server.
        source: where definition and template come from.
    """

    name: str
    templates: Mapping[str, str]
    main: str
    read: Callable[[Path, str, str | None, str], Benchmark]
    predict: Callable[[Task, Query, np.ndarray], Prediction]
    measure: Callable[[Query, Prediction], dict[str, float]]
    submission: Callable[[Sequence[tuple[Query, Prediction]]], dict[str, Any]] | None
    source: str


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        DataError: not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); download it again") from error


def first_of(folder: Path, *places: str) -> Path:
    """The first of several places of a file or folder that is there: benchmarks are unpacked in more than one way.

    Raises:
        ConfigError: none is.
    """
    for place in places:
        if (folder / place).exists():
            return folder / place
    raise ConfigError(
        f"{folder}: none of {', '.join(places)} is there; evaluate.benchmark's `path` names the folder with the benchmark's own files"
    )


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with every {name} of `values` put in, in one pass: what is put in is not looked at again.

    Raises:
        ConfigError: the template names something else.
    """
    names = set(re.findall(r"\{(\w+)\}", template))
    if unknown := names - set(values):
        raise ConfigError(f"template {template!r}: this benchmark has {sorted(values)}, not {sorted(unknown)}")
    return re.sub(r"\{(\w+)\}", lambda m: values[m[1]], template)


def image_reader(files: Mapping[str, Path]) -> Callable[[str], Image]:
    """key -> image, RGB; the file is opened when it is asked for."""

    def read(key: str) -> Image:
        from PIL import Image

        path = files.get(key)
        if path is None or not path.is_file():
            raise DataError(
                f"image {key}: {path or 'no file'} is not there; the images have terms of their own, see the benchmark's page"
            )
        return Image.open(path, formats=("JPEG", "PNG", "WEBP")).convert("RGB")

    return read


# --- ranking ----------------------------------------------------------------------------------------------------------


def order(task: Task, similarity: np.ndarray, top: int, *, without: str | None = None) -> list[str]:
    """Keys of the gallery by falling similarity, ties by position.

    Args:
        task: gives the gallery's order.
        similarity: (m,) to each gallery entry.
        top: a count.
        without: a key that is taken out of the ranking.
    """
    count = min(top + 1, len(similarity))
    least = np.partition(similarity, len(similarity) - count)[len(similarity) - count]
    near = np.flatnonzero(similarity >= least)  # a full sort of 123,403 images for the sake of 50 is the dearer way
    best = near[np.argsort(-similarity[near], kind="stable")][:count]
    return [task.gallery[n] for n in best if task.gallery[n] != without][:top]


def order_candidates(task: Task, query: Query, similarity: np.ndarray) -> list[str]:
    """A query's own candidates by falling similarity, each key once; of equal ones the right one comes last.

    So a model that gives all candidates one vector scores nothing, though the files name the target first.
    """
    right = set(query.right)
    return sorted(dict.fromkeys(query.candidates), key=lambda key: (-float(similarity[task.place[key]]), key in right))


def recalls(target: str, ranked: Sequence[str], ranks: Sequence[int], name: str = "recall_at") -> dict[str, float]:
    """{name}_{k}: whether the target is among the first k, 0 or 1."""
    return {f"{name}_{k}": float(target in ranked[:k]) for k in ranks}
