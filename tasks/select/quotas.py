"""Which candidates are taken: in order of preference, while no quota is full. Pure functions, used by
tasks/select/stage.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES, SelectConfig
from tasks.select.candidates import AT_ONCE, Candidates, places_in

QUOTAS = (
    "pairs_per_batch",
    "pairs_per_query",
    "pairs_per_target",
    "pairs_per_encoder",
    "nearest_share",
    "pairs_per_source",
)
SEMANTIC = ENCODER_ROLES.index("semantic")


class Chosen(NamedTuple):
    """What `within_quotas` decides.

    Attributes:
        taken: candidates that became pairs.
        left: numbers (m,) of the candidates that found a quota full, in no order.
        reasons: (m,) which of QUOTAS that was.
    """

    taken: Candidates
    left: np.ndarray
    reasons: np.ndarray


class _Quotas:
    """What is used up so far."""

    def __init__(
        self, started: np.ndarray, ended: np.ndarray, config: SelectConfig, sources: np.ndarray | None
    ) -> None:
        self.config = config
        self.batch, self.query, self.target, self.share = (
            config.pairs_per_batch,
            config.pairs_per_query,
            config.pairs_per_target,
            config.nearest_share,
        )
        self.limits = {ENCODER_ROLES.index(e): count for e, count in config.pairs_per_encoder.items()}
        self.queries, self.targets, self.brought = started.tolist(), ended.tolist(), [0] * len(started)
        self.sources = None if sources is None or config.pairs_per_source is None else sources.tolist()
        self.of_source = [0] * (1 + max(self.sources or [0]))
        self.of_encoder = [0] * len(ENCODER_ROLES)
        self.taken = self.nearest = 0

    def refusal(self, query: int, target: int, bringer: int, is_nearest: bool, mined_by: list[bool]) -> int:
        """Which quota has no room for the pair, a place in QUOTAS; -1 for none."""
        if self.batch is not None and self.taken >= self.batch:
            return 0
        if self.queries[query] >= self.query or self.brought[bringer] >= self.query:
            return 1
        if self.targets[target] >= self.target:
            return 2
        if self.limits and any(mined_by[e] and self.of_encoder[e] >= limit for e, limit in self.limits.items()):
            return 3
        if self.share < 1 and is_nearest and self.nearest + 1 > self.share * (self.taken + 1):
            return 4
        if self.sources is not None and self.of_source[self.sources[query]] >= (self.config.pairs_per_source or 0):
            return 5
        return -1

    def charge(
        self, query: int, target: int, bringer: int, is_nearest: bool, mined_by: list[bool], *, count: int = 1
    ) -> None:
        """Use up room for the pair; -1 gives it back."""
        self.taken += count
        self.queries[query] += count
        self.targets[target] += count
        self.brought[bringer] += count
        self.nearest += count * is_nearest
        if self.limits:
            for e, mined in enumerate(mined_by):
                self.of_encoder[e] += count * mined
        if self.sources is not None:
            self.of_source[self.sources[query]] += count


def is_nearest(c: Candidates) -> np.ndarray:
    """(m,) bool: the target is its query's nearest image by the encoder that composed retrieval starts from, so the
    image alone finds it.
    """
    return c.ranks[:, SEMANTIC] == 0


def within_quotas(
    c: Candidates,
    published: tuple[np.ndarray, np.ndarray],
    config: SelectConfig,
    is_new: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> Chosen:
    """Take candidates in order while quotas allow.

    Args:
        c: in order of preference.
        published: queries and targets (n,) of earlier batches' pairs, places in `c.names`, -1 where an image is not
            named there; they fill
            quotas, and none of them comes again.
        config: pairs_per_query, pairs_per_target, pairs_per_batch, pairs_per_encoder, pairs_per_source, nearest_share,
            both_directions.
        is_new: (p,) bool, images that this batch brings; all when absent. One of them brings at most pairs_per_query
            pairs, at whichever end.
        sources: (p,) int64, the source of each image, a number from 0; for pairs_per_source.
    """
    count = len(c.names)
    started, ended = (np.bincount(ends[ends >= 0], minlength=count) for ends in published)
    quotas = _Quotas(started, ended, config, sources)
    both = (published[0] >= 0) & (published[1] >= 0)
    old_keys = np.unique(published[0][both].astype(np.int64) * count + published[1][both])
    keys, mirrored_keys = c.keys, c.targets.astype(np.int64) * count + c.queries
    is_old, is_old_mirrored = places_in(old_keys, keys)[1], places_in(old_keys, mirrored_keys)[1]
    pairs = _charges(c, is_new, bool(quotas.limits))
    others = c.mirrored() if config.both_directions else None
    other_pairs = None if others is None else _charges(others, is_new, bool(quotas.limits))
    # A query that is full of published pairs takes no more, whatever comes before: most of a week's candidates are
    # settled so.
    is_full = (
        (started >= config.pairs_per_query)[c.queries] if config.pairs_per_batch is None else np.zeros(len(c), bool)
    )
    numbers = np.flatnonzero(~is_old & ~is_full)
    taken: list[int] = []
    mirrored: list[int] = []
    left: list[int] = np.flatnonzero(is_full & ~is_old).tolist()
    reasons: list[int] = [QUOTAS.index("pairs_per_query")] * len(left)
    made: set[int] = set()  # keys of this run's pairs, where both directions are taken
    for start in range(0, len(numbers), AT_ONCE):
        rows = numbers[start : start + AT_ONCE]
        some: Iterable[tuple[Any, ...]] = zip(*(column[rows].tolist() for column in pairs), strict=True)
        for number, pair, key in zip(rows.tolist(), some, keys[rows].tolist(), strict=True):
            if key in made:
                continue
            reason = quotas.refusal(*pair)
            if reason < 0 and other_pairs is not None:
                other: tuple[Any, ...] | None = (
                    None if is_old_mirrored[number] else tuple(column[number].tolist() for column in other_pairs)
                )
                quotas.charge(*pair)
                if other is not None and (reason := quotas.refusal(*other)) >= 0:
                    quotas.charge(*pair, count=-1)
                else:
                    if other is not None:
                        quotas.charge(*other)
                        mirrored.append(number)
                    made |= {key, int(mirrored_keys[number])}
            elif reason < 0:
                quotas.charge(*pair)
            if reason < 0:
                taken.append(number)
            else:
                left.append(number)
                reasons.append(reason)
    chosen = c.take(np.array(taken, np.int64))
    if others is not None:
        chosen = joined(chosen, others.take(np.array(mirrored, np.int64)))
    return Chosen(chosen, np.array(left, np.int64), np.array(reasons, np.int64))


def _charges(c: Candidates, is_new: np.ndarray | None, with_encoders: bool) -> tuple[np.ndarray, ...]:
    """Columns of what `_Quotas` asks of a pair: query, target, who brings it, whether it is the nearest, who mined it
    (nobody, where no quota asks).
    """
    bringers = c.queries if is_new is None else np.where(is_new[c.queries], c.queries, c.targets)
    return c.queries, c.targets, bringers, is_nearest(c), c.mined_by if with_encoders else np.zeros((len(c), 0), bool)


def joined(a: Candidates, b: Candidates) -> Candidates:
    """Both tables' pairs, of the same names."""
    return Candidates(
        a.names,
        np.concatenate([a.queries, b.queries]),
        np.concatenate([a.targets, b.targets]),
        np.concatenate([a.ranks, b.ranks]),
        np.concatenate([a.reverse_ranks, b.reverse_ranks]),
        None if a.similarities is None or b.similarities is None else np.concatenate([a.similarities, b.similarities]),
    )
