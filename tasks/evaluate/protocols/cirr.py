"""CIRR rc2: real-life images (NLVR2) in groups of six that look alike, with one target per query.

Files: <folder>/captions/cap.rc2.{val,test1}.json, image_splits/split.rc2.{val,test1}.json (also below <folder>/cirr, or
all directly in <folder>), and the images at the paths that the split file names.

Metrics: Recall@K over the whole split and Recall_subset@K among the other five images of the reference's group. The
reference image is excluded from both rankings; recall_5_subset_1_mean is (Recall@5 + Recall_subset@1) / 2, by which the
server ranks. The answers of test1 are hidden: it makes the two submission files for
the server cirr.cecs.anu.edu.au. Sources: Cuberick-Orion/CIRR, branch cirr_dataset; miccunifi/SEARLE at a9c314b,
src/validate.py and src/generate_test_submission.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.evaluate.protocols.base import (
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

TEMPLATE = "{relative_caption}"  # MegaPairs' own is unpublished (MegaPairs issue #34)
RANKS, SUBSET_RANKS = (1, 5, 10, 50), (1, 2, 3)


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read a split of the benchmark in `folder`.

    Raises:
        ConfigError: files that are not there.
        DataError: no query is left whose images the split lists.
    """
    split = {"test": "test1"}.get(split, split)
    template = TEMPLATE if template is None else template
    captions = first_existing(
        folder, *(f"{parent}cap.rc2.{split}.json" for parent in ("captions/", "cirr/captions/", ""))
    )
    paths = read_json(
        first_existing(
            folder, *(f"{parent}split.rc2.{split}.json" for parent in ("image_splits/", "cirr/image_splits/", ""))
        )
    )
    queries, dropped = [], DroppedQueries()
    for n, a in enumerate(read_records(captions, ("pairid", "reference", "caption", "img_set"))):
        with record_errors(f"{captions}: record {n}", a):
            target = [a["target_hard"]] if "target_hard" in a else []
            members = a["img_set"].get("members", [])
            if missing := [i for i in (a["reference"], *target, *members) if i not in paths]:
                dropped.add(f"{captions}: query {a['pairid']} names images {missing[:3]} that the split does not list")
                continue
            text = fill_template(template, {"relative_caption": a["caption"]})
            subset = tuple(i for i in members if i != a["reference"])
            record = {"caption": a["caption"]}
            queries.append(Query(str(a["pairid"]), a["reference"], text, tuple(target), subset=subset, record=record))
    dropped.require_some(len(queries))
    files, tasks = {key: folder / path for key, path in paths.items()}, [Task("", queries, list(paths))]
    return Benchmark(name, "cirr", split, {"": template}, tasks, image_reader(files), dropped=dropped, files=files)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50 without the reference image, and the ranking of the subset."""
    subset = set(query.subset)
    order = np.argsort(-similarity, kind="stable")
    ranked = rank_gallery(task, similarity, max(RANKS), exclude=query.reference)
    return Prediction(ranked, [task.gallery[n] for n in order if task.gallery[n] in subset])


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{1,5,10,50} and recall_subset_at_{1,2,3} of the target."""
    target = query.ground_truths[0]
    return recall_at_ranks(target, prediction.ranked, RANKS) | recall_at_ranks(
        target, prediction.subset, SUBSET_RANKS, "recall_subset_at"
    )


def submission(predictions: Sequence[tuple[Query, Prediction]]) -> dict[str, Any]:
    """The server's two files: 50 image names per query for recall, 3 for recall_subset."""
    version = {"version": "rc2"}
    return {
        "cirr_recall.json": {**version, "metric": "recall", **{q.query_id: p.ranked[:50] for q, p in predictions}},
        "cirr_recall_subset.json": {
            **version,
            "metric": "recall_subset",
            **{q.query_id: list(p.subset[:3]) for q, p in predictions},
        },
    }


def summary(metrics: Sequence[str], tasks: Sequence[TaskValues]) -> dict[str, float]:
    """recall_5_subset_1_mean, the server's ranking score."""
    means = tasks[0].values.mean(axis=0)
    both = means[metrics.index("recall_at_5")], means[metrics.index("recall_subset_at_1")]
    return {"recall_5_subset_1_mean": float(np.mean(both))}


PROTOCOL = Protocol(
    name="cirr",
    rule="CIRR rc2: real-life images (NLVR2) in groups of six that look alike; one target, the reference taken out of "
    "the ranking.",
    source="Cuberick-Orion/CIRR cirr_dataset, miccunifi/SEARLE a9c314b; template: ours",
    templates={"": TEMPLATE},
    main_metric="recall_at_1",
    read=read,
    predict=predict,
    measure=measure,
    submission=submission,
    summary=summary,
    sizes={"val": Size(4_181, 2_297), "test1": Size(4_148, 2_315)},
)
