"""Mined hard negatives: what the pair's own encoders retrieved for its two ends, less whatever is a copy. Pure
functions, used by tasks/select/stage.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.knn.exact import exact_similarity_at
from tasks.select.candidates import ABSENT, Candidates, Mined, places_in_groups

if TYPE_CHECKING:
    import pyarrow as pa

PAIRS_AT_ONCE = 2048  # whose negatives are compared with their targets in one go


class Vectors:
    """Stored vectors of images that are numbers."""

    def __init__(self, names: pa.Array, tables: Mapping[str, tuple[pa.Array, np.ndarray]]) -> None:
        """`names` (p) strings; `tables`: encoder -> ids (n) strings and vectors (n, d) float16, at most of those names."""
        import pyarrow.compute as pc

        self.vectors = {e: vectors for e, (_, vectors) in tables.items()}
        self.rows = {}
        for e, (ids, _) in tables.items():
            self.rows[e] = np.full(len(names), -1, np.int64)
            place = pc.index_in(ids, value_set=names)
            self.rows[e][place.drop_null().to_numpy()] = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))

    def similarity(self, encoder: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine per pair of images, (m,) float64; NaN where the encoder has no vector for one of the two."""
        out = np.full(len(a), np.nan)
        if encoder in self.rows:
            x, y = self.rows[encoder][a], self.rows[encoder][b]
            known = np.flatnonzero((x >= 0) & (y >= 0))
            out[known] = exact_similarity_at(self.vectors[encoder], self.vectors[encoder], x[known], y[known])
        return out

    def similarities(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """`similarity` under each of ENCODER_ROLES, (m, 3) float64."""
        return (
            np.stack([self.similarity(e, a, b) for e in ENCODER_ROLES], axis=1)
            if len(a)
            else np.zeros((0, len(ENCODER_ROLES)))
        )


class Retrieved:
    """One encoder's neighbours of some images, to be looked up by image."""

    def __init__(self, mined: Mined, count: int) -> None:
        """`mined`: rows of any batches; `count`: images that there are."""
        order = np.argsort(mined.queries, kind="stable")
        self.targets = mined.targets[order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(mined.queries, minlength=count))])

    def of(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the asked images (m,) a neighbour is of, and the neighbour; (k,) each."""
        first, counts = self.starts[images], self.starts[images + 1] - self.starts[images]
        which = np.repeat(np.arange(len(images)), counts)
        rows = np.arange(len(which)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        return which, self.targets[rows]


class Negatives(NamedTuple):
    """Images beside pairs.

    Attributes:
        pairs: (k,) int64, numbers of pairs, rising.
        images: (k,) int64, images; those of one pair in order of preference.
        similarities: (k,) float64, to the pair's target, by the encoder that proposed the image.
        copy_pairs, copies: (l,) pairs and images that were left out beside them, by pair and image.
    """

    pairs: np.ndarray
    images: np.ndarray
    similarities: np.ndarray
    copy_pairs: np.ndarray
    copies: np.ndarray


def copy_limits(params: Params) -> np.ndarray:
    """(3,) float64: per encoder the similarity from which two images count as copies: stated, else the window's high
    end; inf without one.
    """
    limits = dict.fromkeys(ENCODER_ROLES, math.inf)
    limits.update({str(e): w.high for e, w in params.mine.windows.items()})
    limits.update(params.select.copy_similarity)
    return np.array([limits[e] for e in ENCODER_ROLES])


def proposed(c: Candidates, retrieved: Mapping[str, Retrieved]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the pairs' own encoders retrieved for their queries and targets: pairs, images, encoders (k,), each image of
    a pair once, by pair and image.

    The encoder is the first of ENCODER_ROLES that proposes it.
    """
    parts = []
    for e, encoder in enumerate(ENCODER_ROLES):
        if encoder in retrieved:
            own = np.flatnonzero(c.ranks[:, e] != ABSENT)
            for ends in (c.queries, c.targets):
                which, images = retrieved[encoder].of(ends[own])
                parts.append((own[which], images, np.full(len(which), e)))
    pairs, images, encoders = (
        (np.concatenate(x) for x in zip(*parts, strict=True)) if parts else (np.zeros(0, np.int64),) * 3
    )
    other = (images != c.queries[pairs]) & (images != c.targets[pairs])
    keys = np.sort(((pairs[other] * len(c.names)) + images[other]) * len(ENCODER_ROLES) + encoders[other])
    keys, encoders = np.divmod(keys, len(ENCODER_ROLES))
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    pairs, images = np.divmod(keys[is_first], max(len(c.names), 1))
    return pairs, images, encoders[is_first]


def hard_negatives(
    c: Candidates,
    retrieved: Mapping[str, Retrieved],
    vectors: Vectors,
    *,
    limits: np.ndarray,
    count: int | None,
    margin: float = 0,
    query_copies: bool = True,
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
        limits: (3,) per encoder the similarity to the target from which an image is its copy.
        count: most negatives of a pair; no limit when None.
        margin: least distance (1 - cosine) of a negative to the target, by the encoder that proposed it, in distances
            of query and target.
        query_copies: whether copies of the query may be negatives.
    """
    parts = []
    for start in range(0, len(c), PAIRS_AT_ONCE):
        some = _hard_negatives(
            c.take(np.arange(start, min(start + PAIRS_AT_ONCE, len(c)))),
            retrieved,
            vectors,
            limits,
            count,
            margin,
            query_copies,
        )
        parts.append(some._replace(pairs=some.pairs + start, copy_pairs=some.copy_pairs + start))
    none = np.zeros(0, np.int64)
    return (
        Negatives(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        if parts
        else Negatives(none, none, np.zeros(0), none, none)
    )


def _hard_negatives(
    c: Candidates,
    retrieved: Mapping[str, Retrieved],
    vectors: Vectors,
    limits: np.ndarray,
    count: int | None,
    margin: float,
    query_copies: bool,
) -> Negatives:
    pairs, images, encoders = proposed(c, retrieved)
    to_target = vectors.similarities(images, c.targets[pairs])
    own = to_target[np.arange(len(pairs)), encoders]
    is_out = (to_target >= limits).any(axis=1)
    if not query_copies:
        is_out |= (vectors.similarities(images, c.queries[pairs]) >= limits).any(axis=1)
    if margin:
        apart = vectors.similarities(c.queries, c.targets)[pairs, encoders]
        is_out |= 1 - own < margin * (1 - apart)  # NaN on either side: false
    usable = np.flatnonzero(~is_out & ~np.isnan(own))
    pair, image, encoder, similarity = pairs[usable], images[usable], encoders[usable], own[usable]
    order = np.lexsort((image, -similarity, encoder, pair))
    turn = np.empty(len(order), np.int64)
    turn[order] = places_in_groups(pair[order] * len(ENCODER_ROLES) + encoder[order])
    order = np.lexsort((encoder, turn, pair))
    if count is not None:
        order = order[places_in_groups(pair[order]) < count]
    return Negatives(pair[order], image[order], similarity[order], pairs[is_out], images[is_out])


def without_copies(c: Candidates, vectors: Vectors, limits: np.ndarray) -> np.ndarray:
    """(m,) bool: pairs whose target no encoder holds for a copy of the query."""
    return np.asarray(~(vectors.similarities(c.queries, c.targets) >= limits).any(axis=1))
