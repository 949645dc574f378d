"""Index of kept images for exact and near-duplicate detection, over this batch and all earlier ones.

Exact duplicates are found by the sha256 of the source bytes and of the stored bytes. Near duplicates are found by
tasks/fingerprints/perceptual.py: images with a close perceptual hash are candidates, their thumbnails decide; where
`crop_margin` is set, also thumbnails aligned for a little more or less at the sides. Images whose thumbnails agree, but
not their details (tasks/fingerprints/detail.py), are no copies. The image published first stays: rows are in order of
batch and shard, and the first match wins.

The work for one image is bounded: of the candidates at most MAX_THUMBNAILS are compared, those with the nearest hashes.
Of these at most MAX_ALIGNMENTS are aligned, and the details of at most MAX_DETAILS looked at, those with the nearest
thumbnails; on a tie those published first. A catalogue of drawings on white, where every image is a candidate for every
other, so costs time in proportion to its images. `limited` counts the images that had more candidates than that, for
the report (docs/decisions/0086).

An image that is near to several kept ones is dropped as a duplicate of the first and names the others (`also` in its
dropped row): that shows that they belong together, but nothing that was published is withdrawn. `copy_groups` reads
these groups back from the dropped rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.fingerprints.crop_match import crop_distance
from tasks.fingerprints.detail import differ_in_detail
from tasks.fingerprints.perceptual import thumbnail_distance
from tasks.ingest.rules import NormalizedImage
from tasks.store.id_groups import connected_ids

# mean difference of the unaligned thumbnails, levels, above which no alignment is tried: of 220 crops of up to 5% a
# side the largest was 15.8
CROP_MEAN = 20.0
MAX_THUMBNAILS = 256  # candidates whose thumbnails are compared with one image's
MAX_ALIGNMENTS = 4  # candidates with which one image is aligned: 4 ms each
MAX_DETAILS = 8  # candidates whose details are compared with one image's: 4 ms each
THUMBNAIL_BYTES = 192
MIN_GROWTH = 1024  # rows that the arrays grow by, at least


@dataclass(frozen=True)
class Duplicate:
    """Which kept image another one repeats.

    Attributes:
        reason: duplicate or near_duplicate.
        image_id: the kept image published first among those that it repeats.
        also: other kept images that it is a near duplicate of.
    """

    reason: str
    image_id: str
    also: tuple[str, ...] = ()


class DuplicateIndex:
    """Kept images, growing with the batch."""

    def __init__(
        self,
        known: Mapping[str, Sequence[Any]],
        *,
        hash_distance_bits: int,
        thumbnail_max: float,
        crop_margin: float = 0.0,
        read_kept: Callable[[int], bytes | None] | None = None,
    ) -> None:
        """Index the images of earlier batches.

        Args:
            known: columns image_id, source_sha256, phash (hex) and thumbnail, rows in order of batch.
            hash_distance_bits: furthest perceptual hash of a candidate, bits.
            thumbnail_max: largest difference of two thumbnails' cells, levels, that counts as a near duplicate.
            crop_margin: furthest move of a side, share of it, at which thumbnails are aligned; 0: not at all.
            read_kept: row -> the stored image, None where it is not there; without it no details are compared.
        """
        self._read_kept = read_kept
        self.hash_distance_bits, self.thumbnail_max, self.crop_margin = hash_distance_bits, thumbnail_max, crop_margin
        self.limited = 0
        self.damaged: dict[str, None] = {}  # ids of stored images whose bytes are no longer theirs, in order
        self.ids_by_source_sha256: dict[str, str] = {}
        for sha256, image_id in zip(known["source_sha256"], known["image_id"], strict=True):
            self.ids_by_source_sha256.setdefault(sha256, image_id)
        self.ids: list[str] = list(known["image_id"])
        self._id_set = set(self.ids)
        self._hashes = np.array([int(h, 16) for h in known["phash"]], np.uint64)
        self._thumbnails = np.frombuffer(b"".join(known["thumbnail"]), np.uint8).reshape(
            len(self.ids), -1 if self.ids else THUMBNAIL_BYTES
        )

    def find(self, source_sha256: str, image_id: str, image: NormalizedImage) -> Duplicate | None:
        """The kept image that this one repeats, None when it repeats none.

        Args:
            source_sha256: of the source's bytes.
            image_id: sha256 of the stored bytes.
            image: the stored form.
        """
        if source_sha256 in self.ids_by_source_sha256:
            return Duplicate("duplicate", self.ids_by_source_sha256[source_sha256])
        if image_id in self._id_set:
            return Duplicate("duplicate", image_id)
        candidates, is_limited = self._candidates(image.phash)
        if not len(candidates):
            return None
        is_near, has_more = self._is_near(image, candidates)
        is_near, is_undecided = self._agree_in_detail(image, candidates, is_near)
        self.limited += is_limited or has_more or is_undecided
        matches = [self.ids[row] for row in candidates[is_near].tolist()]
        return Duplicate("near_duplicate", matches[0], tuple(matches[1:])) if matches else None

    def _candidates(self, phash: int) -> tuple[np.ndarray, bool]:
        """Rows (n,) whose hash is near, in rising order, at most MAX_THUMBNAILS; and whether there are more."""
        distances = np.bitwise_count(self._hashes[: len(self.ids)] ^ np.uint64(phash))
        rows = np.flatnonzero(distances <= self.hash_distance_bits)
        if len(rows) <= MAX_THUMBNAILS:
            return rows, False
        near = distances[rows]  # not sorted: among look-alikes that would take most of the time
        limit = int(np.searchsorted(np.cumsum(np.bincount(near)), MAX_THUMBNAILS))
        nearer, as_near = rows[near < limit], rows[near == limit]
        return np.sort(np.concatenate([nearer, as_near[: MAX_THUMBNAILS - len(nearer)]])), True

    def _is_near(self, image: NormalizedImage, candidates: np.ndarray) -> tuple[np.ndarray, bool]:
        """(n,) bool: which of these rows (n,) have a thumbnail near to the image's; and whether some that might have
        were left out.
        """
        thumbnails = self._thumbnails[candidates]
        is_near = thumbnail_distance(image.thumbnail, thumbnails) <= self.thumbnail_max
        if self.crop_margin <= 0 or is_near.all():
            return is_near, False
        mean = np.abs(thumbnails.astype(np.int16) - np.frombuffer(image.thumbnail, np.uint8)).mean(axis=1)
        alignable = np.flatnonzero(~is_near & (mean <= CROP_MEAN))
        nearest = alignable[np.argsort(mean[alignable], kind="stable")]
        for row in nearest[:MAX_ALIGNMENTS].tolist():
            distance = crop_distance(image.grid, thumbnails[row].tobytes(), margin=self.crop_margin)
            is_near[row] = distance <= self.thumbnail_max
        return is_near, len(nearest) > MAX_ALIGNMENTS

    def _agree_in_detail(
        self, image: NormalizedImage, candidates: np.ndarray, is_near: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """(n,) bool: which of the near rows also show the same details; and whether some were left out.

        Those found by alignment alone are shifted too far for that.
        """
        if self._read_kept is None or not is_near.any():
            return is_near, False
        distance = thumbnail_distance(image.thumbnail, self._thumbnails[candidates])
        comparable = np.flatnonzero(is_near & (distance <= self.thumbnail_max))
        nearest = comparable[np.argsort(distance[comparable], kind="stable")]
        is_near = is_near.copy()
        for row in nearest[:MAX_DETAILS].tolist():
            kept = self._read_intact(int(candidates[row]))
            is_near[row] = kept is None or not differ_in_detail(image.content, kept, image.thumbnail)
        is_near[nearest[MAX_DETAILS:]] = False
        return is_near, len(nearest) > MAX_DETAILS

    def _read_intact(self, row: int) -> bytes | None:
        """The stored image of a row; None where it is not there, or damaged: hash and thumbnail then decide alone."""
        assert self._read_kept is not None
        kept, image_id = self._read_kept(row), self.ids[row]
        if kept is not None and hashlib.sha256(kept).hexdigest() != image_id:
            self.damaged.setdefault(image_id)
            return None
        return kept

    def add(self, source_sha256: str, image_id: str, image: NormalizedImage) -> None:
        """Add a kept image; arguments as of `find`."""
        count = len(self.ids)
        if count == len(self._hashes):
            growth = max(MIN_GROWTH, count)
            self._hashes = np.concatenate([self._hashes, np.zeros(growth, np.uint64)])
            self._thumbnails = np.concatenate([self._thumbnails[:count], np.zeros((growth, THUMBNAIL_BYTES), np.uint8)])
        self._hashes[count] = image.phash
        self._thumbnails[count] = np.frombuffer(image.thumbnail, np.uint8)
        self.ids.append(image_id)
        self._id_set.add(image_id)
        self.ids_by_source_sha256.setdefault(source_sha256, image_id)


def limited_note(count: int) -> str:
    """One sentence about the images of a batch that were not compared with all of their candidates."""
    return (
        f"{count} images look like so many others that they were compared with the {MAX_THUMBNAILS} nearest alone, "
        f"aligned with the {MAX_ALIGNMENTS} nearest, and looked at in detail beside {MAX_DETAILS}: copies among the "
        "rest may have stayed. Usual for drawings on white"
    )


def damaged_note(image_ids: Sequence[str]) -> str:
    """One sentence about stored images that are damaged on this machine's disk.

    Args:
        image_ids: those that were met.
    """
    shown = ", ".join(image_ids[:3]) + (" ..." if len(image_ids) > 3 else "")
    return (
        f"{len(image_ids)} stored images are damaged on this disk ({shown}); whether new files are copies of them was "
        "decided by hash and thumbnail alone; take their shards from the remote again (dvc checkout or dvc pull)"
    )


def copy_groups(details: Iterable[str]) -> list[list[str]]:
    """Groups of kept images that dropped near duplicates connect.

    Args:
        details: column `detail` of ingest's dropped rows, of all batches.
    Returns:
        groups of two or more image ids; the ids of each group sorted, and the groups too.
    """
    rows = [json.loads(detail) for detail in details]
    names = connected_ids((other, row["copy_of"]) for row in rows for other in row.get("also", ()))
    groups: dict[str, list[str]] = {}
    for image_id, name in names.items():
        groups.setdefault(name, []).append(image_id)
    return sorted(group for group in groups.values() if len(group) > 1)
