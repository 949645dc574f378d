"""MMEB (36 tasks) in VLM2Vec's format: a query of image and/or text, candidates of its own, the first of them right.

<folder>/<dataset>/*.parquet or <dataset>.jsonl with qry_text, qry_img_path, tgt_text (list), tgt_img_path (list); the
images below <folder>/eval_images, <folder>/images or <folder>. precision_at_1 is whether the first candidate wins, the
benchmark's score the mean over datasets. The official code takes numpy's argmax, which gives a tie to the first
candidate - the right one; here a tie is lost, so that a model that has not seen half of the query earns nothing by it.
Without ties both are equal. Source: TIGER-AI-Lab/VLM2Vec, eval.py.
Why not through mteb: docs/decisions/0030.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols.base import (
    Benchmark,
    Item,
    Prediction,
    Protocol,
    Query,
    Task,
    filled,
    image_reader,
    order_candidates,
    recalls,
)

TEMPLATE = "{qry_text}"  # MMEB's texts hold each task's instruction
IMAGE_TOKENS = ("<|image_1|>", "<image>")  # where a chat model would put the image; for other models they are noise


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of one dataset: a JSONL file, or a folder of Parquet files."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    import pyarrow.parquet as pq

    return [row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def plain(text: str | None) -> str:
    """The text without image tokens."""
    for token in IMAGE_TOKENS:
        text = (text or "").replace(token, "")
    return (text or "").strip()


def task_of(name: str, rows: Sequence[Mapping[str, Any]], template: str, items: dict[str, Item]) -> Task:
    """One dataset; its candidates are added to `items` under keys "<dataset>:<n>", equal ones under one key.

    Raises:
        DataError: a row without candidates, or with lists of different lengths.
    """
    keys: dict[Item, str] = {}
    queries = []
    for n, row in enumerate(rows):
        texts, paths = row["tgt_text"], row["tgt_img_path"]
        if not texts or len(texts) != len(paths):
            raise DataError(
                f"MMEB {name}: row {n} has {len(texts)} texts and {len(paths)} images as candidates; expected as many of both, at least one"
            )
        candidates = []
        for text, image in zip(texts, paths, strict=True):
            item = Item(image or None, plain(text))
            keys.setdefault(item, f"{name}:{len(keys)}")
            candidates.append(keys[item])
        text = plain(filled(template, {"qry_text": row["qry_text"] or ""}))
        queries.append(
            Query(f"{name}:{n}", row["qry_img_path"] or None, text, (candidates[0],), candidates=tuple(candidates))
        )
    items.update({key: item for item, key in keys.items()})
    return Task(name, queries, list(keys.values()))


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Every dataset below `folder`.

    Raises:
        ConfigError: there is none.
    """
    template = TEMPLATE if template is None else template
    found = {
        p.stem if p.suffix == ".jsonl" else p.name: p
        for p in sorted(folder.iterdir())
        if p.suffix == ".jsonl" or next(p.glob("*.parquet"), None)
    }
    if not found:
        raise ConfigError(
            f"{folder}: no <dataset>.jsonl and no <dataset>/*.parquet; `path` names the folder of MMEB-eval"
        )
    items: dict[str, Item] = {}
    tasks = [task_of(dataset, rows_of(path), template, items) for dataset, path in found.items()]
    images = next((folder / p for p in ("eval_images", "images") if (folder / p).is_dir()), folder)
    named = {q.reference for t in tasks for q in t.queries} | {i.image for i in items.values()}
    files = {p: images / p for p in named if p}
    return Benchmark(name, "mmeb", split, {"": template}, tasks, image_reader(files), items)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The query's own candidates, the right one last among equals."""
    return Prediction(order_candidates(task, query, similarity))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """precision_at_1, 0 or 1."""
    return recalls(query.right[0], prediction.ranked, (1,), "precision_at")


PROTOCOL = Protocol(
    "mmeb",
    {"": TEMPLATE},
    "precision_at_1",
    read,
    predict,
    measure,
    None,
    "TIGER-AI-Lab/VLM2Vec eval.py; texts: MMEB's own",
)
