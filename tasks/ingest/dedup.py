"""The images kept so far, of this batch and of all earlier ones: who is a copy of whom.

Exact copies by the sha256 of the source's and of the stored bytes. Near copies by tasks/fingerprints/perceptual.py: a
hash hit is a candidate, thumbnails decide, and where `crop_margin` is set, thumbnails aligned for a little more or less
at the sides. The earliest published image stays: rows are in order of batch and shard, and the first hit counts.

An image that is near to several kept ones is dropped as a copy of the first and names the others (`also`): it shows
that they belong together, yet nothing that was published is withdrawn. `copy_groups` reads these ties back from the
dropped
rows: they are the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.fingerprints.crop_match import crop_distance
from tasks.fingerprints.perceptual import hash_hits, thumbnail_distance
from tasks.ingest.normalize import NormalizedImage
from tasks.store.id_groups import connected_ids

# mean difference of the plain thumbnails, levels, above which no alignment is tried: of 220 crops of up to 5% a side
# the largest was 15.8
CROP_MEAN = 20.0


@dataclass(frozen=True)
class CopyOf:
    """What an image repeats.

    Attributes:
        reason: duplicate or near_duplicate.
        image_id: the earliest kept image that it is a copy of.
        also: other kept images that it is a near copy of.
    """

    reason: str
    image_id: str
    also: tuple[str, ...] = ()


class Corpus:
    """Kept images, growing."""

    def __init__(
        self,
        known: Mapping[str, Sequence[Any]],
        *,
        hash_distance_bits: int,
        thumbnail_max: float,
        crop_margin: float = 0.0,
    ) -> None:
        """`known`: columns image_id, source_sha256, phash (hex) and thumbnail of the earlier batches, in order of
        batch.
        """
        self.hash_distance_bits, self.thumbnail_max, self.crop_margin = hash_distance_bits, thumbnail_max, crop_margin
        self.by_source: dict[str, str] = {}
        for sha256, image_id in zip(known["source_sha256"], known["image_id"], strict=True):
            self.by_source.setdefault(sha256, image_id)
        self.ids: list[str] = list(known["image_id"])
        self.by_id = set(self.ids)
        self._hashes = np.array([int(h, 16) for h in known["phash"]], np.uint64)
        self._thumbnails = np.frombuffer(b"".join(known["thumbnail"]), np.uint8).reshape(
            len(self.ids), -1 if self.ids else 192
        )

    def copy_of(self, sha256: str, image_id: str, image: NormalizedImage) -> CopyOf | None:
        """What this image repeats, if anything."""
        if sha256 in self.by_source:
            return CopyOf("duplicate", self.by_source[sha256])
        if image_id in self.by_id:
            return CopyOf("duplicate", image_id)
        count = len(self.ids)
        _, hits = next(
            hash_hits(np.array([image.phash], np.uint64), self._hashes[:count], distance_bits=self.hash_distance_bits)
        )
        if not len(hits):
            return None
        others = self._thumbnails[hits]
        near = thumbnail_distance(image.thumbnail, others) <= self.thumbnail_max
        if self.crop_margin > 0 and not near.all():
            mean = np.abs(others.astype(np.int16) - np.frombuffer(image.thumbnail, np.uint8)).mean(axis=1)
            for row in np.flatnonzero(~near & (mean <= CROP_MEAN)).tolist():
                near[row] = (
                    crop_distance(image.grid, others[row].tobytes(), margin=self.crop_margin) <= self.thumbnail_max
                )
        found = [self.ids[i] for i in hits[near].tolist()]
        return CopyOf("near_duplicate", found[0], tuple(found[1:])) if found else None

    def add(self, sha256: str, image_id: str, image: NormalizedImage) -> None:
        """A kept image joins."""
        count = len(self.ids)
        if count == len(self._hashes):
            more = max(1024, count)
            self._hashes = np.concatenate([self._hashes, np.zeros(more, np.uint64)])
            self._thumbnails = np.concatenate([self._thumbnails[:count], np.zeros((more, 192), np.uint8)])
        self._hashes[count] = image.phash
        self._thumbnails[count] = np.frombuffer(image.thumbnail, np.uint8)
        self.ids.append(image_id)
        self.by_id.add(image_id)
        self.by_source.setdefault(sha256, image_id)


def copy_groups(details: Iterable[str]) -> list[list[str]]:
    """Kept images that dropped ones tie together.

    Args:
        details: column `detail` of ingest's dropped rows, of all batches.
    Returns:
        groups of two or more image ids, each sorted, the groups too.
    """
    rows = [json.loads(detail) for detail in details]
    names = connected_ids((other, row["copy_of"]) for row in rows for other in row.get("also", ()))
    groups: dict[str, list[str]] = {}
    for image_id, name in names.items():
        groups.setdefault(name, []).append(image_id)
    return sorted(g for g in groups.values() if len(g) > 1)
