"""CIRCO: retrieval over all COCO-2017 unlabeled images, with several correct answers per query.

Files: <folder>/annotations/{val,test}.json, COCO2017_unlabeled/annotations/image_info_unlabeled2017.json and
COCO2017_unlabeled/unlabeled2017/<12 digits>.jpg. The same format in one folder, as the sample world's benchmark has it:
<folder>/annotations.json and images/<id>.jpg (split "all").

Metrics: mAP@K over all ground truths, divided by min(number of ground truths, K), and Recall@K of the single target.
With semantic_aspects in the annotations also <aspect>.map_at_10, over the queries that have the aspect.
The reference image stays in the ranking. The answers of the test split are hidden: it makes a submission file for the
server circo.micc.unifi.it. Source: miccunifi/CIRCO at 267b5c9, src/evaluation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.evaluate.metrics import RANKS, average_precision_at_ranks
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
    checked_records,
    fill_template,
    first_existing,
    image_reader,
    rank_gallery,
    read_json,
    recall_at_ranks,
    record_errors,
)

IMAGE_FOLDERS = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "images")
# MegaPairs, eval/data/circo_query.jsonl
TEMPLATE = "Find a picture that also {shared_concept}, but {relative_caption}."


def parse_query(annotation: dict[str, Any], template: str) -> Query:
    """One annotation as a query; `paraphrases` (a list of captions, in the sample world's benchmark) become wordings.

    Raises:
        DataError: the target is not among the ground truths.
    """
    concept = str(annotation.get("shared_concept", ""))
    captions = [annotation["relative_caption"], *annotation.get("paraphrases", [])]
    texts = [fill_template(template, {"relative_caption": str(c), "shared_concept": concept}) for c in captions]
    ground_truths: list[str] = []
    if "target_img_id" in annotation:
        target, ids = annotation["target_img_id"], annotation["gt_img_ids"]
        ground_truths = list(dict.fromkeys(map(str, [target, *ids])))
        if str(target) not in map(str, ids):
            raise DataError(f"query {annotation['id']}: its target {target} is not among its ground truths {ids}")
    wordings = tuple(texts) if len(texts) > 1 else ()
    query_id, reference = str(annotation["id"]), str(annotation["reference_img_id"])
    aspects = annotation.get("semantic_aspects") or []
    record = {"semantic_aspects": aspects, "caption": annotation["relative_caption"]}
    return Query(query_id, reference, texts[0], tuple(ground_truths), wordings, record=record)


def image_files(images: Path) -> tuple[dict[str, Path], bool]:
    """(image id -> file, of every image in the gallery; whether COCO's list gave them): else the folder's files."""
    image_list = images.parent / "annotations" / "image_info_unlabeled2017.json"
    if image_list.is_file():
        return {str(i["id"]): images / f"{i['id']:012d}.jpg" for i in read_json(image_list)["images"]}, True
    files = [f for f in images.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES] if images.is_dir() else []
    return {f.stem.lstrip("0") or "0" if f.stem.isdigit() else f.stem: f for f in files}, False


def annotated_files(path: Path, annotations: Sequence[dict[str, Any]], images: Path) -> dict[str, Path]:
    """Image id -> where its file should be, of the images that annotations name; `path` is for errors."""
    files: dict[str, Path] = {}
    for n, a in enumerate(annotations):
        with record_errors(f"{path}: record {n}", a):
            files |= {str(i): images / f"{i:012d}.jpg" for i in (a["reference_img_id"], *a.get("gt_img_ids", ()))}
    return files


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read the benchmark in `folder`.

    Raises:
        ConfigError: no annotations there, a template without {relative_caption}.
        DataError: no annotation is left whose images are there, or a target that is not among its ground truths.
    """
    template = TEMPLATE if template is None else template
    if "{relative_caption}" not in template:
        raise ConfigError(f"template is {template!r}: expected {{relative_caption}} in it")
    path = folder / "annotations.json"
    if path.is_file():
        split = "all"
    else:
        path = first_existing(folder, f"annotations/{split}.json", f"{split}.json", "annotations.json")
    annotations = checked_records(path, read_json(path), ("id", "reference_img_id", "relative_caption"))
    for a in annotations:
        if ("target_img_id" in a) != ("gt_img_ids" in a):
            raise DataError(f"{path}: query {a['id']} has only one of target_img_id and gt_img_ids; expected both")
    places = [folder / name for name in IMAGE_FOLDERS]
    images = next((place for place in places if place.is_dir()), None)
    files, has_list = image_files(images or places[0])
    if not has_list and split != "all":  # answers alone are enough to score a ranking
        files = annotated_files(path, annotations, images or places[0]) | files
    gallery = sorted(files, key=lambda stem: (len(stem), stem))
    queries, dropped = [], DroppedQueries()
    for n, a in enumerate(annotations):
        with record_errors(f"{path}: record {n}", a):
            named = [a["reference_img_id"], *([a["target_img_id"], *a["gt_img_ids"]] if "target_img_id" in a else [])]
            if missing := [i for i in named if str(i) not in files]:
                dropped.add(f"{path}: query {a['id']} names images {missing[:3]} that are not in {images}")
            else:
                queries.append(parse_query(a, template))
    dropped.require_some(len(queries))
    return Benchmark(
        name,
        "circo",
        split,
        {"": template},
        [Task("", queries, gallery)],
        image_reader(files),
        dropped=dropped,
        files=files,
        has_gallery_list=has_list or split == "all",
        no_images="" if images else f"{folder}: none of {', '.join(IMAGE_FOLDERS)} is there",
    )


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50; the reference image is not excluded."""
    return Prediction(rank_gallery(task, similarity, max(RANKS)))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """map_at_{5,10,25,50} over all ground truths, recall_at_{1,5,10,25,50} of the single target.

    Raises:
        DataError: the ranking names an image twice.
    """
    if len(set(prediction.ranked)) != len(prediction.ranked):
        raise DataError(f"query {query.query_id}: an image is predicted twice; a ranking names each once")
    precisions = average_precision_at_ranks(prediction.ranked, query.ground_truths)
    return precisions | recall_at_ranks(query.ground_truths[0], prediction.ranked, (1, *RANKS))


def submission(predictions: Sequence[tuple[Query, Prediction]]) -> dict[str, Any]:
    """{"0": [50 image ids], ...}, the server's format."""
    return {"circo.json": {q.query_id: [int(i) if i.isdigit() else i for i in p.ranked] for q, p in predictions}}


def summary(metrics: Sequence[str], tasks: Sequence[TaskValues]) -> dict[str, float]:
    """<aspect>.map_at_10 of every semantic aspect that the annotations name."""
    column, groups = metrics.index("map_at_10"), dict[str, list[float]]()
    for query, row in zip(tasks[0].queries, tasks[0].values, strict=True):
        for aspect in dict.fromkeys(query.record.get("semantic_aspects", ())):
            groups.setdefault(aspect, []).append(row[column])
    return {f"{aspect}.map_at_10": float(np.mean(values)) for aspect, values in sorted(groups.items())}


PROTOCOL = Protocol(
    name="circo",
    rule="CIRCO: composed retrieval over all COCO-2017 unlabeled images, several right answers a query; and the sample "
    "world's benchmark in its form.",
    source="miccunifi/CIRCO 267b5c9; template: VectorSpaceLab/MegaPairs ad99aca",
    templates={"": TEMPLATE},
    main_metric="map_at_5",
    read=read,
    predict=predict,
    measure=measure,
    submission=submission,
    summary=summary,
    sizes={"val": Size(220, 123_403), "test": Size(800, 123_403)},
)
