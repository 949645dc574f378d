"""Candidates as columns: ordered pairs of images, and the encoders that mined them.

Pure functions. Images are integer indices into the sorted list of image ids, so a table of hundreds of millions of
candidates is a few arrays (24 to 72 bytes each), and comparing indices is comparing ids. The orders in which candidates
are selected: tasks/select/order.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import MINER_ROLES
from tasks.knn.neighbours import rank_order

if TYPE_CHECKING:
    import pyarrow as pa

ABSENT = np.iinfo(np.int32).max  # rank under an encoder that did not mine the pair
BLOCK_ROWS = 1 << 16  # candidates as Python objects at a time


class MinedRows(NamedTuple):
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

    def take(self, rows: np.ndarray) -> MinedRows:
        """Some of the rows: their indices, or a mask (m,) bool."""
        return MinedRows(*(column[rows] for column in self))

    def concatenated(self, other: MinedRows) -> MinedRows:
        """These rows, then the others."""
        return MinedRows(*(np.concatenate(columns) for columns in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Candidates:
    """Ordered pairs of images, each once.

    Attributes:
        image_ids: (p) strings, sorted.
        queries, targets: (m,) int32, indices into `image_ids`.
        ranks: (m, 4) int32, under each of MINER_ROLES; ABSENT where it did not mine the pair.
        reverse_ranks: (m, 4) int32, of the pair's other direction.
        similarities: (m, 4) float64, cosine; NaN where it is unknown. None where it is not needed.
    """

    image_ids: pa.Array
    queries: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    reverse_ranks: np.ndarray
    similarities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: np.ndarray) -> Candidates:
        """Some of the pairs: their indices in order, or a mask (m,) bool."""
        result = Candidates(
            self.image_ids,
            self.queries[rows],
            self.targets[rows],
            self.ranks[rows],
            self.reverse_ranks[rows],
            None if self.similarities is None else self.similarities[rows],
        )
        if "pair_ids" in self.__dict__:  # computed already
            result.__dict__["pair_ids"] = self.pair_ids[rows]
        return result

    def concatenated(self, other: Candidates) -> Candidates:
        """The pairs of both tables, which have the same image ids."""
        has_similarities = self.similarities is not None and other.similarities is not None
        columns = ["queries", "targets", "ranks", "reverse_ranks", *(["similarities"] if has_similarities else [])]
        return Candidates(self.image_ids, *(np.concatenate([getattr(c, n) for c in (self, other)]) for n in columns))

    def mirrored(self) -> Candidates:
        """The pairs' other directions.

        Cosine similarity is symmetric; where a query does not rank its target among the k nearest, the ranks are those
        of the other direction.
        """
        ranks = np.where(self.reverse_ranks != ABSENT, self.reverse_ranks, self.ranks)
        return Candidates(self.image_ids, self.targets, self.queries, ranks, self.ranks, self.similarities)

    @property
    def keys(self) -> np.ndarray:
        """(m,) int64, one number for each ordered pair of images."""
        return self.queries.astype(np.int64) * len(self.image_ids) + self.targets

    @property
    def mined_by(self) -> np.ndarray:
        """(m, 4) bool: the encoders that mined the pair in this direction."""
        return self.ranks != ABSENT

    @property
    def encoder_counts(self) -> np.ndarray:
        """(m,) how many encoders mined the pair, in either direction."""
        return ((self.ranks != ABSENT) | (self.reverse_ranks != ABSENT)).sum(axis=1)

    @cached_property
    def pair_ids(self) -> np.ndarray:
        """(m,) 32-digit ASCII, the same in every version (`names.stable_id` of query and target)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        result = np.empty(len(self), "S32")
        for start in range(0, len(self), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            ends = [self.image_ids.take(pa.array(images[rows])) for images in (self.queries, self.targets)]
            texts = pc.binary_join_element_wise(*ends, "\x1f").cast(pa.binary()).to_pylist()
            digests = b"".join([hashlib.sha256(text).digest()[:16] for text in texts])
            result[rows] = np.frombuffer(digests.hex().encode(), "S32")
        return result


def find_sorted(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up numbers in a sorted array.

    Args:
        keys: (n,) int64, sorted.
        wanted: (m,) int64.
    Returns:
        (m,) int64, the position in `keys`, without meaning where it is absent; and (m,) bool, whether it is present.
    """
    order = np.argsort(wanted)  # looked up in order, which reads memory in order
    at = np.empty(len(wanted), np.int64)
    at[order] = np.searchsorted(keys, wanted[order])
    at[at == len(keys)] = 0
    return at, (keys[at] == wanted) if len(keys) else np.zeros(len(wanted), bool)


def index_in_group(groups: np.ndarray) -> np.ndarray:
    """Each row's index, from 0, among the rows of its group, which are adjacent; (m,) int64."""
    is_first = np.ones(len(groups), bool)
    is_first[1:] = groups[1:] != groups[:-1]
    rows = np.arange(len(groups))
    return rows - np.maximum.accumulate(np.where(is_first, rows, 0))


class MergedRows(NamedTuple):
    """Ordered pairs of images that any encoder mined, each once, by query and target.

    Attributes:
        keys: (m,) int64, rising, query x images + target.
        ranks: (m, 4) int32, under each of MINER_ROLES; ABSENT where it did not mine the pair.
        similarities: (m, 4) float64, cosine; NaN where it is unknown. None where it is not needed.
    """

    keys: np.ndarray
    ranks: np.ndarray
    similarities: np.ndarray | None


def merge_encoders(image_count: int, mined: Mapping[str, MinedRows], with_similarities: bool = False) -> MergedRows:
    """The encoders' candidates as one table; no image is its own target.

    Args:
        image_count: images that indices stand for.
        mined: encoder -> its candidates.
        with_similarities: whether their cosines are kept.
    """
    by_encoder = {MINER_ROLES.index(e): rows.take(rows.queries != rows.targets) for e, rows in mined.items()}
    encoder_keys = {e: rows.queries.astype(np.int64) * image_count + rows.targets for e, rows in by_encoder.items()}
    keys = np.unique(np.concatenate(list(encoder_keys.values()))) if encoder_keys else np.zeros(0, np.int64)
    ranks = np.full((len(keys), len(MINER_ROLES)), ABSENT, np.int32)
    similarities = np.full(ranks.shape, np.nan) if with_similarities else None
    for e, rows in by_encoder.items():
        at, _ = find_sorted(keys, encoder_keys[e])
        np.minimum.at(ranks[:, e], at, rows.ranks)
        if similarities is not None:
            similarities[at, e] = rows.similarities
    return MergedRows(keys, ranks, similarities)


def with_reverse_ranks(
    image_ids: pa.Array, merged: MergedRows, reverse_keys: np.ndarray, reverse_ranks: np.ndarray
) -> Candidates:
    """Candidates from merged rows and the ranks of their other directions.

    Args:
        image_ids: (p) strings, sorted.
        merged: the rows.
        reverse_keys: (r,) int64, sorted: keys of pairs whose other direction was mined; others may be among them.
        reverse_ranks: (r, 4) int32, the ranks of that other direction.
    """
    queries, targets = np.divmod(merged.keys, max(len(image_ids), 1))
    at, is_present = find_sorted(reverse_keys, merged.keys)
    reverse = np.full_like(merged.ranks, ABSENT)
    reverse[is_present] = reverse_ranks[at[is_present]]
    ends = queries.astype(np.int32), targets.astype(np.int32)
    return Candidates(image_ids, *ends, merged.ranks, reverse, merged.similarities)


def merge_candidates(
    image_ids: pa.Array, mined: Mapping[str, MinedRows], with_similarities: bool = False
) -> Candidates:
    """The encoders' candidates as one table, each pair once, by query and target; all in memory.

    Args:
        image_ids: (p) strings, sorted.
        mined: encoder -> its candidates.
        with_similarities: whether their cosines are kept.
    """
    merged = merge_encoders(len(image_ids), mined, with_similarities)
    queries, targets = np.divmod(merged.keys, max(len(image_ids), 1))
    mirrored = targets * len(image_ids) + queries
    order = np.argsort(mirrored)
    return with_reverse_ranks(image_ids, merged, mirrored[order], merged.ranks[order])


def rank_among_all(new: MinedRows, earlier: MinedRows, top_k: int) -> MinedRows:
    """This batch's candidates, ranked among all that was ever mined for their query; without those beyond the k-th.

    A candidate that one run over everything would rank among a query's first k is always among them: it was so when the
    later of the two images came, among fewer images.

    Args:
        new: rows of this batch.
        earlier: rows of the batches before, at least all for the queries of `new`.
        top_k: k, a count.
    Returns:
        The rows by query, then rank.
    """
    if len(new.queries):
        is_query = np.zeros(int(max(new.queries.max(), earlier.queries.max(initial=0))) + 1, bool)
        is_query[new.queries] = True
        earlier = earlier.take(is_query[earlier.queries])
    both = new.concatenated(earlier)
    order = rank_order(both.queries, both.similarities.astype(np.float64), both.targets)
    ranks = index_in_group(both.queries[order]).astype(np.int32)
    is_selected = (order < len(new.queries)) & (ranks < top_k)
    return both.take(order[is_selected])._replace(ranks=ranks[is_selected])
