"""Candidates as columns: ordered pairs of images, the encoders that mined them, and the order in which they are taken.

Pure functions. An image is a number here, its place among the ids that a run names in rising order, so that a table of
hundreds of millions of candidates is a few arrays (24 to 72 bytes each), and comparing numbers is comparing ids. Used
by tasks/select/stage.py, whose text says what the orders mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES
from tasks.knn.neighbours import rank_order

if TYPE_CHECKING:
    import pyarrow as pa

ABSENT = np.iinfo(np.int32).max  # rank under an encoder that did not mine the pair
AT_ONCE = 1 << 16  # candidates as Python objects at a time


class Mined(NamedTuple):
    """Rows of table `neighbours`.

    Attributes:
        queries, targets: (m,) int32, images.
        similarities: (m,) float32, cosine.
        ranks: (m,) int32, from 0.
    """

    queries: np.ndarray
    targets: np.ndarray
    similarities: np.ndarray
    ranks: np.ndarray

    def take(self, rows: np.ndarray) -> Mined:
        """Some of the rows: their numbers, or (m,) bool."""
        return Mined(*(column[rows] for column in self))

    def with_(self, other: Mined) -> Mined:
        """These rows, then the others."""
        return Mined(*(np.concatenate(columns) for columns in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Candidates:
    """Ordered pairs of images, each once.

    Attributes:
        names: (p) strings, image ids, rising.
        queries, targets: (m,) int32, places in `names`.
        ranks: (m, 3) int32, under each of ENCODER_ROLES; ABSENT where it did not mine the pair.
        reverse_ranks: (m, 3) int32, of the pair's other direction.
        similarities: (m, 3) float64, cosine; NaN where it is not known. None where nobody asks for it.
    """

    names: pa.Array
    queries: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    reverse_ranks: np.ndarray
    similarities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: np.ndarray) -> Candidates:
        """Some of the pairs: their numbers in order, or (m,) bool."""
        similarities = None if self.similarities is None else self.similarities[rows]
        out = Candidates(
            self.names, self.queries[rows], self.targets[rows], self.ranks[rows], self.reverse_ranks[rows], similarities
        )
        if "pair_ids" in self.__dict__:  # worked out already
            out.__dict__["pair_ids"] = self.pair_ids[rows]
        return out

    def mirrored(self) -> Candidates:
        """The pairs' other directions. Cosines know none: where a query does not rank its target among the k nearest,
        the ranks are its mirror's.
        """
        ranks = np.where(self.reverse_ranks != ABSENT, self.reverse_ranks, self.ranks)
        return Candidates(self.names, self.targets, self.queries, ranks, self.ranks, self.similarities)

    @property
    def keys(self) -> np.ndarray:
        """(m,) int64, one number for each ordered pair of images."""
        return self.queries.astype(np.int64) * len(self.names) + self.targets

    @property
    def mined_by(self) -> np.ndarray:
        """(m, 3) bool."""
        return self.ranks != ABSENT

    @property
    def agreeing(self) -> np.ndarray:
        """(m,) how many encoders mined the pair, either way."""
        return ((self.ranks != ABSENT) | (self.reverse_ranks != ABSENT)).sum(axis=1)

    @cached_property
    def pair_ids(self) -> np.ndarray:
        """(m,) 32-digit ASCII, the same in every version (`records.stable_id`)."""
        out = np.empty(len(self), "S32")
        for rows, ends in self._ends():
            out[rows] = [hashlib.sha256(f"{q}\x1f{t}".encode()).hexdigest()[:32].encode() for q, t in ends]
        return out

    def _ends(self) -> Iterator[tuple[slice, list[tuple[str, str]]]]:
        """(query, target) as ids, a part of the rows at a time."""
        for start in range(0, len(self), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            yield (
                rows,
                list(
                    zip(
                        *(self.names.take(column[rows]).to_pylist() for column in (self.queries, self.targets)),
                        strict=True,
                    )
                ),
            )


def chances(pair_ids: np.ndarray, seed: int) -> np.ndarray:
    """(m,) uint64, a seeded hash of each pair: what decides where nothing else does, whatever the order of inputs.

    Args:
        pair_ids: (m,) ASCII.
        seed: of the hash.
    """
    start = f"{seed}\x1f".encode()
    out = np.empty(len(pair_ids), ">u8")
    for first in range(0, len(out), AT_ONCE):
        some = pair_ids[first : first + AT_ONCE].tolist()
        out[first : first + len(some)] = np.frombuffer(
            b"".join(hashlib.sha256(start + i).digest()[:8] for i in some), ">u8"
        )
    return out.astype(np.uint64)


def places_in(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where numbers stand in a rising array, and whether they do.

    Args:
        keys: (n,) int64, rising.
        wanted: (m,) int64.
    Returns:
        (m,) int64, of no meaning where it is not there, and (m,) bool.
    """
    order = np.argsort(wanted)  # looked up in order, they meet memory in order
    at = np.empty(len(wanted), np.int64)
    at[order] = np.searchsorted(keys, wanted[order])
    at[at == len(keys)] = 0
    return at, (keys[at] == wanted) if len(keys) else np.zeros(len(wanted), bool)


def unite(names: pa.Array, mined: Mapping[str, Mined], with_similarities: bool = False) -> Candidates:
    """The encoders' candidates as one table, each pair once, by query and target.

    Args:
        names: (p) strings, image ids, rising.
        mined: encoder -> its candidates.
        with_similarities: whether their cosines are kept.
    """
    several = {ENCODER_ROLES.index(e): m.take(m.queries != m.targets) for e, m in mined.items()}
    numbers = {e: m.queries.astype(np.int64) * len(names) + m.targets for e, m in several.items()}
    keys = np.unique(np.concatenate(list(numbers.values()))) if numbers else np.zeros(0, np.int64)
    ranks = np.full((len(keys), len(ENCODER_ROLES)), ABSENT, np.int32)
    similarities = np.full(ranks.shape, np.nan) if with_similarities else None
    for e, m in several.items():
        at, _ = places_in(keys, numbers[e])
        np.minimum.at(ranks[:, e], at, m.ranks)
        if similarities is not None:
            similarities[at, e] = m.similarities
    queries, targets = np.divmod(keys, max(len(names), 1))
    at, is_there = places_in(keys, targets * len(names) + queries)
    reverse_ranks = np.where(is_there[:, None], ranks[at], np.int32(ABSENT)) if len(keys) else ranks
    return Candidates(names, queries.astype(np.int32), targets.astype(np.int32), ranks, reverse_ranks, similarities)


def with_merged_ranks(new: Mined, earlier: Mined, neighbours: int) -> Mined:
    """This batch's candidates with their place among all that was mined for their query; those beyond the k-th are left
    out.

    What one run over everything would rank among a query's first k is always among the rest: it was so when the later
    of the two images came, among fewer.

    Args:
        new: rows of this batch.
        earlier: those of the batches before, at least all for the queries of `new`.
        neighbours: k, a count.
    Returns:
        by query, then rank.
    """
    if len(new.queries):
        is_asked = np.zeros(int(max(new.queries.max(), earlier.queries.max(initial=0))) + 1, bool)
        is_asked[new.queries] = True
        earlier = earlier.take(is_asked[earlier.queries])
    both = new.with_(earlier)
    order = rank_order(both.queries, both.similarities.astype(np.float64), both.targets)
    queries = both.queries[order]
    rank = places_in_groups(queries).astype(np.int32)
    kept = (order < len(new.queries)) & (rank < neighbours)
    return both.take(order[kept])._replace(ranks=rank[kept])


def tiers(c: Candidates) -> np.ndarray:
    """(m,) int64, agreement of the encoders, 0 the best: for all of them each is the other's nearest."""
    agreement = np.zeros(len(c))
    for ranks in (c.ranks, c.reverse_ranks):
        for e in range(len(ENCODER_ROLES)):
            agreement += np.where(ranks[:, e] != ABSENT, 1 / (1 + ranks[:, e].astype(np.float64)), 0)
    return np.floor(4 * (math.log2(2 * len(ENCODER_ROLES)) - np.log2(agreement)) + 1e-9).astype(np.int64)


def in_order(c: Candidates, seed: int, agreement: str = "rank") -> np.ndarray:
    """Best agreement first, then a seeded hash of the pair: whatever the order they come in.

    Args:
        c: the candidates.
        seed: of the hash.
        agreement: rank (by tier, the nearest pairs first) or encoders (by how many encoders mined the pair, either way,
            however near).
    Returns:
        (m,) int64, their numbers.
    """
    return np.lexsort((c.keys, chances(c.pair_ids, seed), tiers(c) if agreement == "rank" else -c.agreeing))


def band_of(
    c: Candidates, count: int, *, by: str, neighbours: int, windows: Mapping[str, tuple[float, float]]
) -> np.ndarray:
    """Which of `count` equal bands of its query's window each candidate lies in, 0 the nearest.

    Args:
        c: the candidates; by 'similarity' theirs must be known.
        count: bands.
        by: rank or similarity, of the encoder that ranks the pair best.
        neighbours: ranks that a query may have, a count.
        windows: encoder -> (low, high), cosines.
    Returns:
        (m,) int64.
    """
    best = c.ranks.argmin(axis=1)
    rows = np.arange(len(c))
    if by == "rank":
        place = c.ranks[rows, best] / neighbours
    else:
        assert c.similarities is not None
        low, high = np.array([windows.get(e, (np.nan, np.nan)) for e in ENCODER_ROLES])[best].T
        place = (high - c.similarities[rows, best]) / (high - low)
    return np.clip((place * count).astype(np.int64), 0, count - 1)


def over_bands(c: Candidates, seed: int, weights: Sequence[float], bands: np.ndarray) -> np.ndarray:
    """Draws over the bands of each query's window, every query's first before anyone's second: whatever the order they
    come in.

    Args:
        c: the candidates.
        seed: of the order of a query's bands, and of the candidates in a band.
        weights: of each band, above 0: the chance that a query draws from it first.
        bands: (m,) the band of each.
    Returns:
        (m,) int64, their numbers.
    """
    chance, keys = chances(c.pair_ids, seed), c.keys
    order = np.lexsort((keys, chance, -c.agreeing, bands, c.queries))
    turn = np.empty(len(c), np.int64)
    turn[order] = places_in_groups(c.queries[order].astype(np.int64) * len(weights) + bands[order])
    queries, which = np.unique(c.queries, return_inverse=True)
    order = np.lexsort(
        (_orders_of_bands(c.names.take(queries).to_pylist(), seed, weights)[which, bands], turn, c.queries)
    )
    draw = np.empty(len(c), np.int64)
    draw[order] = places_in_groups(c.queries[order])
    return np.lexsort((keys, chance, draw))


def _orders_of_bands(queries: Sequence[str], seed: int, weights: Sequence[float]) -> np.ndarray:
    """(m, bands) int64, in which turn each query visits each band: exponential waits, so b comes first with chance
    weights[b] / sum (Efraimidis, Spirakis 2006)."""
    waits = np.empty((len(queries), len(weights)))
    for n, query in enumerate(queries):
        for b, weight in enumerate(weights):
            number = int.from_bytes(hashlib.sha256(f"{seed}\x1f{query}\x1f{b}".encode()).digest()[:7], "big")
            waits[n, b] = -math.log((number + 1) / 2**56) / weight
    return np.argsort(np.argsort(waits, axis=1, kind="stable"), axis=1, kind="stable")


def places_in_groups(groups: np.ndarray) -> np.ndarray:
    """Each row's place among the rows of its group, which lie together; (m,) int64."""
    is_first = np.ones(len(groups), bool)
    is_first[1:] = groups[1:] != groups[:-1]
    rows = np.arange(len(groups))
    return rows - np.maximum.accumulate(np.where(is_first, rows, 0))
