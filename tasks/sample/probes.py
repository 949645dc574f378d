"""Canaries and labelled questions of the sample world, as small files.

    python -m tasks.sample.probes        writes both again

tasks/sample/canaries/: 12 pairs one edit apart, of the split 'train'; canaries.csv lists what a description must
contain. tasks/sample/labelled/: 120 questions with known answers (labels.csv), of the split 'benchmark', which no
checkpoint was trained on; half of them fit, the others show another member of the target's family or the query itself.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from tasks.sample.phrases import STYLES, instruction
from tasks.sample.scenes import Edit, Scene, difference, draw_image, family, shared
from tasks.sample.truth import is_true

HERE = Path(__file__).parent
CANARIES, QUESTIONS = 12, 120


def expected_word(edit: Edit) -> str:
    """The word that names what is new after one edit."""
    return edit.name.split()[-1] if edit.kind in ("remove", "add") else edit.value


def expected_words(edit: Edit) -> str:
    """What a description of one edit must contain, as canaries.csv lists it.

    Of a background its change: its colour alone stands in the description of a blank image too.
    """
    return f"background to {edit.value}" if edit.kind == "background" else expected_word(edit)


def write_canaries(folder: Path, seed: int = 3) -> None:
    """Write pairs one edit apart, the kinds of edit in turn."""
    rng, kinds = random.Random(seed), ["background", "colour", "shape", "size"]
    rows: list[tuple[str, ...]] = []
    folder.mkdir(parents=True, exist_ok=True)
    while len(rows) < CANARIES:
        query, target = rng.sample(family(rng, "train", 4), 2)
        edits = difference(query, target)
        if (
            len(edits) != 1
            or edits[0].kind != kinds[len(rows) % len(kinds)]
            or expected_word(edits[0]) in " ".join(shared(query, target))
        ):
            continue
        names = [f"{len(rows):02d}-query.png", f"{len(rows):02d}-target.png"]
        for name, scene in zip(names, (query, target), strict=True):
            draw_image(scene).save(folder / name, optimize=True)
        rows.append((*names, expected_words(edits[0])))
    write_csv(folder / "canaries.csv", ("query", "target", "expect"), rows)


def write_labelled(folder: Path, seed: int = 5) -> None:
    """Write questions in all styles; the first of every two fits."""
    rng, names = random.Random(seed), dict[str, str]()
    rows: list[tuple[str, ...]] = []
    folder.mkdir(parents=True, exist_ok=True)

    def save_image(scene: Scene) -> str:
        if scene.key not in names:
            names[scene.key] = f"{len(names):03d}.png"
            draw_image(scene).save(folder / names[scene.key], optimize=True)
        return names[scene.key]

    while len(rows) < QUESTIONS:
        query, target, other = rng.sample(family(rng, "benchmark", 4), 3)
        text = instruction(difference(query, target), shared(query, target), STYLES[len(rows) // 2 % len(STYLES)])
        wrong = query if rng.random() < 0.2 else other
        if is_true(text, query, target) and not is_true(text, query, wrong):
            rows += [
                (save_image(query), save_image(target), text, "yes"),
                (save_image(query), save_image(wrong), text, "no"),
            ]
    write_csv(folder / "labels.csv", ("query", "candidate", "instruction", "fits"), rows)


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Write a CSV file with a header and Unix line ends."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    write_canaries(HERE / "canaries")
    write_labelled(HERE / "labelled")
