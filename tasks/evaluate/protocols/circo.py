"""CIRCO: composed retrieval over all COCO-2017 unlabeled images, several right answers a query; and the sample world's
benchmark in its form.

<folder>/annotations/{val,test}.json, COCO2017_unlabeled/annotations/image_info_unlabeled2017.json and
COCO2017_unlabeled/unlabeled2017/<12 digits>.jpg; or <folder>/annotations.json and images/<id>.jpg (split "all").
mAP@K divides by min(number of right answers, K); the reference stays in the ranking. The test split's answers are
hidden: it makes a file for the server circo.micc.unifi.it. Source: miccunifi/CIRCO at 267b5c9, src/evaluation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.evaluate.metrics import RANKS, average_precisions
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

# MegaPairs, eval/data/circo_query.jsonl
TEMPLATE = "Find a picture that also {shared_concept}, but {relative_caption}."


def query_of(annotation: dict[str, Any], template: str) -> Query:
    """One annotation as a query; `paraphrases` (a list of captions, the sample world's) become its wordings."""
    said = [annotation["relative_caption"], *annotation.get("paraphrases", [])]
    texts = [
        filled(template, {"relative_caption": str(t), "shared_concept": str(annotation.get("shared_concept", ""))})
        for t in said
    ]
    right: list[str] = []
    if "target_img_id" in annotation:
        right = list(dict.fromkeys(map(str, [annotation["target_img_id"], *annotation["gt_img_ids"]])))
        if str(annotation["target_img_id"]) not in map(str, annotation["gt_img_ids"]):
            raise DataError(
                f"query {annotation['id']}: its target {annotation['target_img_id']} is not among its ground truths {annotation['gt_img_ids']}"
            )
    wordings = tuple(texts) if len(texts) > 1 else ()
    return Query(str(annotation["id"]), str(annotation["reference_img_id"]), texts[0], tuple(right), wordings)


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """The benchmark below `folder`.

    Raises:
        ConfigError: files that are not there, a template without {relative_caption}.
        DataError: an annotation names an image that is not there.
    """
    template = TEMPLATE if template is None else template
    if "{relative_caption}" not in template:
        raise ConfigError(f"template is {template!r}: expected {{relative_caption}} in it")
    path = folder / "annotations.json"
    if not path.is_file():
        path = first_of(folder, f"annotations/{split}.json", f"{split}.json", "annotations.json")
    else:
        split = "all"
    annotations = read_json(path)
    images = first_of(folder, "COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "images")
    listed = images.parent / "annotations" / "image_info_unlabeled2017.json"
    if listed.is_file():
        files = {str(i["id"]): images / f"{i['id']:012d}.jpg" for i in read_json(listed)["images"]}
    else:
        found = [f for f in images.iterdir() if f.suffix.lower() in IMAGES]
        files = {f.stem.lstrip("0") or "0" if f.stem.isdigit() else f.stem: f for f in found}
    gallery = sorted(files, key=lambda stem: (len(stem), stem))
    for a in annotations:
        named = [a["reference_img_id"], *([a["target_img_id"], *a["gt_img_ids"]] if "target_img_id" in a else [])]
        if missing := [i for i in named if str(i) not in files]:
            raise DataError(f"{path}: query {a['id']} names images {missing[:3]} that are not in {images}")
    return Benchmark(
        name,
        "circo",
        split,
        {"": template},
        [Task("", [query_of(a, template) for a in annotations], gallery)],
        image_reader(files),
    )


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50, the reference among them where it is near."""
    return Prediction(order(task, similarity, max(RANKS)))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """map_at_{5,10,25,50} over all right answers, recall_at_{1,5,10,25,50} of the one target."""
    if len(set(prediction.ranked)) != len(prediction.ranked):
        raise DataError(f"query {query.query_id}: an image is predicted twice; a ranking names each once")
    return average_precisions(prediction.ranked, query.right) | recalls(query.right[0], prediction.ranked, (1, *RANKS))


def submission(predicted: Sequence[tuple[Query, Prediction]]) -> dict[str, Any]:
    """{"0": [50 image ids], ...}, as the server takes it."""
    return {"circo.json": {q.query_id: [int(i) if i.isdigit() else i for i in p.ranked] for q, p in predicted}}


PROTOCOL = Protocol(
    "circo",
    {"": TEMPLATE},
    "map_at_5",
    read,
    predict,
    measure,
    submission,
    "miccunifi/CIRCO 267b5c9; template: VectorSpaceLab/MegaPairs ad99aca",
)
