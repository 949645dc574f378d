"""i-CIR: one particular object a query ("this very temple, at night"); each object has a database of hard negatives.

Files, as icir_v1.0.0.tar.gz unpacks: <folder>/query_files.csv and database_files.csv, lines of image_path,text,instance
without a head (also below <folder>/annotations), and the images at those paths, below <folder> or beside it.

A query ranks the database of its own instance. Right are the images of the same instance and the same text.
Metrics: map, the mean over all queries of the average precision (trapezoidal, over the whole ranking), the paper's mAP;
instance_mean_map and instance_min_map, the means over the instances of their queries' mean and of their worst query.
Among equals a right image is ranked last. Source: billpsomas/icir at 04a1cd5, utils.py, utils_retrieval.py and
run_retrieval.py (arXiv:2510.25387). Template: the dataset's text as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols.base import (
    Benchmark,
    GalleryItem,
    Prediction,
    Protocol,
    Query,
    Task,
    TaskValues,
    fill_template,
    first_existing,
    image_reader,
    rank_candidates,
)

TEMPLATE = "{text}"
SHOWN = 50  # ranks that are kept; of all right images the places are


def read_rows(path: Path) -> list[tuple[str, str, str]]:
    """(image path, text, instance) of every line.

    Raises:
        DataError: a line without three fields, or a file without lines.
    """
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for n, row in enumerate(csv.reader(file)):
                if not row or (not n and row[0].strip().lower() == "image_path"):
                    continue
                if len(row) < 3:
                    raise DataError(f"{path}: line {n + 1} has {len(row)} fields; expected image_path,text,instance")
                rows.append((row[0].strip(), row[1].strip(), row[2].strip()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}; expected UTF-8, image_path,text,instance; download it again") from error
    if not rows:
        raise DataError(f"{path}: no lines; download it again")
    return rows


def image_files(folder: Path, paths: Sequence[str]) -> dict[str, Path]:
    """Image path of the lists -> file: below the folder, or below the one that holds it, as the official code reads."""
    first = next((root for root in (folder, folder.parent) if (root / paths[0]).is_file()), folder)
    return {path: first / path for path in paths}


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read the benchmark in `folder`.

    Raises:
        ConfigError: files that are not there; the WebDataset form, which has no image files.
        DataError: a file in another form, or a query without a right image.
    """
    template = TEMPLATE if template is None else template
    if (folder / "webdataset").is_dir() and not (folder / "query_files.csv").is_file():
        raise ConfigError(f"{folder}: this is the WebDataset form; unpack icir_v1.0.0.tar.gz, which holds image files")
    parents = ("", "annotations/")
    asked = read_rows(first_existing(folder, *(f"{p}query_files.csv" for p in parents)))
    database = read_rows(first_existing(folder, *(f"{p}database_files.csv" for p in parents)))
    items: dict[str, GalleryItem] = {}
    by_instance: dict[str, dict[str, str]] = {}  # instance -> key -> text
    for path, text, instance in database:
        key = f"{instance}/{path}"
        items[key] = GalleryItem(path)
        by_instance.setdefault(instance, {})[key] = text
    candidates = {instance: tuple(keys) for instance, keys in by_instance.items()}
    queries = []
    for n, (path, text, instance) in enumerate(asked):
        right = tuple(key for key, said in by_instance.get(instance, {}).items() if said == text)
        if not right:
            raise DataError(f"{folder}: query {n} ({instance}, {text!r}): no image of the database is right")
        words = fill_template(template, {"text": text})
        record = {"instance": instance}
        queries.append(Query(str(n), path, words, right, candidates=candidates[instance], record=record))
    files = image_files(folder, [*(path for path, _, _ in asked), *(path for path, _, _ in database)])
    task = Task("", queries, list(items))
    return Benchmark(name, "icir", split, {"": template}, [task], image_reader(files), items, files=files)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50 of the instance's database, and as `subset` the places (from 0) of the right images."""
    ranked, right = rank_candidates(task, query, similarity), set(query.ground_truths)
    return Prediction(ranked[:SHOWN], [str(n) for n, key in enumerate(ranked) if key in right])


def average_precision(places: Sequence[int]) -> float:
    """Average precision by the trapezoidal rule.

    Args:
        places: of all right images in the ranking, from 0, rising.
    """
    found = np.arange(len(places), dtype=np.float64)
    rank = np.array(places, np.float64)
    before = np.divide(found, rank, out=np.ones_like(rank), where=rank > 0)
    return float(((before + (found + 1) / (rank + 1)) / 2).sum() / (len(places) + 1e-5))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """map of one query; of a ranking without places (a file) those of its images."""
    right = set(query.ground_truths)
    places = [int(n) for n in prediction.subset if n.isdigit()]
    places = places or [n for n, key in enumerate(prediction.ranked) if key in right]
    return {"map": average_precision(places) if places else 0.0}


def summary(metrics: Sequence[str], tasks: Sequence[TaskValues]) -> dict[str, float]:
    """instance_mean_map and instance_min_map."""
    groups: dict[str, list[float]] = {}
    for query, row in zip(tasks[0].queries, tasks[0].values, strict=True):
        groups.setdefault(query.record["instance"], []).append(float(row[metrics.index("map")]))
    return {
        "instance_mean_map": float(np.mean([np.mean(values) for values in groups.values()])),
        "instance_min_map": float(np.mean([min(values) for values in groups.values()])),
    }


PROTOCOL = Protocol(
    name="icir",
    rule="i-CIR: one particular object a query, ranked in a database of the object's own with hard negatives.",
    source="billpsomas/icir 04a1cd5; template: the dataset's text",
    templates={"": TEMPLATE},
    main_metric="map",
    read=read,
    predict=predict,
    measure=measure,
    summary=summary,
)
