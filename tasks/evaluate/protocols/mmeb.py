"""MMEB (36 datasets) in VLM2Vec's format: a query of image and/or text, candidates of its own, the first one correct.

Files: <folder>/<dataset>/*.parquet or <dataset>.jsonl with qry_text, qry_img_path, tgt_text (list), tgt_img_path
(list); the images below <folder>/eval_images, <folder>/images or <folder>.

Metric: precision_at_1, whether the first candidate wins; the benchmark's score is the mean over the datasets. The
official code takes numpy's argmax, which gives a tie to the first candidate, the correct one; here a tie is lost, so
that a model that has not seen half of the query gains nothing by it. Without ties both are equal. Source:
TIGER-AI-Lab/VLM2Vec, eval.py. Why not through mteb: docs/decisions/0030.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError
from tasks.evaluate.protocols.base import (
    Benchmark,
    DroppedQueries,
    GalleryItem,
    Prediction,
    Protocol,
    Query,
    Task,
    fill_template,
    image_reader,
    rank_candidates,
    recall_at_ranks,
)

TEMPLATE = "{qry_text}"  # MMEB's texts hold each task's instruction
IMAGE_TOKENS = ("<|image_1|>", "<image>")  # where a chat model would put the image; for other models they are noise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of one dataset: a JSONL file, or a folder of Parquet files."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    import pyarrow.parquet as pq

    return [row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def strip_image_tokens(text: str | None) -> str:
    """The text without image tokens."""
    for token in IMAGE_TOKENS:
        text = (text or "").replace(token, "")
    return (text or "").strip()


def build_task(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    template: str,
    items: dict[str, GalleryItem],
    dropped: DroppedQueries,
) -> Task:
    """One dataset; its candidates are added to `items` under keys "<dataset>:<n>", equal ones under one key.

    A row without candidates, or with lists of different lengths, is counted in `dropped`.

    Raises:
        DataError: no row is left.
    """
    keys: dict[GalleryItem, str] = {}
    queries = []
    for n, row in enumerate(rows):
        texts, paths = row["tgt_text"], row["tgt_img_path"]
        if not texts or len(texts) != len(paths or ()):
            dropped.add(
                f"MMEB {name}: row {n} has {len(texts or ())} texts and {len(paths or ())} images as candidates; "
                "expected as many of both, at least one"
            )
            continue
        candidates = []
        for text, image in zip(texts, paths, strict=True):
            item = GalleryItem(image or None, strip_image_tokens(text))
            keys.setdefault(item, f"{name}:{len(keys)}")
            candidates.append(keys[item])
        text = strip_image_tokens(fill_template(template, {"qry_text": row["qry_text"] or ""}))
        reference = row["qry_img_path"] or None
        queries.append(Query(f"{name}:{n}", reference, text, (candidates[0],), candidates=tuple(candidates)))
    dropped.require_some(len(queries))
    items.update({key: item for item, key in keys.items()})
    return Task(name, queries, list(keys.values()))


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read every dataset in `folder`.

    Raises:
        ConfigError: there is none.
    """
    template = TEMPLATE if template is None else template
    datasets = {
        p.stem if p.suffix == ".jsonl" else p.name: p
        for p in sorted(folder.iterdir())
        if p.suffix == ".jsonl" or next(p.glob("*.parquet"), None)
    }
    if not datasets:
        raise ConfigError(
            f"{folder}: no <dataset>.jsonl and no <dataset>/*.parquet; `path` names the folder of MMEB-eval"
        )
    items: dict[str, GalleryItem] = {}
    dropped = DroppedQueries()
    tasks = [build_task(dataset, read_rows(path), template, items, dropped) for dataset, path in datasets.items()]
    images = next((folder / p for p in ("eval_images", "images") if (folder / p).is_dir()), folder)
    keys = {q.reference for t in tasks for q in t.queries} | {i.image for i in items.values()}
    files = {key: images / key for key in keys if key}
    return Benchmark(name, "mmeb", split, {"": template}, tasks, image_reader(files), items, dropped)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The query's own candidates, the correct one last among equals."""
    return Prediction(rank_candidates(task, query, similarity))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """precision_at_1, 0 or 1."""
    return recall_at_ranks(query.ground_truths[0], prediction.ranked, (1,), "precision_at")


PROTOCOL = Protocol(
    name="mmeb",
    rule="MMEB (36 tasks) in VLM2Vec's format: a query of image and/or text, candidates of its own, the first of them "
    "right.",
    source="TIGER-AI-Lab/VLM2Vec eval.py; texts: MMEB's own",
    templates={"": TEMPLATE},
    main_metric="precision_at_1",
    read=read,
    predict=predict,
    measure=measure,
)
