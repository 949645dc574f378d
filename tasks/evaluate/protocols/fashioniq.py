"""FashionIQ, original split: three categories, each with its own gallery.

Files: <folder>/captions/cap.{dress,shirt,toptee}.{val,test}.json, image_splits/split.*.json (or all directly in
<folder>), images/<id>.{png,jpg}, also below images/<category>/.

Metrics: Recall@10 and Recall@50; the benchmark's score is the unweighted mean of the three categories, and
recall_at_10_50_mean is the mean of both, by which the challenge ranked. The reference image stays in the ranking. The
gallery is the split's own list (15,536 images), not the smaller one of queries and targets alone. The test split hides
its targets: it makes the challenge's files <category>.test.pred.json, each query's record with its `ranking`.
Sources: XiaoxiaoGuo/fashion-iq at f71b16c, start_kit/eval.py; text: MegaPairs' "{c1}, and {c2}"
(eval/eval_fashioniq.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.evaluate.protocols.base import (
    IMAGE_SUFFIXES,
    Benchmark,
    DroppedQueries,
    Prediction,
    Protocol,
    Query,
    Size,
    Task,
    TaskValues,
    fill_template,
    first_existing,
    image_reader,
    rank_gallery,
    read_json,
    read_records,
    recall_at_ranks,
    record_errors,
)

TEMPLATE = "{caption_1}, and {caption_2}"
CATEGORIES = ("dress", "shirt", "toptee")
RANKS = (10, 50)


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read the three categories in `folder`; the captions in the other order are each query's second wording.

    Raises:
        ConfigError: files that are not there.
        DataError: a category without a query whose images its split lists and that has two captions.
    """
    template = TEMPLATE if template is None else template
    tasks, dropped = [], DroppedQueries()
    for category in CATEGORIES:
        path = first_existing(folder, *(f"{parent}cap.{category}.{split}.json" for parent in ("captions/", "")))
        gallery = read_json(
            first_existing(folder, *(f"{parent}split.{category}.{split}.json" for parent in ("image_splits/", "")))
        )
        known = set(gallery)
        queries = []
        for n, a in enumerate(read_records(path, ("candidate", "captions"))):
            with record_errors(f"{path}: record {n}", a):
                target = (a["target"],) if a.get("target") else ()
                if missing := [i for i in (a["candidate"], *target) if i not in known]:
                    dropped.add(f"{path}: query {n} names images {missing} that the split does not list")
                    continue
                if len(a["captions"]) != 2:
                    dropped.add(f"{path}: query {n} has {len(a['captions'])} captions; expected 2")
                    continue
                one, two = a["captions"]
                texts = tuple(
                    fill_template(template, {"caption_1": x, "caption_2": y}) for x, y in ((one, two), (two, one))
                )
                queries.append(Query(f"{category}:{n}", a["candidate"], texts[0], target, texts, record=a))
        dropped.require_some(len(queries))
        tasks.append(Task(category, queries, gallery))
    files = image_files(folder)
    return Benchmark(name, "fashioniq", split, {"": template}, tasks, image_reader(files), dropped=dropped, files=files)


def image_files(folder: Path) -> dict[str, Path]:
    """Image id -> file, of all files in the folder's image folders."""
    parents = [folder / parent / category for parent in ("images", "resized_images") for category in ("", *CATEGORIES)]
    found = (f for parent in parents if parent.is_dir() for f in sorted(parent.iterdir()))
    return {f.stem: f for f in found if f.suffix.lower() in IMAGE_SUFFIXES}


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50; the reference image is not excluded."""
    return Prediction(rank_gallery(task, similarity, max(RANKS)))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{10,50} of the target."""
    return recall_at_ranks(query.ground_truths[0], prediction.ranked, RANKS)


def submission(predictions: Sequence[tuple[Query, Prediction]]) -> dict[str, Any]:
    """The challenge's files, one a category: the caption records in order, each with its first 50 as `ranking`."""
    files: dict[str, list[dict[str, Any]]] = {}
    for query, prediction in predictions:
        category = query.query_id.partition(":")[0]
        files.setdefault(f"{category}.test.pred.json", []).append({**query.record, "ranking": prediction.ranked})
    return files


def summary(metrics: Sequence[str], tasks: Sequence[TaskValues]) -> dict[str, float]:
    """recall_at_10_50_mean: mean over the categories of (Recall@10 + Recall@50) / 2."""
    columns = [metrics.index(f"recall_at_{k}") for k in RANKS]
    return {"recall_at_10_50_mean": float(np.mean([t.values[:, columns].mean() for t in tasks]))}


PROTOCOL = Protocol(
    name="fashioniq",
    rule="FashionIQ, original split: three categories, each with its own gallery; scores are the unweighted mean of "
    "the three.",
    source="XiaoxiaoGuo/fashion-iq f71b16c; template: VectorSpaceLab/MegaPairs ad99aca",
    templates={"": TEMPLATE},
    main_metric="recall_at_10",
    read=read,
    predict=predict,
    measure=measure,
    submission=submission,
    summary=summary,
    sizes={"val": Size(6_016, 15_536, 3), "test": Size(tasks=3)},
)
