"""A held-out benchmark of composed retrieval in CIRCO's own format (arXiv:2303.15247), from the split 'benchmark'.

    python -m tasks.sample.benchmark <folder> [--seed 11] [--queries 500] [--gallery 2000]

Writes `<folder>/annotations.json` and `<folder>/images/<id>.jpg`. The gallery also contains the query images, and some
scenes in two or three drawings; the ground truths of a query are all gallery images that satisfy its edits and keep the
rest. Besides CIRCO's own fields, `paraphrases` holds the same edits in the other styles, to measure the spread of a
score over wordings.

A query needs both its image and its text: at least MIN_RELATIVES other scenes are no more edits away from the query
image than its target is, so that the image alone does not identify the target (a third or more of the public
benchmarks' queries are solved by image or text alone). As in the world's families, about 50/35/15% of the queries have
one/two/three edits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.sample.phrases import instruction
from tasks.sample.scenes import Scene, difference, draw_image, family, shared

STYLES = ("imperative", "noun phrase", "question", "keep")
MIN_RELATIVES = 3  # scenes at least as near to the query image as its target is
# edits -> share of the queries; where a small gallery has too few pairs of one, the others make up for it
EDITS = {1: 0.5, 2: 0.35, 3: 0.15}


def needs_text(query: Scene, target: Scene, family: Sequence[Scene]) -> bool:
    """Whether at least MIN_RELATIVES others of the family are no more edits away from `query` than `target` is."""
    edits = len(difference(query, target))
    return (
        sum(len(difference(query, other)) <= edits for other in family if other not in (query, target)) >= MIN_RELATIVES
    )


def make_benchmark(
    folder: Path, *, seed: int = 11, queries: int = 500, gallery: int = 2000, truth: Path | None = None
) -> dict[str, int]:
    """Write the benchmark.

    Args:
        folder: where annotations.json and images/ go.
        seed: the same arguments write the same bytes.
        queries: a count; at most about a third of `gallery`.
        gallery: least number of gallery images.
        truth: where to write each image's scene as JSON lines {"id", "scene"}; not written where None.
    Returns:
        counts by name: queries, gallery, ground_truths.
    """
    rng = random.Random(f"benchmark:{seed}")
    families: list[list[Scene]] = []
    drawings: dict[Scene, list[int]] = {}
    images = 0
    while images < gallery:
        members = family(rng, "benchmark", rng.randint(6, 8))
        if any(scene in drawings for scene in members):
            continue
        families.append(members)
        for scene in members:
            count = rng.choices((1, 2, 3), (65, 22, 13))[0]
            drawings[scene] = list(range(images, images + count))
            images += count
    ids = rng.sample(range(images), images)  # an id must not reveal which images are of one family
    drawings = {scene: [ids[number] for number in numbers] for scene, numbers in drawings.items()}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for scene, numbers in drawings.items():
        for rendering, number in enumerate(numbers):
            draw_image(scene, rendering=1000 + rendering).save(folder / "images" / f"{number}.jpg", quality=92)
    annotations: list[dict[str, Any]] = []
    for query, target in _draw_pairs(rng, families, queries):
        common = shared(query, target)
        reference, style = rng.choice(drawings[query]), rng.choice(STYLES)
        edits = difference(query, target)
        annotations.append(
            {
                "reference_img_id": reference,
                "target_img_id": drawings[target][0],
                "relative_caption": instruction(edits, common, style),
                "paraphrases": [instruction(edits, common, other) for other in STYLES if other != style],
                "shared_concept": ", ".join(f"a {name}" for name in common) or "nothing",
                "gt_img_ids": drawings[target],
                "id": len(annotations),
            }
        )
    (folder / "annotations.json").write_text(json.dumps(annotations, indent=1) + "\n", encoding="utf-8")
    if truth is not None:
        rows = sorted(
            ((number, scene) for scene, numbers in drawings.items() for number in numbers), key=lambda row: row[0]
        )
        truth.write_text(
            "".join(json.dumps({"id": n, "scene": s.to_record()}) + "\n" for n, s in rows), encoding="utf-8"
        )
    ground_truths = sum(len(a["gt_img_ids"]) for a in annotations)
    return {"queries": len(annotations), "gallery": images, "ground_truths": ground_truths}


def _draw_pairs(rng: random.Random, families: Sequence[Sequence[Scene]], queries: int) -> list[tuple[Scene, Scene]]:
    """(query, target) pairs that need their text, in the shares of `EDITS`, each once, shuffled."""
    usable: dict[int, list[tuple[Scene, Scene]]] = {edits: [] for edits in EDITS}
    for members in families:
        for query, target in itertools.permutations(members, 2):
            if needs_text(query, target, members):
                usable[len(difference(query, target))].append((query, target))
    for pairs in usable.values():
        rng.shuffle(pairs)
    drawn = [pair for edits, share in EDITS.items() for pair in usable[edits][: round(share * queries)]]
    rest = [pair for edits, share in EDITS.items() for pair in usable[edits][round(share * queries) :]]
    drawn += rng.sample(rest, min(len(rest), max(0, queries - len(drawn))))
    if len(drawn) < queries:
        raise ValueError(
            f"benchmark: {queries} queries wanted, {len(drawn)} usable pairs in a gallery of this size; raise --gallery"
        )
    rng.shuffle(drawn)
    return drawn[:queries]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.sample.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--gallery", type=int, default=2000)
    parser.add_argument("--truth", type=Path)
    options = parser.parse_args(arguments)
    counts = make_benchmark(
        options.folder, seed=options.seed, queries=options.queries, gallery=options.gallery, truth=options.truth
    )
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
