"""A folder of the sample world with labelled pairs: what `select.differences` of the demo is fitted to.

    python -m tasks.sample.labelled_pairs <folder> [--seed 3] [--images 2200]
    python -m tasks calibrate --source <folder> --differences <folder>.pairs.csv --others-differ
        --out tasks/sample/checkpoints/differences.json

The scenes are of the split 'train', which no corpus and no benchmark contains; captions are missing or wrong as often
as in the world. pairs.csv stands beside the folder and names every two images with one to three differences.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from tasks.sample.scenes import Scene, difference
from tasks.sample.world import make_world

MOST = 3  # differences that the describer was trained to say


def make_labelled_pairs(folder: Path, *, seed: int, images: int) -> int:
    """Write the images into `folder` and the pairs into `<folder>.pairs.csv`; returns how many pairs, a count."""
    truth = folder.with_name(f"{folder.name}.truth.jsonl")
    make_world(folder, seed=seed, images=images, truth=truth, split="train")
    scenes: list[tuple[str, Scene]] = []
    for line in truth.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["scene"]:
            scenes.append((row["path"], Scene.from_record(row["scene"])))
    count = 0
    with folder.with_name(f"{folder.name}.pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("query", "target", "differences"))
        for n, (query, a) in enumerate(scenes):
            for target, b in scenes[n + 1 :]:
                if abs(len(a.objects) - len(b.objects)) <= MOST and 1 <= len(difference(a, b)) <= MOST:
                    rows.writerow((query, target, len(difference(a, b))))
                    count += 1
    return count


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.sample.labelled_pairs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--images", type=int, default=2200)
    options = parser.parse_args(arguments)
    print(json.dumps({"pairs": make_labelled_pairs(options.folder, seed=options.seed, images=options.images)}))


if __name__ == "__main__":
    main()
