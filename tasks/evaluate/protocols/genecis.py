"""GeneCIS: four tasks, focus on or change an attribute or an object; each query has about fifteen candidates of its
own.

<folder>/[genecis/]{focus,change}_{attribute,object}.json. Object tasks show COCO val2017 images (val2017/<12
digits>.jpg), attribute tasks boxes of Visual Genome 1.2 images (VG_100K[_2]/<id>.jpg), cut out 0.7 wider and padded to
a square. Recall@1, 2, 3; the benchmark's score is the mean over the tasks. The files name the target first, so of equal
candidates the target comes last. Attribute queries whose gallery has not the usual size are left out, as the official
loader does. Source: facebookresearch/genecis at 0c5c968, datasets/{coco,vaw}_dataset.py, eval/eval_functions.py,
utils/metric_utils.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.evaluate.protocols.base import (
    Benchmark,
    Item,
    Prediction,
    Protocol,
    Query,
    Task,
    filled,
    first_of,
    image_reader,
    order_candidates,
    read_json,
    recalls,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# MegaPairs' own are unpublished; these say what the task's annotators were asked.
TEMPLATES = {
    "focus_attribute": "the same {condition}",
    "change_attribute": "the same object but {condition}",
    "focus_object": "the same scene with the same {condition}",
    "change_object": "the same scene with {condition}",
}
RANKS = (1, 2, 3)
DILATION = 0.7


def key_of(entry: Mapping[str, Any]) -> str:
    """An image's key: the COCO id, or the Visual Genome id and box."""
    if "val_image_id" in entry:
        return str(entry["val_image_id"])
    return f"{entry['image_id']}:" + ",".join(str(v) for v in entry["instance_bbox"])


def cut_out(image: Image, box: Sequence[float]) -> Image:
    """The box (left, top, width, height; px) widened by `DILATION` to the left, top, right and bottom, on a black
    square.
    """
    from PIL import Image

    left, top = max(0.0, box[0] - DILATION * box[2]), max(0.0, box[1] - DILATION * box[3])
    # right and bottom count from the widened corner, as in the official code
    right, bottom = min(image.width, left + (1 + DILATION) * box[2]), min(image.height, top + (1 + DILATION) * box[3])
    cut = image.crop((left, top, right, bottom))  # type: ignore[arg-type]  # Pillow rounds
    side = max(cut.size)
    square = Image.new("RGB", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """All of the four tasks whose file is below `folder`.

    Raises:
        ConfigError: none is; a template without {condition}.
    """
    place = first_of(folder, "genecis", ".")
    tasks, templates = [], dict[str, str]()
    items: dict[str, Item] = {}
    for task, pinned in TEMPLATES.items():
        path = place / f"{task}.json"
        if not path.is_file():
            continue
        rows = read_json(path)
        usual = Counter(len(r["gallery"]) for r in rows).most_common(1)[0][0]
        if task.endswith("attribute"):
            rows = [r for r in rows if len(r["gallery"]) == usual]
        templates[task] = template or pinned
        if "{condition}" not in templates[task]:
            raise ConfigError(f"template is {templates[task]!r}: expected {{condition}} in it")
        gallery: dict[str, None] = {}
        queries = []
        for n, row in enumerate(rows):
            target = key_of(row["target"])
            others = [key_of(g) for g in row["gallery"]]
            if target in others:  # one query of change_object: the copy is an entry of its own, and wins the tie
                items[f"{target}#copy"] = Item(target)
                others = [f"{key}#copy" if key == target else key for key in others]
            gallery.update(dict.fromkeys([target, *others]))
            text = filled(templates[task], {"condition": row["condition"]})
            queries.append(
                Query(f"{task}:{n}", key_of(row["reference"]), text, (target,), candidates=(target, *others))
            )
        tasks.append(Task(task, queries, list(gallery)))
    if not tasks:
        raise ConfigError(f"{place}: none of {', '.join(TEMPLATES)} (.json) is there")
    return Benchmark(name, "genecis", split, templates, tasks, reader(folder), items)


def reader(folder: Path) -> Any:
    """key -> image, cut out where the key names a box."""

    def read_image(key: str) -> Image:
        image, _, box = key.partition(":")
        if not box:
            places = [folder / p / f"{int(image):012d}.jpg" for p in ("val2017", "coco/val2017", "images")]
        else:
            places = [folder / p / f"{image}.jpg" for p in ("VG_100K", "VG_100K_2", "images")]
        there = next((p for p in places if p.is_file()), places[0])
        whole = image_reader({key: there})(key)
        return cut_out(whole, [float(v) for v in box.split(",")]) if box else whole

    return read_image


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The query's own candidates, the target last among equals."""
    return Prediction(order_candidates(task, query, similarity))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{1,2,3} of the target."""
    return recalls(query.right[0], prediction.ranked, RANKS)


PROTOCOL = Protocol(
    "genecis",
    TEMPLATES,
    "recall_at_1",
    read,
    predict,
    measure,
    None,
    "facebookresearch/genecis 0c5c968; templates: ours",
)
