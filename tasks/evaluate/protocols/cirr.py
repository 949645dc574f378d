"""CIRR rc2: real-life images (NLVR2) in groups of six that look alike; one target, the reference taken out of the
ranking.

<folder>/captions/cap.rc2.{val,test1}.json, image_splits/split.rc2.{val,test1}.json (also below <folder>/cirr, or all in
<folder>) and the images at the split's paths. R@K over the whole split, R_subset@K among the other five of the group.
test1 hides its
targets: it makes the two files for the server cirr.cecs.anu.edu.au. Source: Cuberick-Orion/CIRR, branch cirr_dataset;
miccunifi/SEARLE at a9c314b, src/validate.py and src/generate_test_submission.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import DataError
from tasks.evaluate.protocols.base import (
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

TEMPLATE = "{relative_caption}"  # MegaPairs' own is unpublished (MegaPairs issue #34)
RANKS, GROUP_RANKS = (1, 5, 10, 50), (1, 2, 3)


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """The split below `folder`.

    Raises:
        ConfigError: files that are not there.
        DataError: a query names an image that the split does not list.
    """
    split = {"test": "test1"}.get(split, split)
    template = TEMPLATE if template is None else template
    captions = first_of(folder, *(f"{place}cap.rc2.{split}.json" for place in ("captions/", "cirr/captions/", "")))
    paths = read_json(
        first_of(folder, *(f"{place}split.rc2.{split}.json" for place in ("image_splits/", "cirr/image_splits/", "")))
    )
    queries = []
    for a in read_json(captions):
        target = [a["target_hard"]] if "target_hard" in a else []
        if missing := [i for i in (a["reference"], *target, *a["img_set"]["members"]) if i not in paths]:
            raise DataError(f"{captions}: query {a['pairid']} names images {missing[:3]} that the split does not list")
        text = filled(template, {"relative_caption": a["caption"]})
        queries.append(
            Query(
                str(a["pairid"]),
                a["reference"],
                text,
                tuple(target),
                group=tuple(i for i in a["img_set"]["members"] if i != a["reference"]),
            )
        )
    files = {key: folder / path for key, path in paths.items()}
    return Benchmark(name, "cirr", split, {"": template}, [Task("", queries, list(paths))], image_reader(files))


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50 without the reference, and the group's other five in their order."""
    group = set(query.group)
    full = np.argsort(-similarity, kind="stable")
    ranked = order(task, similarity, max(RANKS), without=query.reference)
    return Prediction(ranked, [task.gallery[n] for n in full if task.gallery[n] in group])


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{1,5,10,50} and recall_subset_at_{1,2,3} of the target."""
    target = query.right[0]
    return recalls(target, prediction.ranked, RANKS) | recalls(
        target, prediction.group, GROUP_RANKS, "recall_subset_at"
    )


def submission(predicted: Sequence[tuple[Query, Prediction]]) -> dict[str, Any]:
    """The server's two files: 50 names a pair for recall, 3 for recall_subset."""
    head = {"version": "rc2"}
    return {
        "cirr_recall.json": {**head, "metric": "recall", **{q.query_id: p.ranked[:50] for q, p in predicted}},
        "cirr_recall_subset.json": {
            **head,
            "metric": "recall_subset",
            **{q.query_id: list(p.group[:3]) for q, p in predicted},
        },
    }


PROTOCOL = Protocol(
    "cirr",
    {"": TEMPLATE},
    "recall_at_1",
    read,
    predict,
    measure,
    submission,
    "Cuberick-Orion/CIRR cirr_dataset, miccunifi/SEARLE a9c314b; template: ours",
)
