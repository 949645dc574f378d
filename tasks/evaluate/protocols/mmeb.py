"""MMEB (36 datasets) in VLM2Vec's format: a query of image and/or text, candidates of its own, the first one correct.

Files: <folder>/<dataset>/*.parquet or <dataset>.jsonl with qry_text, qry_img_path, tgt_text (list), tgt_img_path
(list); the images below <folder>/eval_images, <folder>/images or <folder>. MMEB-V2's image part has the same 36
datasets with the instructions in columns of their own, qry_inst and tgt_inst: an instruction stands before its text.
Where the candidates are images alone, v1 has one empty tgt_text for all of them. Other columns of a query or candidate
(video, documents) are refused by name.

Metric: precision_at_1, whether the first candidate wins; the benchmark's score is the mean over the datasets. Beside it
the means by meta-task (CLS, VQA, RET, GRD) and of the datasets inside and outside of MMEB-train (IND, OOD), as the
paper's tables have them. The official code takes numpy's argmax, which gives a tie to the first candidate, the correct
one; here a tie is lost, so that a model that has not seen half of the query gains nothing by it. Without ties both are
equal. Source: TIGER-AI-Lab/VLM2Vec, eval.py; arXiv:2410.05160, table 2. Why not through mteb: docs/decisions/0030.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols.base import (
    Benchmark,
    DroppedQueries,
    GalleryItem,
    Prediction,
    Protocol,
    Query,
    Size,
    Task,
    TaskValues,
    fill_template,
    image_reader,
    rank_candidates,
    recall_at_ranks,
)
from tasks.train.record_formats import IMAGE_TOKEN

TEMPLATE = "{qry_text}"  # MMEB's texts hold each task's instruction
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
INSTRUCTIONS = ("qry_inst", "tgt_inst")  # of MMEB-V2
# meta-task -> its datasets inside MMEB-train, its datasets outside
META_TASKS = {
    "CLS": (
        ("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
        ("Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
    ),
    "VQA": (
        ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
        ("ScienceQA", "VizWiz", "GQA", "TextVQA"),
    ),
    "RET": (
        ("VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA"),
        ("FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
    ),
    "GRD": (("MSCOCO",), ("RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing")),
}


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of every row of one dataset: a JSONL file, or a folder of Parquet files.

    Raises:
        DataError: not readable, without one of `COLUMNS`, with columns that are not read, or with a value of another
            type.
    """
    rows = list(jsonl_rows(path) if path.suffix == ".jsonl" else parquet_rows(path))
    for where, row in rows:
        require_row(where, row)
        if row["tgt_text"] == "" and row["tgt_img_path"]:
            row["tgt_text"] = [""] * len(row["tgt_img_path"])
        if not all(isinstance(row[c], list | None) for c in ("tgt_text", "tgt_img_path")):
            raise DataError(f"{where}: tgt_text and tgt_img_path are no lists; is it a training file?")
    return rows


def jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, from 1; its content) of the lines of a JSONL file that are not blank."""
    try:
        # on newline only: str.splitlines also splits at U+2028, which texts may hold
        lines = path.read_text(encoding="utf-8").split("\n")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error)[:200]}); download it again") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"{path}: line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: not JSON ({error}); download the file again") from error


def parquet_rows(folder: Path) -> Iterator[tuple[str, Any]]:
    """(file and row, from 0; its content) of the rows of a folder's Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(folder.glob("*.parquet")):
        try:
            rows = pq.read_table(file).to_pylist()
        except (ValueError, OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read ({str(error)[:200]}); download it again") from error
        yield from ((f"{file}: row {n}", row) for n, row in enumerate(rows))


def require_row(where: str, row: Any) -> None:
    """Refuse a row that is not in the form of the module's docstring.

    Raises:
        DataError: as said; `where` names the row.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with {list(COLUMNS)}, found {type(row).__name__}")
    if missing := [c for c in COLUMNS if c not in row]:
        raise DataError(
            f"{where} has no {missing}; expected {list(COLUMNS)}, in MMEB-V2's files also qry_inst and tgt_inst; found "
            f"{sorted(row)}"
        )
    if unknown := sorted(c for c in row if c.startswith(("qry", "tgt")) and c not in (*COLUMNS, *INSTRUCTIONS)):
        raise DataError(
            f"{where}: the columns {unknown} are not read, only {[*COLUMNS, *INSTRUCTIONS]}; take MMEB's image tasks"
        )
    for name in (*COLUMNS, *INSTRUCTIONS):
        value: Any = row.get(name)
        is_several = isinstance(value, list) and name.startswith("tgt_") and name not in INSTRUCTIONS
        for each in value if is_several else (value,):
            if not isinstance(each, str | None):
                raise DataError(f"{where}: {name} has {each!r}; expected text")


def with_instruction(instruction: str | None, text: str | None) -> str:
    """An instruction before its text, in one line, each without image tokens; empty parts are left out."""
    return " ".join(part for part in (strip_image_tokens(instruction), strip_image_tokens(text)) if part)


def strip_image_tokens(text: str | None) -> str:
    """The text without the tokens that say where a chat model puts the image, as training reads it."""
    return IMAGE_TOKEN.sub("", text or "").strip()


def build_task(
    name: str,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    template: str,
    items: dict[str, GalleryItem],
    dropped: DroppedQueries,
) -> Task:
    """One dataset; its candidates are added to `items` under keys "<dataset>:<n>", equal ones under one key. `rows` are
    those of `read_rows`.

    A row without candidates, or with lists of different lengths, is counted in `dropped`.

    Raises:
        DataError: no row is left.
    """
    keys: dict[GalleryItem, str] = {}
    queries = []
    for n, (where, row) in enumerate(rows):
        texts, paths = row["tgt_text"], row["tgt_img_path"]
        if not texts or len(texts) != len(paths or ()):
            dropped.add(
                f"{where} has {len(texts or ())} texts and {len(paths or ())} images as candidates; "
                "expected as many of both, at least one"
            )
            continue
        candidates = []
        for text, image in zip(texts, paths, strict=True):
            item = GalleryItem(image or None, with_instruction(row.get("tgt_inst"), text))
            keys.setdefault(item, f"{name}:{len(keys)}")
            candidates.append(keys[item])
        said = with_instruction(row.get("qry_inst"), row["qry_text"])
        text = strip_image_tokens(fill_template(template, {"qry_text": said}))
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
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; `path` names the folder of MMEB-eval")
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
    return Benchmark(name, "mmeb", split, {"": template}, tasks, image_reader(files), items, dropped, files, "")


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The query's own candidates, the correct one last among equals."""
    return Prediction(rank_candidates(task, query, similarity))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """precision_at_1, 0 or 1."""
    return recall_at_ranks(query.ground_truths[0], prediction.ranked, (1,), "precision_at")


def summary(metrics: Sequence[str], tasks: Sequence[TaskValues]) -> dict[str, float]:
    """<group>.precision_at_1 of CLS, VQA, RET, GRD, IND and OOD: means over the group's datasets that are there."""
    column = metrics.index("precision_at_1")
    scores = {t.task: float(t.values[:, column].mean()) for t in tasks}
    groups = {name: (*inside, *outside) for name, (inside, outside) in META_TASKS.items()}
    groups |= {"IND": tuple(d for i, _ in META_TASKS.values() for d in i)}
    groups |= {"OOD": tuple(d for _, o in META_TASKS.values() for d in o)}
    there = {name: [scores[d] for d in datasets if d in scores] for name, datasets in groups.items()}
    return {f"{name}.precision_at_1": float(np.mean(values)) for name, values in there.items() if values}


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
    summary=summary,
    sizes={"test": Size(tasks=36)},
)
