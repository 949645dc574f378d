"""FashionIQ, original split: three categories, each with its own gallery.

Files: <folder>/captions/cap.{dress,shirt,toptee}.val.json, image_splits/split.*.val.json (or all directly in <folder>),
images/<id>.{png,jpg}.

Metrics: Recall@10 and Recall@50; the benchmark's score is the unweighted mean of the three categories. The reference
image stays in the ranking. The gallery is the split's own list (15,536 images), not the smaller one of queries and
targets alone. Sources: XiaoxiaoGuo/fashion-iq at f71b16c; text: MegaPairs' "{c1}, and {c2}" (eval/eval_fashioniq.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.evaluate.protocols.base import (
    IMAGE_SUFFIXES,
    Benchmark,
    DroppedQueries,
    Prediction,
    Protocol,
    Query,
    Task,
    fill_template,
    first_existing,
    image_reader,
    rank_gallery,
    read_json,
    recall_at_ranks,
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
        for n, a in enumerate(read_json(path)):
            if missing := [i for i in (a["candidate"], a["target"]) if i not in known]:
                dropped.add(f"{path}: query {n} names images {missing} that the split does not list")
                continue
            if len(a["captions"]) != 2:
                dropped.add(f"{path}: query {n} has {len(a['captions'])} captions; expected 2")
                continue
            one, two = a["captions"]
            texts = tuple(
                fill_template(template, {"caption_1": x, "caption_2": y}) for x, y in ((one, two), (two, one))
            )
            queries.append(Query(f"{category}:{n}", a["candidate"], texts[0], (a["target"],), texts))
        dropped.require_some(len(queries))
        tasks.append(Task(category, queries, gallery))
    images = folder / "images"
    files = {f.stem: f for f in images.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES} if images.is_dir() else {}
    return Benchmark(name, "fashioniq", split, {"": template}, tasks, image_reader(files), dropped=dropped)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50; the reference image is not excluded."""
    return Prediction(rank_gallery(task, similarity, max(RANKS)))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{10,50} of the target."""
    return recall_at_ranks(query.ground_truths[0], prediction.ranked, RANKS)


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
)
