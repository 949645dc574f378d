"""Canaries and labelled questions of the sample world, as small files: `python -m tasks.sample.probes` writes both
anew.

    tasks/sample/canaries/    12 pairs one edit apart, of the split 'train'; canaries.csv says what a description must hold
    tasks/sample/labelled/    120 questions with known answers, of the split 'benchmark', which no checkpoint was trained on; labels.csv

Of the labelled questions half fit; the others show a near relative of the target, or the query itself.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from tasks.sample.phrases import STYLES, instruction
from tasks.sample.scenes import Edit, Scene, difference, family, image_of, shared
from tasks.sample.truth import is_true

HERE = Path(__file__).parent
CANARIES, QUESTIONS = 12, 120


def expected(edit: Edit) -> str:
    """What a description of one edit must hold, as canaries.csv says it."""
    return edit.name.split()[-1] if edit.kind in ("remove", "add") else edit.value


def write_canaries(folder: Path, seed: int = 3) -> None:
    """Pairs one edit apart, a kind of edit after another."""
    rng, kinds = random.Random(seed), ["background", "colour", "shape", "size"]
    rows: list[tuple[str, ...]] = []
    folder.mkdir(parents=True, exist_ok=True)
    while len(rows) < CANARIES:
        query, target = rng.sample(family(rng, "train", 4), 2)
        edits = difference(query, target)
        if (
            len(edits) != 1
            or edits[0].kind != kinds[len(rows) % len(kinds)]
            or expected(edits[0]) in " ".join(shared(query, target))
        ):
            continue
        names = [f"{len(rows):02d}-query.png", f"{len(rows):02d}-target.png"]
        for name, scene in zip(names, (query, target), strict=True):
            image_of(scene).save(folder / name, optimize=True)
        rows.append((*names, expected(edits[0])))
    write_csv(folder / "canaries.csv", ("query", "target", "expect"), rows)


def write_labelled(folder: Path, seed: int = 5) -> None:
    """Questions in all styles; of every two the first fits."""
    rng, names = random.Random(seed), dict[str, str]()
    rows: list[tuple[str, ...]] = []
    folder.mkdir(parents=True, exist_ok=True)

    def saved(scene: Scene) -> str:
        if scene.key not in names:
            names[scene.key] = f"{len(names):03d}.png"
            image_of(scene).save(folder / names[scene.key], optimize=True)
        return names[scene.key]

    while len(rows) < QUESTIONS:
        query, target, other = rng.sample(family(rng, "benchmark", 4), 3)
        text = instruction(difference(query, target), shared(query, target), STYLES[len(rows) // 2 % len(STYLES)])
        wrong = query if rng.random() < 0.2 else other
        if is_true(text, query, target) and not is_true(text, query, wrong):
            rows += [(saved(query), saved(target), text, "yes"), (saved(query), saved(wrong), text, "no")]
    write_csv(folder / "labels.csv", ("query", "candidate", "instruction", "fits"), rows)


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A CSV file with a header, lines ended as on Unix."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    write_canaries(HERE / "canaries")
    write_labelled(HERE / "labelled")
