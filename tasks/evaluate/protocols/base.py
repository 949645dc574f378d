"""Data model of a retrieval benchmark, and the reading and ranking functions that the protocols share.

A benchmark is a list of tasks; a task is a list of composed queries (image, text, or both) over one gallery. Images and
gallery entries are identified by string keys, the benchmark's own ids. A gallery entry is the image of that key unless
`Benchmark.items` says otherwise (MMEB ranks texts, and images with texts).

Pure, except for reading annotation files and images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.models.decoding import decode

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class UnreadableImageError(DataError):
    """An image file of a benchmark that is missing or cannot be decoded."""


class GalleryItem(NamedTuple):
    """A gallery entry: an image (by key), a text, or both."""

    image: str | None
    text: str = ""


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        query_id: the benchmark's own id.
        reference: key of the query image; None where the query has no image.
        text: the filled-in template; empty where the query has no text.
        ground_truths: gallery keys of the correct answers, the single target first; empty where the benchmark hides
            them.
        wordings: the same query in several wordings, `text` the first; empty where there is one wording.
        candidates: gallery keys to rank for this query; the whole gallery where empty.
        subset: CIRR: gallery keys of the five images that look like the reference.
        more_references: keys of further query images; the query's vector is the mean over its images.
        record: what else the file says about the query, for summaries by group and for the server's files.
        is_answerable: False where the files say that no gallery entry is right: it finds nothing, and counts as that.
    """

    query_id: str
    reference: str | None
    text: str
    ground_truths: tuple[str, ...]
    wordings: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    subset: tuple[str, ...] = ()
    more_references: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)
    is_answerable: bool = True


@dataclass(frozen=True)
class Task:
    """Queries over one gallery: a category of FashionIQ, a task of GeneCIS, a dataset of MMEB.

    Attributes:
        name: empty for a benchmark of a single task.
        queries: in the file's order.
        gallery: keys, in the order of their vectors.
    """

    name: str
    queries: list[Query]
    gallery: list[str]

    @cached_property
    def positions(self) -> dict[str, int]:
        """Gallery key -> position in `gallery`."""
        return {key: n for n, key in enumerate(self.gallery)}


@dataclass
class DroppedQueries:
    """Queries of a benchmark's files that cannot be used.

    Attributes:
        count: how many.
        gallery_images: images that are missing from the galleries, a count.
        first: what is wrong with the first few.
    """

    count: int = 0
    gallery_images: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, detail: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < 3:
            self.first.append(detail)

    def require_some(self, kept: int) -> None:
        """Raise where nothing is left.

        Raises:
            DataError: no query can be used.
        """
        if self.count and not kept:
            raise DataError(f"{'; '.join(self.first)}; no query of the benchmark is left; download its files again")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, read from its files.

    Attributes:
        name: for the report.
        protocol: name of its protocol.
        split: val, test, ...
        templates: task name -> query template that made the texts; stored with each score.
        tasks: at least one.
        read_image: image key -> image, as `open_image` gives it.
        items: gallery key -> entry, for galleries that hold more than images.
        dropped: queries of the files that are left out.
        files: image key -> file that `read_image` reads, where images are files.
        instruction: task instruction of the queries for an MLLM; None for the model's own. Stored with each score.
        is_subset: some of the queries alone are scored, and so perhaps some of the tasks.
        has_gallery_list: False where the files do not say what the whole gallery is; a ranking may then name any image.
        no_images: where images were looked for, and none is; they cannot be encoded then, but a ranking can be scored.
    """

    name: str
    protocol: str
    split: str
    templates: dict[str, str]
    tasks: list[Task]
    read_image: Callable[[str], Image]
    items: Mapping[str, GalleryItem] = field(default_factory=dict)
    dropped: DroppedQueries = field(default_factory=lambda: DroppedQueries())
    files: Mapping[str, Path] = field(default_factory=dict)
    instruction: str | None = None
    is_subset: bool = False
    has_gallery_list: bool = True
    no_images: str = ""

    def item(self, key: str) -> GalleryItem:
        """The gallery entry of a key."""
        return self.items.get(key, GalleryItem(key))

    def image_keys(self) -> list[str]:
        """Keys of all images, each once, in the order of gallery and queries."""
        keys: dict[str, None] = {}
        for task in self.tasks:
            for key in task.gallery:
                if (image := self.item(key).image) is not None:
                    keys[image] = None
            keys.update(dict.fromkeys(q.reference for q in task.queries if q.reference is not None))
            keys.update(dict.fromkeys(key for q in task.queries for key in q.more_references))
        return list(keys)

    @property
    def has_ground_truth(self) -> bool:
        """Whether the correct answers of all queries are known, so that scores can be computed here."""
        return all(q.ground_truths or not q.is_answerable for t in self.tasks for q in t.queries)


class Prediction(NamedTuple):
    """A model's answer to one query: gallery keys, best first; `subset` is CIRR's ranking within the subset."""

    ranked: list[str]
    subset: Sequence[str] = ()


class TaskValues(NamedTuple):
    """The metrics of a task's queries: `values` (n, k) of n queries and k metrics."""

    task: str
    queries: Sequence[Query]
    values: np.ndarray


class Size(NamedTuple):
    """Of a whole split, as its authors state it; 0 where they do not: queries, gallery entries and tasks, counts."""

    queries: int = 0
    gallery: int = 0
    tasks: int = 0


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is read, ranked and scored.

    Attributes:
        name: as evaluate.benchmark names it.
        rule: one sentence for reports and model cards: what is ranked and how it is scored.
        source: where the definition and the template come from.
        templates: task name ("" for all tasks) -> pinned query template.
        main_metric: the metric that stands for the benchmark.
        read: (folder, split, template or None, name) -> Benchmark.
        predict: (task, query, similarity to each gallery entry (m,)) -> Prediction.
        measure: (query, prediction) -> metric -> value for this one query.
        submission: predictions -> file name -> content, in the format of the benchmark's server; None where it has no
            server.
        summary: (metrics, the values of every task) -> further official numbers; None where the means are all of them.
        sizes: split -> its size; a smaller benchmark's score is marked, because published ones are of the whole.
    """

    name: str
    rule: str
    source: str
    templates: Mapping[str, str]
    main_metric: str
    read: Callable[[Path, str, str | None, str], Benchmark]
    predict: Callable[[Task, Query, np.ndarray], Prediction]
    measure: Callable[[Query, Prediction], dict[str, float]]
    submission: Callable[[Sequence[tuple[Query, Prediction]]], dict[str, Any]] | None = None
    summary: Callable[[Sequence[str], Sequence[TaskValues]], dict[str, float]] | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)

    def metrics(self) -> list[str]:
        """Names of the metrics that `measure` gives; known without a benchmark's files."""
        return list(self.measure(Query("", None, "", ("target",), subset=("target",)), Prediction(["target"])))


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


def read_records(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON file that is a list of objects.

    Args:
        path: the file.
        fields: that each object must have.
    Raises:
        DataError: not JSON, not a list of objects, or an object without one of the fields.
    """
    return checked_records(path, read_json(path), fields)


def checked_records(path: Path, rows: Any, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The rows, if each is an object with all the fields. Arguments and errors as of `read_records`."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects with {list(fields)}; download it again")
    for n, row in enumerate(rows):
        if missing := [name for name in fields if row.get(name) is None]:
            raise DataError(
                f"{path}: record {n} has no {missing}; expected {list(fields)}, found {sorted(row)}; is it the file of "
                "this benchmark and split?"
            )
    return rows


@contextmanager
def record_errors(where: str, record: Any) -> Iterator[None]:
    """Turn what reading one record of a file raises, because a field is of another type, into an error that names it.

    Args:
        where: file and record, such as "val.json: record 3".
        record: what stands there, for the message.
    Raises:
        DataError: as said.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        shown = json.dumps(record, default=str)[:200]
        raise DataError(f"{where} has a field of another form ({type(error).__name__}: {error}): {shown}") from error


def first_existing(folder: Path, *names: str) -> Path:
    """The first of several relative paths that exists: benchmarks are unpacked in more than one layout.

    Raises:
        ConfigError: none exists.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"{folder}: none of {', '.join(names)} is there; evaluate.benchmark's `path` names the folder with the "
        "benchmark's own files"
    )


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """The template with every {name} replaced by its value, in one pass: braces inside a value are not replaced.

    Raises:
        ConfigError: the template names a field that is not in `values`.
    """
    names = set(re.findall(r"\{(\w+)\}", template))
    if unknown := names - set(values):
        raise ConfigError(f"template {template!r}: this benchmark has {sorted(values)}, not {sorted(unknown)}")
    return re.sub(r"\{(\w+)\}", lambda m: values[m[1]], template)


KEPT_MODES = ("P", "PA", "RGBA", "LA")  # of images that are converted to RGB by the model's preparation


def open_image(key: str, path: Path | None) -> Image:
    """An image file, decoded to its end: RGB, or as it is where it has a palette or transparency, because the model's
    preparation converts in the order of the released code (an MLLM resizes first).

    Raises:
        UnreadableImageError: not there, or not decodable; the file is named.
    """
    from PIL import Image

    if path is None or not path.is_file():
        raise UnreadableImageError(
            f"image {key}: {path or 'no file'} is not there; the images have terms of their own, see the "
            "benchmark's page"
        )
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            decode(image)
            return image.copy() if image.mode in KEPT_MODES else image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"image {key}: {path} cannot be decoded ({error}); download it again") from error


def image_reader(files: Mapping[str, Path]) -> Callable[[str], Image]:
    """A function key -> image as `open_image` gives it; a file is opened when it is asked for."""
    return lambda key: open_image(key, files.get(key))


# --- ranking ----------------------------------------------------------------------------------------------------------


def rank_gallery(task: Task, similarity: np.ndarray, top_k: int, *, exclude: str | None = None) -> list[str]:
    """The `top_k` gallery keys by falling similarity, ties by gallery position.

    Args:
        task: gives the gallery's order.
        similarity: (m,) similarity of the query to each gallery entry.
        top_k: a count.
        exclude: a key that is left out of the ranking.
    """
    count = min(top_k + 1, len(similarity))
    # A partition before the sort: sorting all 123,403 images of CIRCO for the first 50 is the slower way.
    threshold = np.partition(similarity, len(similarity) - count)[len(similarity) - count]
    nearest = np.flatnonzero(similarity >= threshold)
    best = nearest[np.argsort(-similarity[nearest], kind="stable")][:count]
    return [task.gallery[n] for n in best if task.gallery[n] != exclude][:top_k]


def rank_candidates(task: Task, query: Query, similarity: np.ndarray) -> list[str]:
    """A query's own candidates by falling similarity, each key once; among equals a correct answer comes last.

    So a model that gives all candidates the same vector scores zero, although the files name the target first.
    """
    correct = set(query.ground_truths)
    return sorted(
        dict.fromkeys(query.candidates), key=lambda key: (-float(similarity[task.positions[key]]), key in correct)
    )


def recall_at_ranks(
    target: str, ranked: Sequence[str], ranks: Sequence[int], name: str = "recall_at"
) -> dict[str, float]:
    """{name}_{k} -> 1.0 where the target is among the first k, else 0.0."""
    return {f"{name}_{k}": float(target in ranked[:k]) for k in ranks}
