"""Mined hard negatives: what the pair's own encoders retrieved for its two images, less the copies. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.knn.exact import exact_similarity_at
from tasks.select.candidates import ABSENT, Candidates, MinedRows, index_in_group

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_PAIRS = 2048  # pairs whose negatives are compared with their targets at a time


class Vectors:
    """Stored vectors of images that are indices into the sorted ids."""

    def __init__(self, image_ids: pa.Array, tables: Mapping[str, tuple[pa.Array, np.ndarray]]) -> None:
        """Index the rows of each encoder's vectors by image.

        Args:
            image_ids: (p) strings, sorted.
            tables: encoder -> ids (n) strings, all of them in `image_ids`, and vectors (n, d) float16.
        """
        import pyarrow.compute as pc

        self.vectors = {e: vectors for e, (_, vectors) in tables.items()}
        self.rows = {}
        for e, (ids, _) in tables.items():
            self.rows[e] = np.full(len(image_ids), -1, np.int64)
            image = pc.index_in(ids, value_set=image_ids)
            self.rows[e][image.drop_null().to_numpy()] = np.flatnonzero(image.is_valid().to_numpy(zero_copy_only=False))

    def similarity(self, encoder: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine similarity of images a (m,) and b (m,), (m,) float64; NaN where the encoder has no vector of one."""
        result = np.full(len(a), np.nan)
        if encoder in self.rows:
            x, y = self.rows[encoder][a], self.rows[encoder][b]
            known = np.flatnonzero((x >= 0) & (y >= 0))
            vectors = self.vectors[encoder]
            result[known] = exact_similarity_at(vectors, vectors, x[known], y[known])
        return result

    def similarities(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """`similarity` under each of ENCODER_ROLES, (m, 3) float64."""
        if not len(a):
            return np.zeros((0, len(ENCODER_ROLES)))
        return np.stack([self.similarity(e, a, b) for e in ENCODER_ROLES], axis=1)


class Retrieved:
    """One encoder's neighbours of some images, indexed by image."""

    def __init__(self, mined: MinedRows, count: int) -> None:
        """`mined`: rows of any batches; `count`: images that there are."""
        order = np.argsort(mined.queries, kind="stable")
        self.targets = mined.targets[order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(mined.queries, minlength=count))])

    def neighbours(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of images (m,): the index into `images` that each belongs to, and the neighbour; (k,) each."""
        first, counts = self.starts[images], self.starts[images + 1] - self.starts[images]
        which = np.repeat(np.arange(len(images)), counts)
        rows = np.arange(len(which)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        return which, self.targets[rows]


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
        copy_limits: (3,) per encoder of ENCODER_ROLES the similarity to the target from which an image is its copy.
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
    """(3,) float64: per encoder the similarity from which two images count as copies: as stated in
    `select.copy_similarity`, else the window's high end; inf where there is neither.
    """
    limits = dict.fromkeys(ENCODER_ROLES, math.inf)
    limits.update({str(e): w.high for e, w in params.mine.windows.items()})
    limits.update({str(e): similarity for e, similarity in params.select.copy_similarity.items()})
    return np.array([limits[e] for e in ENCODER_ROLES])


def negative_rules(params: Params, count: int | None) -> NegativeRules:
    """Which images may be negatives, as the parameters say; at most `count` a pair, None for no limit."""
    config = params.select
    return NegativeRules(copy_limits(params), count, config.negative_margin, not config.drop_query_copies)


def proposed_negatives(c: Candidates, retrieved: Mapping[str, Retrieved]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the pairs' own encoders retrieved for their queries and targets.

    Returns:
        pairs, images, encoders, (k,) each: each image of a pair once, by pair and image; the encoder is the first of
        ENCODER_ROLES that proposes it.
    """
    parts = []
    for e, encoder in enumerate(ENCODER_ROLES):
        if encoder in retrieved:
            own = np.flatnonzero(c.ranks[:, e] != ABSENT)
            for ends in (c.queries, c.targets):
                which, images = retrieved[encoder].neighbours(ends[own])
                parts.append((own[which], images, np.full(len(which), e)))
    pairs, images, encoders = (
        (np.concatenate(x) for x in zip(*parts, strict=True)) if parts else (np.zeros(0, np.int64),) * 3
    )
    is_other = (images != c.queries[pairs]) & (images != c.targets[pairs])
    keys = (pairs[is_other] * len(c.image_ids) + images[is_other]) * len(ENCODER_ROLES) + encoders[is_other]
    keys, encoders = np.divmod(np.sort(keys), len(ENCODER_ROLES))
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    pairs, images = np.divmod(keys[is_first], max(len(c.image_ids), 1))
    return pairs, images, encoders[is_first]


def hard_negatives(
    c: Candidates, retrieved: Mapping[str, Retrieved], vectors: Vectors, rules: NegativeRules
) -> Negatives:
    """The pairs' mined negatives, the target's nearest first.

    Encoders' cosines are not comparable: within an encoder by similarity, then the encoders in turn. The margin is
    positive-aware (after NV-Retriever, arXiv:2407.15831, where a negative must score below the positive by a margin):
    here the pair's own distance is the yardstick, so that one number serves encoders whose cosines are spread
    differently.

    Args:
        c: the pairs.
        retrieved: encoder -> neighbours of at least the pairs' images.
        vectors: stored vectors.
        rules: which images may be negatives.
    """
    parts = []
    for start in range(0, len(c), BLOCK_PAIRS):
        block = c.take(np.arange(start, min(start + BLOCK_PAIRS, len(c))))
        part = _negatives_of_block(block, retrieved, vectors, rules)
        parts.append(part._replace(pairs=part.pairs + start, copy_pairs=part.copy_pairs + start))
    if not parts:
        none = np.zeros(0, np.int64)
        return Negatives(none, none, np.zeros(0), none, none)
    return Negatives(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _negatives_of_block(
    c: Candidates, retrieved: Mapping[str, Retrieved], vectors: Vectors, rules: NegativeRules
) -> Negatives:
    """`hard_negatives` of a few pairs."""
    pairs, images, encoders = proposed_negatives(c, retrieved)
    to_target = vectors.similarities(images, c.targets[pairs])
    similarity = to_target[np.arange(len(pairs)), encoders]
    is_out = (to_target >= rules.copy_limits).any(axis=1)
    if not rules.allow_query_copies:
        is_out |= (vectors.similarities(images, c.queries[pairs]) >= rules.copy_limits).any(axis=1)
    if rules.margin:
        pair_similarity = vectors.similarities(c.queries, c.targets)[pairs, encoders]
        is_out |= 1 - similarity < rules.margin * (1 - pair_similarity)  # NaN on either side: false
    usable = np.flatnonzero(~is_out & ~np.isnan(similarity))
    pair, image, encoder, nearness = pairs[usable], images[usable], encoders[usable], similarity[usable]
    order = np.lexsort((image, -nearness, encoder, pair))
    turn = np.empty(len(order), np.int64)
    turn[order] = index_in_group(pair[order] * len(ENCODER_ROLES) + encoder[order])
    order = np.lexsort((encoder, turn, pair))
    if rules.count is not None:
        order = order[index_in_group(pair[order]) < rules.count]
    return Negatives(pair[order], image[order], nearness[order], pairs[is_out], images[is_out])


def is_no_copy(c: Candidates, vectors: Vectors, limits: np.ndarray) -> np.ndarray:
    """(m,) bool: pairs whose target is a copy of the query under no encoder.

    Args:
        c: the pairs.
        vectors: stored vectors.
        limits: (3,) of `copy_limits`.
    """
    return np.asarray(~(vectors.similarities(c.queries, c.targets) >= limits).any(axis=1))
