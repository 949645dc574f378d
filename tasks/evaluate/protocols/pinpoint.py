"""PinPoint: several right images and explicit wrong ones a query, six wordings, queries with two reference images.

Files: <folder>/pinpoint_licensed.parquet (or pinpoint_metadata.parquet) with query_id, query_image_signature,
query_image_signature2, instruction, positive_candidates, negative_candidates; index_signatures.txt, one signature a
line; the images as images/<signature>.jpg, also as images/aa/bb/cc/<signature>.jpg, as their addresses are built.

A query ranks the whole index. Metrics at 1, 5, 10 and 50: map (precision at each right rank, divided by min(right, k)),
precision, recall, neg_recall (wrong images among the first k, divided by min(wrong, k): lower is better), and
map_no_neg, map with the wrong images taken out of the ranking. Of all queries with the same reference images, which are
wordings of each other: wording_range and wording_deviation of precision@10, averaged. two_images.map_at_10 is of the
queries with two reference images; their vector is the mean of the two composed ones, scaled to unit length.
Source: the dataset's evaluate.py and utils/metrics.py (arXiv:2603.04598). Template: the instruction as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import DataError
from tasks.evaluate.metrics import average_precision_at_ranks
from tasks.evaluate.protocols.base import (
    IMAGE_SUFFIXES,
    Benchmark,
    DroppedQueries,
    Prediction,
    Protocol,
    Query,
    Task,
    TaskValues,
    fill_template,
    first_existing,
    image_reader,
    rank_gallery,
    record_errors,
)

TEMPLATE = "{instruction}"
RANKS = (1, 5, 10, 50)
COLUMNS = ("query_id", "query_image_signature", "instruction", "positive_candidates", "negative_candidates")
NO_IMAGE = ("", "none", "nan", "null")  # the published table says "None" where there is no second image
DEEPEST = 250  # ranks that are kept: taking the wrong images out leaves 50


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of the Parquet table.

    Raises:
        DataError: not readable, or without one of the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from error
    if missing := [c for c in COLUMNS if c not in table.column_names]:
        raise DataError(f"{path}: no columns {missing}; expected {list(COLUMNS)}, found {table.column_names}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def signature(value: Any) -> str | None:
    """An image's signature; None where the table has none."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in NO_IMAGE else text


def query_number(value: Any) -> str:
    """A query's id as result files write it: five digits."""
    return str(value).removeprefix("query_").zfill(5)


def image_files(folder: Path, keys: Sequence[str]) -> dict[str, Path]:
    """Signature -> file; of an image that is nowhere the path where it is looked for first."""
    root = folder / "images"
    flat = {f.stem: f for f in root.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES} if root.is_dir() else {}
    return {key: flat.get(key) or root / key[:2] / key[2:4] / key[4:6] / f"{key}.jpg" for key in keys}


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read the benchmark in `folder`; a query whose images are not in the index is left out and counted.

    Raises:
        ConfigError: files that are not there.
        DataError: a table in another form, or no query that is left.
    """
    template = TEMPLATE if template is None else template
    path = first_existing(folder, "pinpoint_licensed.parquet", "pinpoint_metadata.parquet")
    lines = first_existing(folder, "index_signatures.txt").read_text(encoding="utf-8").split("\n")
    gallery = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    known, queries, dropped = set(gallery), [], DroppedQueries()
    references: dict[str, None] = {}
    for n, row in enumerate(read_table(path)):
        with record_errors(f"{path}: row {n}", row):
            first, second = signature(row["query_image_signature"]), signature(row.get("query_image_signature2"))
            right = tuple(dict.fromkeys(key for key in row["positive_candidates"] or () if key in known))
            if first is None or not right:
                dropped.add(
                    f"{path}: row {n} ({row['query_id']}) has no reference image, or no right image in the index"
                )
                continue
            text = fill_template(template, {"instruction": row["instruction"] or ""})
            record = {"negatives": tuple(row["negative_candidates"] or ()), "right": len(row["positive_candidates"])}
        more = () if second is None else (second,)
        references |= dict.fromkeys((first, *more))
        queries.append(Query(query_number(row["query_id"]), first, text, right, more_references=more, record=record))
    dropped.require_some(len(queries))
    files = image_files(folder, [*gallery, *references])
    task = Task("", queries, gallery)
    return Benchmark(name, "pinpoint", split, {"": template}, [task], image_reader(files), dropped=dropped, files=files)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 250; the reference images are not excluded."""
    return Prediction(rank_gallery(task, similarity, DEEPEST))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """The metrics of one query; see the module.

    Raises:
        DataError: the ranking names an image twice.
    """
    ranked, wrong = list(prediction.ranked), set(query.record.get("negatives", ()))
    if len(set(ranked)) != len(ranked):
        raise DataError(f"query {query.query_id}: an image is predicted twice; a ranking names each once")
    right = set(query.ground_truths)
    out = average_precision_at_ranks(ranked, query.ground_truths, RANKS)
    without = average_precision_at_ranks([key for key in ranked if key not in wrong], query.ground_truths, RANKS)
    out |= {f"map_no_neg_at_{k}": without[f"map_at_{k}"] for k in RANKS}
    for k in RANKS:
        hits = sum(key in right for key in ranked[:k])
        out[f"precision_at_{k}"] = hits / k
        out[f"recall_at_{k}"] = hits / max(1, len(right))
        out[f"neg_recall_at_{k}"] = sum(key in wrong for key in ranked[:k]) / min(len(wrong), k) if wrong else 0.0
    return out


def summary(metrics: Sequence[str], tasks: Sequence[TaskValues]) -> dict[str, float]:
    """wording_range, wording_deviation and two_images.map_at_10, where there are such queries."""
    precision, map_at_10 = metrics.index("precision_at_10"), metrics.index("map_at_10")
    groups: dict[tuple[str, ...], list[float]] = {}
    two = []
    for query, row in zip(tasks[0].queries, tasks[0].values, strict=True):
        groups.setdefault((str(query.reference), *query.more_references), []).append(float(row[precision]))
        if query.more_references:
            two.append(float(row[map_at_10]))
    several = [values for values in groups.values() if len(values) > 1]
    out = {}
    if several:
        out["wording_range"] = float(np.mean([max(values) - min(values) for values in several]))
        out["wording_deviation"] = float(np.mean([np.std(values) for values in several]))
    if two:
        out["two_images.map_at_10"] = float(np.mean(two))
    return out


def submission(predictions: Sequence[tuple[Query, Prediction]]) -> dict[str, Any]:
    """The form that the dataset's evaluate.py reads: {"00001": {"retrieved_items": [50 signatures]}, ...}."""
    return {"pinpoint.json": {q.query_id: {"retrieved_items": p.ranked[:50]} for q, p in predictions}}


PROTOCOL = Protocol(
    name="pinpoint",
    rule="PinPoint: several right images and explicit wrong ones a query, several wordings, one or two query images.",
    source="PinPoint's evaluate.py (arXiv:2603.04598); template: the dataset's instruction",
    templates={"": TEMPLATE},
    main_metric="map_at_10",
    read=read,
    predict=predict,
    measure=measure,
    submission=submission,
    summary=summary,
)
