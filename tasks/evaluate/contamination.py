"""Contamination: which images of a benchmark were in the training data, by perceptual hash and thumbnail.

An image counts as seen when ingest's own rule for near-duplicates (tasks/fingerprints/perceptual.py) finds a copy of it
among the images that training uses: those of the version's triplets, without the held-out ones, and those of
`train.datasets`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tasks.config import Params
from tasks.evaluate.encode import image_ids
from tasks.evaluate.protocols import Benchmark
from tasks.fingerprints.perceptual import hash_hits, perceptual_hash, thumbnail, thumbnail_distance
from tasks.models.retrievers.kept_rows import KeptRows
from tasks.store import Store
from tasks.train.datasets import image_files
from tasks.train.splits import held_out_images
from tasks.train.version_rows import row_image_ids

if TYPE_CHECKING:
    from PIL.Image import Image

Fingerprint: TypeAlias = tuple[int, bytes]  # 64-bit perceptual hash, thumbnail


def fingerprint(image: Image) -> Fingerprint:
    """Perceptual hash and thumbnail of an image."""
    image = image.convert("RGB")
    return perceptual_hash(image), thumbnail(image)


class FingerprintRecorder:
    """An image reader that keeps the fingerprint of every image it reads, in `fingerprints` (key -> fingerprint)."""

    def __init__(self, read_image: Callable[[str], Image]) -> None:
        self._read_image = read_image
        self.fingerprints: dict[str, Fingerprint] = {}

    def __call__(self, key: str) -> Image:
        image = self._read_image(key)
        if key not in self.fingerprints:
            self.fingerprints[key] = fingerprint(image)
        return image


def benchmark_fingerprints(
    benchmark: Benchmark, recorder: FingerprintRecorder, folder: Path | None
) -> dict[str, Fingerprint]:
    """Key -> fingerprint of every image of a benchmark.

    Args:
        benchmark: with its images.
        recorder: holds the fingerprints of the images that were read; those whose vectors were kept were not read.
        folder: where fingerprints are kept, with the vectors.
    """
    keys, identify = benchmark.image_keys(), image_ids(benchmark)

    def compute(positions: Sequence[int]) -> Iterator[np.ndarray]:
        for n in positions:
            if keys[n] not in recorder.fingerprints:
                recorder(keys[n])
            bits, pixels = recorder.fingerprints[keys[n]]
            yield np.frombuffer(bits.to_bytes(8, "big") + pixels, np.uint8)[None]

    rows = KeptRows(folder and folder / "fingerprints").rows([identify(key) for key in keys], compute)
    return {
        key: (int.from_bytes(row[:8].tobytes(), "big"), row[8:].tobytes()) for key, row in zip(keys, rows, strict=True)
    }


def find_copies(
    fingerprints: Mapping[str, Fingerprint],
    known: Sequence[Fingerprint],
    *,
    max_hash_distance_bits: int,
    max_thumbnail_distance: float,
) -> set[str]:
    """Keys of the images that have a near-duplicate among the known ones.

    Args:
        fingerprints: key -> fingerprint of the images to look up.
        known: fingerprints to compare with.
        max_hash_distance_bits: as ingest.hash_distance_bits.
        max_thumbnail_distance: as ingest.thumbnail_distance.
    """
    if not fingerprints or not known:
        return set()
    keys = list(fingerprints)
    known_thumbnails = np.stack([np.frombuffer(t, np.uint8) for _, t in known])
    known_hashes = np.array([h for h, _ in known], np.uint64)
    hashes = np.array([fingerprints[key][0] for key in keys], np.uint64)
    copies = set()
    for row, hits in hash_hits(hashes, known_hashes, distance_bits=max_hash_distance_bits):
        if not len(hits):
            continue
        distances = thumbnail_distance(fingerprints[keys[row]][1], known_thumbnails[hits])
        if bool((distances <= max_thumbnail_distance).any()):
            copies.add(keys[row])
    return copies


def training_image_ids(triplets: Sequence[Mapping[str, Any]], held_out_share: float) -> set[str]:
    """Ids of the images that training may use: those of all triplets, without the held-out ones."""
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], held_out_share)
    rows = [t for t in triplets if t["query_image_id"] not in held_out and t["target_image_id"] not in held_out]
    return {i for t in rows for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])} - held_out


def training_fingerprints(params: Params, store: Store, triplets: Sequence[Mapping[str, Any]]) -> list[Fingerprint]:
    """Fingerprints of the images that training may have used: the version's, and the files of `train.datasets`, of a
    streamed dataset those of a sample.
    """
    image_ids = training_image_ids(triplets, params.train.held_out_share)
    for dataset in params.train.datasets:
        if dataset.format == "rows":
            image_ids |= row_image_ids(dataset, store, params.train.held_out_share, triplets)
    columns = store.read_table("images", ["image_id", "phash", "thumbnail"]).to_pydict()
    rows = zip(columns["image_id"], columns["phash"], columns["thumbnail"], strict=True)
    fingerprints = [(int(h, 16), t) for i, h, t in rows if i in image_ids and h and t]
    for dataset in params.train.datasets:
        for path in image_files(dataset, params.train.stream_records).values():
            from PIL import Image

            with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
                fingerprints.append(fingerprint(image.convert("RGB")))
    return fingerprints


def contamination_report(
    benchmark: Benchmark, fingerprints: Mapping[str, Fingerprint], known: Sequence[Fingerprint], params: Params
) -> dict[str, Any]:
    """How many of the benchmark's images were trained on.

    Args:
        benchmark: with known answers.
        fingerprints: of its images, by key.
        known: fingerprints of the training images.
        params: for ingest's thresholds of a near-duplicate.
    Returns:
        {"images", "copies", "share"} of the images of queries and answers, the same of the other images of the gallery
        ("distractors", "distractor_copies"), and up to 10 keys of copies ("examples").
    """
    copies = find_copies(
        fingerprints,
        known,
        max_hash_distance_bits=params.ingest.hash_distance_bits,
        max_thumbnail_distance=params.ingest.thumbnail_distance,
    )
    relevant: set[str] = set()
    for task in benchmark.tasks:
        for query in task.queries:
            answers = (benchmark.item(key).image for key in query.ground_truths)
            relevant.update(image for image in (query.reference, *answers) if image)
    distractors = set(fingerprints) - relevant
    return {
        "images": len(relevant),
        "copies": len(copies & relevant),
        "share": len(copies & relevant) / max(1, len(relevant)),
        "distractors": len(distractors),
        "distractor_copies": len(copies & distractors),
        "examples": sorted(copies & relevant)[:10],
    }
