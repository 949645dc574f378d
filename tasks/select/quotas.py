"""Which candidates become pairs: all in order of preference, while no quota is full. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES, SelectConfig
from tasks.select.candidates import BLOCK_ROWS, Candidates, find_sorted

QUOTAS = (
    "pairs_per_batch",
    "pairs_per_query",
    "pairs_per_target",
    "pairs_per_encoder",
    "nearest_share",
    "pairs_per_source",
)
SEMANTIC = ENCODER_ROLES.index("semantic")


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


# Of one pair: query, target, the image of this batch that it counts against, whether the target is the query's nearest,
# and the encoders that mined it.
_Entry = tuple[int, int, int, bool, list[bool]]


class _QuotaCounts:
    """The pairs that count against each quota so far."""

    def __init__(
        self, as_query: np.ndarray, as_target: np.ndarray, config: SelectConfig, sources: np.ndarray | None
    ) -> None:
        """`as_query`, `as_target`: (p,) published pairs of each image; `sources`: (p,) the source of each image."""
        self.per_batch, self.per_query = config.pairs_per_batch, config.pairs_per_query
        self.per_target, self.share = config.pairs_per_target, config.nearest_share
        self.per_source = config.pairs_per_source or 0
        self.per_encoder = {ENCODER_ROLES.index(e): count for e, count in config.pairs_per_encoder.items()}
        self.as_query, self.as_target, self.as_new_image = as_query.tolist(), as_target.tolist(), [0] * len(as_query)
        self.sources = None if sources is None or config.pairs_per_source is None else sources.tolist()
        self.of_source = [0] * (1 + max(self.sources or [0]))
        self.of_encoder = [0] * len(ENCODER_ROLES)
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
        new_images = c.queries if is_new is None else np.where(is_new[c.queries], c.queries, c.targets)
        mined_by = c.mined_by if with_encoders else np.zeros((len(c), 0), bool)
        self.columns = (c.queries, c.targets, new_images, is_nearest(c), mined_by)
        self.keys = c.keys

    def at(self, row: int) -> _Entry:
        """One candidate's."""
        query, target, new_image, nearest, mined_by = (column[row].tolist() for column in self.columns)
        return query, target, new_image, nearest, mined_by

    def iterate(self, rows: np.ndarray) -> Iterator[tuple[int, int, _Entry]]:
        """(row, key, entry) of some candidates."""
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            entries = zip(*(column[block].tolist() for column in self.columns), strict=True)
            yield from zip(block.tolist(), self.keys[block].tolist(), entries, strict=True)


def within_quotas(
    c: Candidates,
    published: tuple[np.ndarray, np.ndarray],
    config: SelectConfig,
    is_new: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> Selection:
    """Select candidates in order while quotas allow.

    Args:
        c: in order of preference.
        published: queries and targets (n,) of earlier batches' pairs, indices into `c.image_ids`, -1 where an image is
            absent there; they count against the quotas, and none of them is selected again.
        config: pairs_per_query, pairs_per_target, pairs_per_batch, pairs_per_encoder, pairs_per_source, nearest_share,
            both_directions.
        is_new: (p,) bool, images of this batch; all when absent. A pair counts against its query if that is new, else
            against its target; no image has more than pairs_per_query such pairs.
        sources: (p,) int64, the source of each image, a number from 0; for pairs_per_source.
    """
    count = len(c.image_ids)
    as_query, as_target = (np.bincount(ends[ends >= 0], minlength=count) for ends in published)
    counts = _QuotaCounts(as_query, as_target, config, sources)
    mirrored_keys = c.targets.astype(np.int64) * count + c.queries
    is_named = (published[0] >= 0) & (published[1] >= 0)
    published_keys = np.unique(published[0][is_named].astype(np.int64) * count + published[1][is_named])
    is_published, is_mirror_published = (find_sorted(published_keys, k)[1] for k in (c.keys, mirrored_keys))
    entries = _Entries(c, is_new, bool(counts.per_encoder))
    mirrored = c.mirrored() if config.both_directions else None
    mirrored_entries = None if mirrored is None else _Entries(mirrored, is_new, bool(counts.per_encoder))
    # A query that is full of published pairs takes no more, whatever comes before it: this settles most of a week's
    # candidates at once. With a limit a batch the quota that is reported depends on the order.
    is_full = np.zeros(len(c), bool)
    if config.pairs_per_batch is None:
        is_full = (as_query >= config.pairs_per_query)[c.queries]
    rejected: list[int] = np.flatnonzero(is_full & ~is_published).tolist()
    full_quotas = [QUOTAS.index("pairs_per_query")] * len(rejected)
    selected: list[int] = []
    selected_mirrored: list[int] = []
    selected_keys: set[int] = set()  # of this run's pairs, where both directions are taken
    for row, key, entry in entries.iterate(np.flatnonzero(~is_published & ~is_full)):
        if key in selected_keys:
            continue  # selected with its other direction
        quota = counts.full_quota(*entry)
        if quota < 0:
            other = None
            if mirrored_entries is not None and not is_mirror_published[row]:
                other = mirrored_entries.at(row)
            quota = counts.add_both(entry, other)
            if quota < 0:
                selected.append(row)
                if mirrored_entries is not None:
                    selected_keys |= {key, int(mirrored_keys[row])}
                if other is not None:
                    selected_mirrored.append(row)
                continue
        rejected.append(row)
        full_quotas.append(quota)
    pairs = c.take(np.array(selected, np.int64))
    if mirrored is not None:
        pairs = pairs.concatenated(mirrored.take(np.array(selected_mirrored, np.int64)))
    return Selection(pairs, np.array(rejected, np.int64), np.array(full_quotas, np.int64))
