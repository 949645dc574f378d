"""FashionIQ, original split: three categories, each with its own gallery; scores are the unweighted mean of the three.

<folder>/captions/cap.{dress,shirt,toptee}.val.json, image_splits/split.*.val.json (or all in <folder>),
images/<id>.{png,jpg}. The reference stays in the ranking. The gallery is the split's list (15,536 images), not the
smaller one of queries and targets alone. Source: XiaoxiaoGuo/fashion-iq at f71b16c; text: MegaPairs' "{c1}, and {c2}"
(eval/eval_fashioniq.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.errors import DataError
from tasks.evaluate.protocols.base import (
    IMAGES,
    Benchmark,
    Prediction,
    Protocol,
    Query,
    Task,
    filled,
    first_of,
    image_reader,
    order,
    read_json,
    recalls,
)

TEMPLATE = "{caption_1}, and {caption_2}"
CATEGORIES = ("dress", "shirt", "toptee")
RANKS = (10, 50)


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """The three categories below `folder`; the captions in the other order are each query's second wording.

    Raises:
        ConfigError: files that are not there.
        DataError: a query names an image that its split does not list, or has not two captions.
    """
    template = TEMPLATE if template is None else template
    tasks = []
    for category in CATEGORIES:
        path = first_of(folder, *(f"{place}cap.{category}.{split}.json" for place in ("captions/", "")))
        gallery = read_json(
            first_of(folder, *(f"{place}split.{category}.{split}.json" for place in ("image_splits/", "")))
        )
        known = set(gallery)
        queries = []
        for n, a in enumerate(read_json(path)):
            if missing := [i for i in (a["candidate"], a["target"]) if i not in known]:
                raise DataError(f"{path}: query {n} names images {missing} that the split does not list")
            if len(a["captions"]) != 2:
                raise DataError(f"{path}: query {n} has {len(a['captions'])} captions; expected 2")
            one, two = a["captions"]
            texts = tuple(filled(template, {"caption_1": x, "caption_2": y}) for x, y in ((one, two), (two, one)))
            queries.append(Query(f"{category}:{n}", a["candidate"], texts[0], (a["target"],), texts))
        tasks.append(Task(category, queries, gallery))
    images = folder / "images"
    files = {f.stem: f for f in images.iterdir() if f.suffix.lower() in IMAGES} if images.is_dir() else {}
    return Benchmark(name, "fashioniq", split, {"": template}, tasks, image_reader(files))


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50, the reference among them where it is near."""
    return Prediction(order(task, similarity, max(RANKS)))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{10,50} of the target."""
    return recalls(query.right[0], prediction.ranked, RANKS)


PROTOCOL = Protocol(
    "fashioniq",
    {"": TEMPLATE},
    "recall_at_10",
    read,
    predict,
    measure,
    None,
    "XiaoxiaoGuo/fashion-iq f71b16c; template: VectorSpaceLab/MegaPairs ad99aca",
)
