"""Which candidates become pairs: all in order of preference, while no quota is full.

Pure. The state is a few numbers an image; candidates come a block at a time, in order (`Quotas.settle`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tasks.config import MINER_ROLES, SelectConfig
from tasks.select.candidates import BLOCK_ROWS, Candidates, find_sorted

QUOTAS = (
    "pairs_per_batch",
    "pairs_per_query",
    "pairs_per_target",
    "pairs_per_encoder",
    "nearest_share",
    "pairs_per_source",
)
# What `Quotas.settle` decides beside the quota that is full, an index into QUOTAS.
SELECTED, SELECTED_WITH_REVERSE, IS_PAIR_ALREADY = -1, -2, -3
SEMANTIC = MINER_ROLES.index("semantic")


class Selection(NamedTuple):
    """What `within_quotas` decides.

    Attributes:
        pairs: candidates that became pairs.
        rejected: (m,) int64, indices of the candidates that found a quota full, in no order.
        full_quotas: (m,) int64, which of QUOTAS that was.
    """

    pairs: Candidates
    rejected: np.ndarray
    full_quotas: np.ndarray


class PublishedPairs:
    """Earlier batches' pairs: they count against the quotas, and none of them is selected again.

    Attributes:
        as_query, as_target: (p,) int32, pairs of each image.
    """

    def __init__(self, image_count: int) -> None:
        """None yet, of `image_count` images."""
        self.as_query, self.as_target = np.zeros(image_count, np.int32), np.zeros(image_count, np.int32)
        self._keys: list[np.ndarray] = []

    def add(self, queries: np.ndarray, targets: np.ndarray) -> None:
        """Count pairs: indices of their images (n,), -1 where an image is none of these."""
        for counts, ends in ((self.as_query, queries), (self.as_target, targets)):
            counts += np.bincount(ends[ends >= 0], minlength=len(counts)).astype(np.int32)
        is_named = (queries >= 0) & (targets >= 0)
        keys = queries[is_named].astype(np.int64) * len(self.as_query) + targets[is_named]
        self._keys = [np.union1d(keys, *self._keys)] if self._keys else [np.unique(keys)]

    def contains(self, queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(m,) bool: the ordered pairs of images (m,) that are published."""
        if not self._keys:
            return np.zeros(len(queries), bool)
        return find_sorted(self._keys[0], queries.astype(np.int64) * len(self.as_query) + targets)[1]


# Of one pair: query, target, the image of this batch that it counts against, whether the target is the query's nearest,
# and the encoders that mined it.
_Entry = tuple[int, int, int, bool, list[bool]]


class _QuotaCounts:
    """The pairs that count against each quota so far."""

    def __init__(self, published: PublishedPairs, config: SelectConfig, sources: np.ndarray | None) -> None:
        """`published`: theirs count; `sources`: (p,) the source of each image."""
        self.per_batch, self.per_query = config.pairs_per_batch, config.pairs_per_query
        self.per_target, self.share = config.pairs_per_target, config.nearest_share
        self.per_source = config.pairs_per_source or 0
        self.per_encoder = {MINER_ROLES.index(e): count for e, count in config.pairs_per_encoder.items()}
        # arrays for what looks at many images at once, views of them for what looks at one
        self.query_counts, self.target_counts = published.as_query.copy(), published.as_target.copy()
        self.new_image_counts = np.zeros(len(self.query_counts), np.int32)
        self.as_query, self.as_target = self.query_counts.data, self.target_counts.data
        self.as_new_image = self.new_image_counts.data
        if config.pairs_per_source is None:
            sources = None
        self.sources = None if sources is None else sources.data
        self.of_source = [0] * (1 + (0 if sources is None else int(sources.max(initial=0))))
        self.of_encoder = [0] * len(MINER_ROLES)
        self.total = self.nearest = 0

    def full_quota(self, query: int, target: int, new_image: int, is_nearest: bool, mined_by: list[bool]) -> int:
        """The quota that has no room for the pair, an index into QUOTAS; -1 for none."""
        if self.per_batch is not None and self.total >= self.per_batch:
            return 0
        if self.as_query[query] >= self.per_query or self.as_new_image[new_image] >= self.per_query:
            return 1
        if self.as_target[target] >= self.per_target:
            return 2
        if self.per_encoder and any(mined_by[e] and self.of_encoder[e] >= n for e, n in self.per_encoder.items()):
            return 3
        if self.share < 1 and is_nearest and self.nearest + 1 > self.share * (self.total + 1):
            return 4
        if self.sources is not None and self.of_source[self.sources[query]] >= self.per_source:
            return 5
        return -1

    def certainly_full(self, queries: np.ndarray, new_images: np.ndarray) -> np.ndarray | None:
        """(m,) int8, the quota that is full for each of the next m pairs whatever comes before it among them, -1 where
        that is not sure; None where it is for none.

        A query that is full stays so; with a limit a batch the quota that is reported depends on the order, unless the
        limit is reached, or cannot be by these.
        """
        if self.per_batch is not None:
            if self.total >= self.per_batch:
                return np.zeros(len(queries), np.int8)
            if self.total + 2 * len(queries) > self.per_batch:
                return None
        is_full = self.query_counts[queries] >= self.per_query
        is_full |= self.new_image_counts[new_images] >= self.per_query
        return np.where(is_full, np.int8(1), np.int8(-1))

    def add(
        self, query: int, target: int, new_image: int, is_nearest: bool, mined_by: list[bool], *, count: int = 1
    ) -> None:
        """Count the pair; `count` -1 takes it back."""
        self.total += count
        self.as_query[query] += count
        self.as_target[target] += count
        self.as_new_image[new_image] += count
        self.nearest += count * is_nearest
        if self.per_encoder:
            for e, is_mined in enumerate(mined_by):
                self.of_encoder[e] += count * is_mined
        if self.sources is not None:
            self.of_source[self.sources[query]] += count

    def add_both(self, pair: _Entry, mirrored: _Entry | None) -> int:
        """Count a pair that has room, and its other direction if one is given: both or neither. Returns the quota that
        is full for the other direction, or -1.
        """
        self.add(*pair)
        if mirrored is None:
            return -1
        if (quota := self.full_quota(*mirrored)) >= 0:
            self.add(*pair, count=-1)
        else:
            self.add(*mirrored)
        return quota


def is_nearest(c: Candidates) -> np.ndarray:
    """(m,) bool: the target is its query's nearest image under the encoder that composed retrieval starts from, so the
    image alone finds it.
    """
    return c.ranks[:, SEMANTIC] == 0


class _Entries:
    """The `_Entry` of each candidate, converted to Python objects a block at a time."""

    def __init__(self, c: Candidates, is_new: np.ndarray | None, with_encoders: bool) -> None:
        """`with_encoders`: whether a quota needs `mined_by`; else it is empty."""
        self.new_images = c.queries if is_new is None else np.where(is_new[c.queries], c.queries, c.targets)
        mined_by = c.mined_by if with_encoders else np.zeros((len(c), 0), bool)
        self.columns = (c.queries, c.targets, self.new_images, is_nearest(c), mined_by)

    def at(self, row: int) -> _Entry:
        """One candidate's."""
        query, target, new_image, nearest, mined_by = (column[row].tolist() for column in self.columns)
        return query, target, new_image, nearest, mined_by

    def iterate(self, rows: np.ndarray) -> Iterator[tuple[int, _Entry]]:
        """(row, entry) of some candidates."""
        yield from zip(
            rows.tolist(), zip(*(column[rows].tolist() for column in self.columns), strict=True), strict=True
        )


class Quotas:
    """Decides candidates in order of preference; keeps a few numbers an image."""

    def __init__(
        self,
        published: PublishedPairs,
        config: SelectConfig,
        is_new: np.ndarray | None = None,
        sources: np.ndarray | None = None,
    ) -> None:
        """Nothing is selected yet.

        Args:
            published: earlier batches' pairs.
            config: pairs_per_query, pairs_per_target, pairs_per_batch, pairs_per_encoder, pairs_per_source,
                nearest_share, both_directions.
            is_new: (p,) bool, images of this batch; all when absent. A pair counts against its query if that is new,
                else against its target; no image has more than pairs_per_query such pairs.
            sources: (p,) int64, the source of each image, a number from 0; for pairs_per_source.
        """
        self._published, self._is_new = published, is_new
        self._takes_both = config.both_directions
        self._counts = _QuotaCounts(published, config, sources)
        self._selected_keys = np.zeros(0, np.int64)  # sorted, of this run, where both directions are taken

    def settle(self, c: Candidates) -> np.ndarray:
        """Decide the next candidates, none of them published.

        Returns:
            (m,) int8: SELECTED; SELECTED_WITH_REVERSE, so that its other direction is a pair too; IS_PAIR_ALREADY, as
            the other direction of one before it; or the quota that is full, an index into QUOTAS.
        """
        entries = _Entries(c, self._is_new, bool(self._counts.per_encoder))
        result = np.empty(len(c), np.int8)
        settle = self._settle_both if self._takes_both else self._settle_one
        settle(c, entries, result)
        return result

    def _settle_one(self, c: Candidates, entries: _Entries, result: np.ndarray) -> None:
        counts = self._counts
        for start in range(0, len(c), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(c)))
            full = counts.certainly_full(c.queries[rows], entries.new_images[rows])
            if full is not None:
                result[rows] = full
                rows = rows[full < 0]
            for row, entry in entries.iterate(rows):
                quota = counts.full_quota(*entry)
                if quota < 0:
                    counts.add(*entry)
                result[row] = quota  # -1 is SELECTED

    def _settle_both(self, c: Candidates, entries: _Entries, result: np.ndarray) -> None:
        count = len(c.image_ids)
        mirrored = _Entries(c.mirrored(), self._is_new, bool(self._counts.per_encoder))
        keys, mirrored_keys = c.keys, c.targets.astype(np.int64) * count + c.queries
        is_known = find_sorted(self._selected_keys, keys)[1]
        is_mirror_published = self._published.contains(c.targets, c.queries)
        selected: set[int] = set()
        for start in range(0, len(c), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(c)))
            for row, entry in entries.iterate(rows):
                if is_known[row] or keys[row] in selected:
                    result[row] = IS_PAIR_ALREADY
                    continue
                quota = self._counts.full_quota(*entry)
                if quota < 0:
                    other = None if is_mirror_published[row] else mirrored.at(row)
                    quota = self._counts.add_both(entry, other)
                    if quota < 0:
                        selected |= {int(keys[row]), int(mirrored_keys[row])}
                        quota = SELECTED if other is None else SELECTED_WITH_REVERSE
                result[row] = quota
        self._selected_keys = np.union1d(self._selected_keys, np.array(sorted(selected), np.int64))


def take_selected(c: Candidates, decisions: np.ndarray) -> Candidates:
    """The pairs among decided candidates, with their other directions where `Quotas.settle` took these too."""
    pairs = c.take((decisions == SELECTED) | (decisions == SELECTED_WITH_REVERSE))
    if (decisions == SELECTED_WITH_REVERSE).any():
        pairs = pairs.concatenated(c.take(decisions == SELECTED_WITH_REVERSE).mirrored())
    return pairs


def within_quotas(
    c: Candidates,
    published: tuple[np.ndarray, np.ndarray],
    config: SelectConfig,
    is_new: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> Selection:
    """Select candidates in order while quotas allow; all in memory.

    Args:
        c: in order of preference.
        published: queries and targets (n,) of earlier batches' pairs, indices into `c.image_ids`, -1 where an image is
            absent there.
        config, is_new, sources: as of `Quotas`.
    """
    earlier = PublishedPairs(len(c.image_ids))
    earlier.add(*published)
    rows = np.flatnonzero(~earlier.contains(c.queries, c.targets))
    decisions = Quotas(earlier, config, is_new, sources).settle(c.take(rows))
    is_rejected = decisions >= 0
    return Selection(take_selected(c.take(rows), decisions), rows[is_rejected], decisions[is_rejected].astype(np.int64))
