"""Domain-Transfer ImageNet (DTIN): a photograph and the name of a domain; right are the images of its class there.

Files, as google-research/composed_image_retrieval lays them out: <folder>/imgnet_real_query.txt and imgnet_targets.txt,
lines of path and label, and the images at those paths, which begin with imgnet/ (below <folder>'s parent, or <folder>
itself without that beginning).

Four tasks, one a domain (cartoon, origami, toy, sculpture), over one gallery of ImageNet-R's and real images. The
label of a right image is the query's plus 1,000 times the number of the domain. Metrics: recall at 10 and 50, the share
of all right images among the first k, divided as there by their number + 1e-5; a query whose class has no image in the
domain finds nothing, and counts. The benchmark's score is the mean over the domains. Source: get_metrics_imgnet in
src/eval_utils.py of google-research/composed_image_retrieval at 2f15afc. Template: ours; "a {domain} of *" stands for a
token there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.errors import DataError
from tasks.evaluate.protocols.base import (
    Benchmark,
    Prediction,
    Protocol,
    Query,
    Task,
    fill_template,
    first_existing,
    image_reader,
    rank_gallery,
)

TEMPLATE = "the same object as {domain}"
DOMAINS = ("cartoon", "origami", "toy", "sculpture")
CLASSES = 1000
RANKS = (10, 50)


def read_labels(path: Path) -> list[tuple[str, int]]:
    """(image path, label) of every line.

    Raises:
        DataError: a line in another form.
    """
    rows = []
    for n, line in enumerate(path.read_text(encoding="utf-8").split("\n")):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            if not name or not label.isdigit():
                raise DataError(f"{path}: line {n + 1}: {line[:80]!r}: expected a path and a label")
            rows.append((name, int(label)))
    return rows


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read the benchmark in `folder`.

    Raises:
        ConfigError: files that are not there.
        DataError: lines in another form, or a domain without any query.
    """
    template = TEMPLATE if template is None else template
    asked = read_labels(first_existing(folder, "imgnet_real_query.txt", "imgnet/imgnet_real_query.txt"))
    targets = read_labels(first_existing(folder, "imgnet_targets.txt", "imgnet/imgnet_targets.txt"))
    by_label: dict[int, list[str]] = {}
    for path, label in targets:
        by_label.setdefault(label, []).append(path)
    gallery = list(dict.fromkeys(path for path, _ in targets))
    tasks = []
    for number, domain in enumerate(DOMAINS):
        text, queries = fill_template(template, {"domain": domain}), []
        for n, (path, label) in enumerate(asked):
            right = tuple(dict.fromkeys(by_label.get(label + CLASSES * number, ())))
            queries.append(Query(f"{domain}:{n}", path, text, right, is_answerable=bool(right)))
        if not any(query.is_answerable for query in queries):
            raise DataError(f"{folder}: no query has a right image in the domain {domain}; download its lists again")
        tasks.append(Task(domain, queries, gallery))
    paths = dict.fromkeys([*gallery, *(path for path, _ in asked)])
    root = folder.parent if folder.name == "imgnet" else folder
    files = {p: root / p if (root / p).is_file() else folder / p.removeprefix("imgnet/") for p in paths}
    return Benchmark(name, "dtin", split, {"": template}, tasks, image_reader(files), files=files)


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The first 50."""
    return Prediction(rank_gallery(task, similarity, max(RANKS)))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{10,50}: the share of all right images among the first k, 0 where there is none."""
    right = set(query.ground_truths)
    return {f"recall_at_{k}": sum(key in right for key in prediction.ranked[:k]) / (len(right) + 1e-5) for k in RANKS}


PROTOCOL = Protocol(
    name="dtin",
    rule="Domain-Transfer ImageNet: a photograph and a domain; right are all images of its class in that domain.",
    source="google-research/composed_image_retrieval 2f15afc; template: ours",
    templates={"": TEMPLATE},
    main_metric="recall_at_10",
    read=read,
    predict=predict,
    measure=measure,
)
