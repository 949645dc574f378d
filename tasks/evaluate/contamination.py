"""Which images of a benchmark were in the training data, by id and by perceptual hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import Params
from tasks.evaluate.protocols import Benchmark
from tasks.fingerprints.perceptual import hash_hits, perceptual_hash, thumbnail, thumbnail_distance
from tasks.store import Store
from tasks.train.splits import held_out_images

if TYPE_CHECKING:
    from PIL.Image import Image


class Fingerprints:
    """Wraps an image reader and keeps the perceptual hash and thumbnail of each image that passes, for a search for
    copies.
    """

    def __init__(self, read: Callable[[str], Image]) -> None:
        self._read = read
        self.found: dict[str, tuple[int, bytes]] = {}

    def __call__(self, key: str) -> Image:
        image = self._read(key)
        if key not in self.found:
            self.found[key] = (perceptual_hash(image), thumbnail(image))
        return image


def copies_among(
    found: Mapping[str, tuple[int, bytes]],
    known: Sequence[tuple[int, bytes]],
    *,
    distance_bits: int,
    cell_distance: float,
) -> set[str]:
    """Keys of images of which a copy is known, by ingest's own rule for near-duplicates
    (tasks/fingerprints/perceptual.py).

    Args:
        found: key -> (hash, thumbnail).
        known: hashes and thumbnails of training images.
        distance_bits: as ingest.hash_distance_bits.
        cell_distance: as ingest.thumbnail_distance.
    """
    if not found or not known:
        return set()
    keys = list(found)
    thumbnails = np.stack([np.frombuffer(t, np.uint8) for _, t in known])
    hashes = np.array([found[key][0] for key in keys], np.uint64)
    copies = set()
    for row, hits in hash_hits(hashes, np.array([h for h, _ in known], np.uint64), distance_bits=distance_bits):
        if len(hits) and bool((thumbnail_distance(found[keys[row]][1], thumbnails[hits]) <= cell_distance).any()):
            copies.add(keys[row])
    return copies


def trained_images(triplets: Sequence[Mapping[str, Any]], share: float) -> set[str]:
    """Ids of the images that training may show: of all triplets, but for the held-out ones."""
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], share)
    rows = [t for t in triplets if t["query_image_id"] not in held_out and t["target_image_id"] not in held_out]
    return {i for t in rows for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])} - held_out


def known_fingerprints(params: Params, store: Store, triplets: Sequence[Mapping[str, Any]]) -> list[tuple[int, bytes]]:
    """Hash and thumbnail of each image that training may have shown: those of the version, and of train.datasets'
    files.
    """
    shown = trained_images(triplets, params.train.held_out_share)
    columns = store.read_table("images", ["image_id", "phash", "thumbnail"]).to_pydict()
    rows = zip(columns["image_id"], columns["phash"], columns["thumbnail"], strict=True)
    known = [(int(h, 16), t) for i, h, t in rows if i in shown and h and t]
    for dataset in params.train.datasets:
        from tasks.train.datasets import read_dataset

        _, files, _ = read_dataset(dataset)
        for path in files.values():
            from PIL import Image

            with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
                whole = image.convert("RGB")
            known.append((perceptual_hash(whole), thumbnail(whole)))
    return known


def contamination_of(
    benchmark: Benchmark, found: Mapping[str, tuple[int, bytes]], known: Sequence[tuple[int, bytes]], params: Params
) -> dict[str, Any]:
    """How many of the benchmark's images were trained on.

    Returns:
        {"images", "copies", "share"} of the images of queries and answers, the same of the other images of the gallery
        ("distractors", "distractor_copies"), and some of the copies' keys.
    """
    copies = copies_among(
        found, known, distance_bits=params.ingest.hash_distance_bits, cell_distance=params.ingest.thumbnail_distance
    )
    asked: set[str] = set()
    for task in benchmark.tasks:
        for query in task.queries:
            asked.update(p for p in (query.reference, *(benchmark.item(key).image for key in query.right)) if p)
    others = set(found) - asked
    return {
        "images": len(asked),
        "copies": len(copies & asked),
        "share": len(copies & asked) / max(1, len(asked)),
        "distractors": len(others),
        "distractor_copies": len(copies & others),
        "examples": sorted(copies & asked)[:10],
    }
