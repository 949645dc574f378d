"""Small benchmarks in the official layouts: annotation files alone, or with images."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = ("red", "blue", "two more", "no dog", "night")


def dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def circo_folder(folder: Path, annotations: list[dict[str, Any]] | None) -> Path:
    rng = random.Random(1)
    ids = sorted(rng.sample(range(10, 100_000), 90))
    if annotations is None:
        annotations = []
        for n in range(25):
            reference, *right = rng.sample(ids, rng.randint(2, 6))
            annotations.append(
                {
                    "reference_img_id": reference,
                    "target_img_id": right[0],
                    "relative_caption": rng.choice(WORDS),
                    "id": n,
                    "gt_img_ids": right,
                }
            )
            annotations[-1] |= {"shared_concept": f"a {rng.choice(WORDS)} thing", "semantic_aspects": []}
    named = sorted({i for a in annotations for i in (a["reference_img_id"], *a["gt_img_ids"])} | set(ids))
    dump(folder / "annotations" / "val.json", annotations)
    hidden = [{k: v for k, v in a.items() if k not in ("target_img_id", "gt_img_ids")} for a in annotations]
    dump(folder / "annotations" / "test.json", hidden)
    dump(
        folder / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json",
        {"images": [{"id": i} for i in named]},
    )
    (folder / "COCO2017_unlabeled" / "unlabeled2017").mkdir()
    return folder


def cirr_folder(folder: Path) -> Path:
    rng = random.Random(2)
    groups = [[f"dev-{g}-{m}-img0" for m in range(6)] for g in range(12)]
    rows = []
    for n in range(30):
        members = rng.choice(groups)
        reference, target = rng.sample(members, 2)
        group = {"id": n, "members": members, "reference_rank": 0, "target_rank": 1}
        rows.append(
            {
                "pairid": 7 * n,
                "reference": reference,
                "target_hard": target,
                "target_soft": {target: 1.0},
                "caption": rng.choice(WORDS),
                "img_set": group,
            }
        )
    paths = {i: f"./dev/{i}.png" for g in groups for i in g}
    for split in ("val", "test1"):
        shown = rows if split == "val" else [{k: v for k, v in r.items() if not k.startswith("target")} for r in rows]
        dump(folder / "captions" / f"cap.rc2.{split}.json", shown)
        dump(folder / "image_splits" / f"split.rc2.{split}.json", paths)
    return folder


def fashioniq_folder(folder: Path) -> Path:
    rng = random.Random(3)
    for category in ("dress", "shirt", "toptee"):
        gallery = [f"B{category[0].upper()}{n:04d}" for n in range(rng.randint(60, 90))]
        pairs = [rng.sample(gallery, 2) for _ in range(rng.randint(15, 25))]
        dump(
            folder / f"captions/cap.{category}.val.json",
            [{"target": t, "candidate": c, "captions": rng.sample(WORDS, 2)} for t, c in pairs],
        )
        dump(folder / f"image_splits/split.{category}.val.json", gallery)
    return folder


def genecis_folder(folder: Path) -> Path:
    rng = random.Random(4)

    def coco(n: int) -> dict[str, Any]:
        return {"val_image_id": n}

    def genome(n: int) -> dict[str, Any]:
        return {"image_id": n, "instance_bbox": [n % 7, 2, 10, 12]}

    for task, make in (
        ("focus_object", coco),
        ("change_object", coco),
        ("focus_attribute", genome),
        ("change_attribute", genome),
    ):
        rows = []
        for n in range(20):
            # one odd gallery: the official loader leaves it out
            reference, target, *others = rng.sample(range(500), 11 if make is genome and n == 3 else 16)
            if n == 5:
                others[3] = target  # as one query of change_object has it
            rows.append(
                {
                    "reference": make(reference),
                    "target": make(target),
                    "gallery": [make(o) for o in others],
                    "condition": rng.choice(WORDS),
                }
            )
        dump(folder / f"genecis/{task}.json", rows)
    return folder


MADE = {
    "circo": lambda f: circo_folder(f, None),
    "cirr": cirr_folder,
    "fashioniq": fashioniq_folder,
    "genecis": genecis_folder,
}
