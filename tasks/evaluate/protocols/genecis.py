"""GeneCIS: four tasks, {focus on, change} x {attribute, object}; each query ranks about fifteen candidates of its own.

Files: <folder>/[genecis/]{focus,change}_{attribute,object}.json. Object tasks use COCO val2017 images (val2017/<12
digits>.jpg); attribute tasks use boxes of Visual Genome 1.2 images, widened by 0.7 and padded to a square. Visual
Genome's images lie in one folder, VG_100K_all, as the official config.py has it, or in the two that its archives unpack
into (VG_100K, VG_100K_2). All may lie below folders of their own (`COCO_PARENTS`, `GENOME_PARENTS`).

Metrics: Recall@1, 2, 3; the benchmark's score is the mean over the tasks. The files name the target first, so among
equal candidates the target is ranked last. Queries whose gallery has not the usual size are left out, as both official
loaders do. Source: facebookresearch/genecis at 0c5c968, datasets/{coco,vaw}_dataset.py,
eval/eval_functions.py, utils/metric_utils.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols.base import (
    Benchmark,
    GalleryItem,
    Prediction,
    Protocol,
    Query,
    Size,
    Task,
    fill_template,
    first_existing,
    open_image,
    rank_candidates,
    read_records,
    recall_at_ranks,
    record_errors,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# MegaPairs' own templates are unpublished; these repeat what the task's annotators were asked.
TEMPLATES = {
    "focus_attribute": "the same {condition}",
    "change_attribute": "the same object but {condition}",
    "focus_object": "the same scene with the same {condition}",
    "change_object": "the same scene with {condition}",
}
RANKS = (1, 2, 3)
BOX_MARGIN = 0.7  # share of the box's width and height that is added on each side
COCO_PARENTS = ("", "coco", "COCO", "COCO/022719", "genecis")
GENOME_PARENTS = ("", "VisualGenome1.2", "VisualGenome1.2/061517", "VisualGenome", "visual_genome", "genecis")
COPY_SUFFIX = "#copy"  # key of a candidate that shows the target's own image


def image_key(entry: Mapping[str, Any]) -> str:
    """Key of an image: the COCO id, or the Visual Genome id and box.

    Raises:
        DataError: the entry names neither.
    """
    if "val_image_id" in entry:
        return str(entry["val_image_id"])
    if "image_id" not in entry or "instance_bbox" not in entry:
        raise DataError(f"GeneCIS: {dict(entry)}: expected val_image_id, or image_id with instance_bbox")
    return f"{entry['image_id']}:" + ",".join(str(v) for v in entry["instance_bbox"])


def crop_box(image: Image, box: Sequence[float]) -> Image:
    """Crop a box (left, top, width, height; px), widened by `BOX_MARGIN` on each side, onto a black square."""
    from PIL import Image

    left, top = max(0.0, box[0] - BOX_MARGIN * box[2]), max(0.0, box[1] - BOX_MARGIN * box[3])
    # right and bottom are computed from the widened corner, as in the official code
    right = min(image.width, left + (1 + BOX_MARGIN) * box[2])
    bottom = min(image.height, top + (1 + BOX_MARGIN) * box[3])
    crop = image.crop((left, top, right, bottom))  # type: ignore[arg-type]  # Pillow rounds
    side = max(crop.size)
    square = Image.new("RGB", (side, side))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


def build_task(name: str, rows: Sequence[Mapping[str, Any]], template: str, items: dict[str, GalleryItem]) -> Task:
    """One task from its annotations; a candidate that repeats the target's image is added to `items` under a key of its
    own.

    One query of change_object names its target's image twice: the copy is a separate entry, and wins the tie.
    """
    sizes = Counter(len(r["gallery"]) for r in rows)
    usual_size = max(sorted(sizes), key=sizes.__getitem__, default=0)
    rows = [r for r in rows if len(r["gallery"]) == usual_size]
    gallery: dict[str, None] = {}
    queries = []
    for n, row in enumerate(rows):
        with record_errors(f"GeneCIS {name}: record {n}", row):
            target = image_key(row["target"])
            others = [image_key(g) for g in row["gallery"]]
            text = fill_template(template, {"condition": row["condition"]})
            reference = image_key(row["reference"])
        if target in others:
            items[f"{target}{COPY_SUFFIX}"] = GalleryItem(target)
            others = [f"{key}{COPY_SUFFIX}" if key == target else key for key in others]
        gallery.update(dict.fromkeys([target, *others]))
        queries.append(Query(f"{name}:{n}", reference, text, (target,), candidates=(target, *others)))
    return Task(name, queries, list(gallery))


def read(folder: Path, split: str, template: str | None, name: str) -> Benchmark:
    """Read those of the four tasks whose file is in `folder`.

    Raises:
        ConfigError: none is; a template without {condition}.
    """
    annotations = first_existing(folder, "genecis", ".")
    tasks, templates = [], dict[str, str]()
    items: dict[str, GalleryItem] = {}
    for task, pinned_template in TEMPLATES.items():
        path = annotations / f"{task}.json"
        if not path.is_file():
            continue
        templates[task] = template or pinned_template
        if "{condition}" not in templates[task]:
            raise ConfigError(f"template is {templates[task]!r}: expected {{condition}} in it")
        rows = read_records(path, ("reference", "target", "gallery", "condition"))
        if not rows:
            raise DataError(f"{path}: no query in it; download it again")
        tasks.append(build_task(task, rows, templates[task], items))
    if not tasks:
        raise ConfigError(f"{annotations}: none of {', '.join(TEMPLATES)} (.json) is there")
    made = Benchmark(name, "genecis", split, templates, tasks, region_reader({}), items)
    files = image_files(folder, made.image_keys())
    return replace(made, read_image=region_reader(files), files=files)


def image_files(folder: Path, keys: Iterable[str]) -> dict[str, Path]:
    """Image key -> file; of an image that is nowhere the path where it is looked for first."""
    coco = [folder / parent / "val2017" for parent in COCO_PARENTS] + [folder / "images"]
    names = ("VG_100K_all", "VG_100K", "VG_100K_2")
    genome = [folder / parent / name for parent in GENOME_PARENTS for name in names] + [folder / "images"]
    there = {0: [p for p in coco if p.is_dir()] or coco[:1], 1: [p for p in genome if p.is_dir()] or genome[:1]}
    files = {}
    for key in keys:
        image, _, box = key.partition(":")
        paths = [parent / (f"{image}.jpg" if box else f"{int(image):012d}.jpg") for parent in there[bool(box)]]
        files[key] = next((path for path in paths if path.is_file()), paths[0])
    return files


def region_reader(files: Mapping[str, Path]) -> Callable[[str], Image]:
    """A function key -> image, cropped where the key names a box."""

    def read_image(key: str) -> Image:
        whole = open_image(key, files.get(key))
        _, _, box = key.partition(":")
        return crop_box(whole.convert("RGB"), [float(v) for v in box.split(",")]) if box else whole

    return read_image


def predict(task: Task, query: Query, similarity: np.ndarray) -> Prediction:
    """The query's own candidates, the target last among equals."""
    return Prediction(rank_candidates(task, query, similarity))


def measure(query: Query, prediction: Prediction) -> dict[str, float]:
    """recall_at_{1,2,3} of the target."""
    return recall_at_ranks(query.ground_truths[0], prediction.ranked, RANKS)


PROTOCOL = Protocol(
    name="genecis",
    rule="GeneCIS: four tasks, focus on or change an attribute or an object; each query has about fifteen candidates "
    "of its own.",
    source="facebookresearch/genecis 0c5c968; templates: ours",
    templates=TEMPLATES,
    main_metric="recall_at_1",
    read=read,
    predict=predict,
    measure=measure,
    sizes={"val": Size(tasks=4)},
)
