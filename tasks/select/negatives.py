"""Mined hard negatives: what the pair's own encoders retrieved for its two images, less the copies.

Neighbours and vectors may lie in files: a block of pairs reads what it needs of them, and no more stays in memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from tasks.config import MINER_ROLES, Params, SelectConfig
from tasks.knn.exact import Rows, exact_similarity_at
from tasks.select.candidates import ABSENT, Candidates, MinedRows, index_in_group
from tasks.select.spill import WorkingMemory
from tasks.store.vectors import MappedRows

if TYPE_CHECKING:
    import pyarrow as pa

PROPOSAL_BYTES = 250  # of memory for an image proposed as a negative, beside its vectors


class Vectors:
    """Stored vectors of images that are indices into the sorted ids."""

    def __init__(self, image_ids: pa.Array, tables: Mapping[str, tuple[pa.Array, Rows]]) -> None:
        """Index the rows of each encoder's vectors by image.

        Args:
            image_ids: (p) strings, sorted.
            tables: encoder -> ids (n) strings, and vectors (n, d) float16 of the same images; in memory or in files.
        """
        import pyarrow.compute as pc

        self._images: np.ndarray | None = None  # sorted, where these are the vectors of some images
        self.vectors: dict[str, Rows] = {e: vectors for e, (_, vectors) in tables.items()}
        self.rows: dict[str, np.ndarray] = {}
        for e, (ids, _) in tables.items():
            self.rows[e] = np.full(len(image_ids), -1, np.int32)
            image = pc.index_in(ids, value_set=image_ids)
            self.rows[e][image.drop_null().to_numpy()] = np.flatnonzero(image.is_valid().to_numpy(zero_copy_only=False))

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's vectors under all encoders."""
        return sum(2 * vectors.shape[1] for vectors in self.vectors.values())

    def gather(self, *images: np.ndarray) -> Vectors:
        """The vectors of some images, in memory; read from their files once each, in order.

        Args:
            images: arrays of images, in any order, any of them more than once.
        """
        result = Vectors.__new__(Vectors)
        result._images = np.unique(np.concatenate(images))
        result.vectors, result.rows = {}, {}
        for e, vectors in self.vectors.items():
            rows = self.rows[e][result._images]
            known = np.flatnonzero(rows >= 0)
            known = known[np.argsort(rows[known])]
            result.vectors[e] = take_sorted(vectors, rows[known].astype(np.int64))
            result.rows[e] = np.full(len(rows), -1, np.int32)
            result.rows[e][known] = np.arange(len(known))
        return result

    def similarity(self, encoder: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine similarity of images a (m,) and b (m,), (m,) float64; NaN where the encoder has no vector of one."""
        result = np.full(len(a), np.nan)
        if encoder in self.rows:
            if self._images is not None:
                a, b = np.searchsorted(self._images, a), np.searchsorted(self._images, b)
            x, y = self.rows[encoder][a], self.rows[encoder][b]
            known = np.flatnonzero((x >= 0) & (y >= 0))
            vectors = self.vectors[encoder]
            result[known] = exact_similarity_at(vectors, vectors, x[known], y[known])
        return result

    def similarities(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """`similarity` under each of MINER_ROLES, (m, 4) float64."""
        if not len(a):
            return np.zeros((0, len(MINER_ROLES)))
        return np.stack([self.similarity(e, a, b) for e in MINER_ROLES], axis=1)


def take_sorted(vectors: Rows, rows: np.ndarray) -> np.ndarray:
    """Rows by rising index, (m, d) float16, in memory."""
    return vectors.take_sorted(rows) if isinstance(vectors, MappedRows) else vectors.take(rows, axis=0)


class Retrieved(Protocol):
    """One encoder's neighbours of images."""

    def counts(self, images: np.ndarray) -> np.ndarray:
        """How many neighbours images (m,) have, (m,) int64."""
        ...

    def neighbours(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of images (m,): the index into `images` that each belongs to, and the neighbour; (k,) each."""
        ...


class RetrievedRows:
    """One encoder's neighbours of some images, in memory."""

    def __init__(self, mined: MinedRows, count: int) -> None:
        """`mined`: rows of any batches; `count`: images that there are."""
        order = np.argsort(mined.queries, kind="stable")
        self.targets = mined.targets[order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(mined.queries, minlength=count))])

    def counts(self, images: np.ndarray) -> np.ndarray:
        """As of `Retrieved`."""
        return np.asarray(self.starts[images + 1] - self.starts[images])

    def neighbours(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As of `Retrieved`."""
        counts = self.counts(images)
        which = np.repeat(np.arange(len(images)), counts)
        rows = np.arange(len(which)) + np.repeat(self.starts[images] - (np.cumsum(counts) - counts), counts)
        return which, self.targets[rows]


class RetrievedFile:
    """One encoder's neighbours of all images, in a file: the rows of one image lie together."""

    def __init__(self, path: Path, count: int) -> None:
        """An empty file at `path`; `count`: images that there are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w+b")  # noqa: SIM115 - open while the stage selects; close()
        self._starts, self._counts = np.zeros(count, np.int64), np.zeros(count, np.int32)
        self._total = 0

    def add(self, mined: MinedRows) -> None:
        """Append all rows of some queries."""
        order = np.argsort(mined.queries, kind="stable")
        mined.targets[order].astype(np.int32, copy=False).tofile(self._file)
        queries, first, counts = np.unique(mined.queries[order], return_index=True, return_counts=True)
        self._starts[queries], self._counts[queries] = first + self._total, counts
        self._total += len(order)
        self._file.flush()

    def counts(self, images: np.ndarray) -> np.ndarray:
        """As of `Retrieved`."""
        return self._counts[images].astype(np.int64)

    def neighbours(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As of `Retrieved`; read, not mapped: a map would bring a page or more of the file for each image."""
        counts, number, size = self.counts(images), self._file.fileno(), self._starts.dtype.itemsize // 2
        places = zip((self._starts[images] * size).tolist(), (counts * size).tolist(), strict=True)
        content = b"".join([os.pread(number, length, start) for start, length in places if length])
        return np.repeat(np.arange(len(images)), counts), np.frombuffer(content, np.int32)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Negatives(NamedTuple):
    """Negatives of pairs.

    Attributes:
        pairs: (k,) int64, indices of pairs, rising.
        images: (k,) int64, images; those of one pair in order of preference.
        similarities: (k,) float64, to the pair's target, under the encoder that proposed the image.
        copy_pairs, copies: (l,) pairs and the images that were left out of theirs as copies or too near, by pair and
            image.
    """

    pairs: np.ndarray
    images: np.ndarray
    similarities: np.ndarray
    copy_pairs: np.ndarray
    copies: np.ndarray


@dataclass(frozen=True)
class NegativeRules:
    """Which retrieved images may be negatives.

    Attributes:
        copy_limits: (4,) per encoder of MINER_ROLES the similarity to the target from which an image is its copy.
        count: most negatives of a pair; no limit when None.
        margin: least distance (1 - cosine) of a negative to the target, under the encoder that proposed it, as a
            multiple of the distance of query and target; 0 for none.
        allow_query_copies: whether copies of the query may be negatives.
    """

    copy_limits: np.ndarray
    count: int | None
    margin: float = 0
    allow_query_copies: bool = True


def copy_limits(params: Params) -> np.ndarray:
    """(4,) float64: per encoder the similarity from which two images count as copies: as stated in
    `select.copy_similarity`, else the window's high end; inf where there is neither.
    """
    limits = dict.fromkeys(MINER_ROLES, math.inf)
    limits.update({str(e): w.high for e, w in params.mine.windows.items()})
    limits.update({str(e): similarity for e, similarity in params.select.copy_similarity.items()})
    return np.array([limits[e] for e in MINER_ROLES])


def same_content_limits(config: SelectConfig) -> np.ndarray | None:
    """(4,) float64: per encoder the similarity from which two images show the same content
    (`select.same_content_min`); inf for an encoder that is not named, None where none is.
    """
    if not config.same_content_min:
        return None
    limits = {str(encoder): similarity for encoder, similarity in config.same_content_min.items()}
    return np.array([limits.get(e, math.inf) for e in MINER_ROLES])


def negative_rules(params: Params, count: int | None) -> NegativeRules:
    """Which images may be negatives, as the parameters say; at most `count` a pair, None for no limit."""
    config = params.select
    return NegativeRules(copy_limits(params), count, config.negative_margin, not config.drop_query_copies)


def proposed_negatives(c: Candidates, retrieved: Mapping[str, Retrieved]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the pairs' own encoders retrieved for their queries and targets.

    Returns:
        pairs, images, encoders, (k,) each: each image of a pair once, by pair and image; the encoder is the first of
        MINER_ROLES that proposes it.
    """
    parts = []
    for e, encoder in enumerate(MINER_ROLES):
        if encoder in retrieved:
            own = np.flatnonzero(c.ranks[:, e] != ABSENT)
            for ends in (c.queries, c.targets):
                which, images = retrieved[encoder].neighbours(ends[own])
                parts.append((own[which], images, np.full(len(which), e)))
    pairs, images, encoders = (
        (np.concatenate(x) for x in zip(*parts, strict=True)) if parts else (np.zeros(0, np.int64),) * 3
    )
    is_other = (images != c.queries[pairs]) & (images != c.targets[pairs])
    keys = (pairs[is_other] * len(c.image_ids) + images[is_other]) * len(MINER_ROLES) + encoders[is_other]
    keys, encoders = np.divmod(np.sort(keys), len(MINER_ROLES))
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    pairs, images = np.divmod(keys[is_first], max(len(c.image_ids), 1))
    return pairs, images, encoders[is_first]


def pair_blocks(
    c: Candidates, retrieved: Mapping[str, Retrieved], vectors: Vectors, memory: WorkingMemory
) -> Iterator[slice]:
    """Cut pairs into blocks whose proposed negatives, with their vectors, fit the memory; a pair at least."""
    proposals = np.ones(len(c), np.int64)
    for e, encoder in enumerate(MINER_ROLES):
        if encoder in retrieved:
            own = np.flatnonzero(c.ranks[:, e] != ABSENT)
            for ends in (c.queries, c.targets):
                proposals[own] += retrieved[encoder].counts(ends[own])
    limit, ends = memory.rows(PROPOSAL_BYTES + vectors.row_bytes), np.cumsum(proposals)
    start = 0
    while start < len(c):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + limit, side="right"))
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def hard_negatives(
    c: Candidates, retrieved: Mapping[str, Retrieved], vectors: Vectors, rules: NegativeRules
) -> tuple[np.ndarray, Negatives]:
    """The pairs' mined negatives, the target's nearest first.

    Encoders' cosines are not comparable: within an encoder by similarity, then the encoders in turn. The margin is
    positive-aware (after NV-Retriever, arXiv:2407.15831, where a negative must score below the positive by a margin):
    here the pair's own distance is the yardstick, so that one number serves encoders whose cosines are spread
    differently.

    Args:
        c: the pairs, a block of them (`pair_blocks`).
        retrieved: encoder -> neighbours of at least the pairs' images.
        vectors: stored vectors.
        rules: which images may be negatives.
    Returns:
        (m, 4) float64, similarities of query and target under each of MINER_ROLES; and the negatives.
    """
    pairs, images, encoders = proposed_negatives(c, retrieved)
    near = vectors.gather(images, c.queries, c.targets)
    pair_similarities = near.similarities(c.queries, c.targets)
    to_target = near.similarities(images, c.targets[pairs])
    similarity = to_target[np.arange(len(pairs)), encoders]
    is_out = (to_target >= rules.copy_limits).any(axis=1)
    if not rules.allow_query_copies:
        is_out |= (near.similarities(images, c.queries[pairs]) >= rules.copy_limits).any(axis=1)
    if rules.margin:
        # NaN on either side: false
        is_out |= 1 - similarity < rules.margin * (1 - pair_similarities[pairs, encoders])
    usable = np.flatnonzero(~is_out & ~np.isnan(similarity))
    pair, image, encoder, nearness = pairs[usable], images[usable], encoders[usable], similarity[usable]
    order = np.lexsort((image, -nearness, encoder, pair))
    turn = np.empty(len(order), np.int64)
    turn[order] = index_in_group(pair[order] * len(MINER_ROLES) + encoder[order])
    order = np.lexsort((encoder, turn, pair))
    if rules.count is not None:
        order = order[index_in_group(pair[order]) < rules.count]
    negatives = Negatives(pair[order], image[order], nearness[order], pairs[is_out], images[is_out])
    return pair_similarities, negatives


def is_below(queries: np.ndarray, targets: np.ndarray, vectors: Vectors, limits: np.ndarray) -> np.ndarray:
    """(m,) bool: pairs whose similarity is below the limit of every encoder, or unknown.

    Args:
        queries, targets: (m,) images.
        vectors: stored vectors.
        limits: (4,) of `copy_limits` or `same_content_limits`.
    """
    similarities = vectors.gather(queries, targets).similarities(queries, targets)
    return np.asarray(~(similarities >= limits).any(axis=1))
