"""The orders in which candidates are selected: by the encoders' agreement, or drawn over bands of each query's window.

Pure functions. An order depends on the set of candidates and the seed alone, whatever the order of the input. What the
orders mean for the data: tasks/select/stage.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import MINER_ROLES, Params
from tasks.names import seeded_hash
from tasks.select.candidates import ABSENT, BLOCK_ROWS, Candidates, index_in_group

if TYPE_CHECKING:
    from tasks.select.estimate import Estimated

BEST_AGREEMENT = 6.0  # of three encoders in both directions; more, with a fourth one, is of the same tier
TIERS = 10  # equal steps of the chance of acceptance that order the candidates of a band


def seeded_hashes(pair_ids: np.ndarray, seed: int) -> np.ndarray:
    """The first 8 bytes of `names.seeded_hash` of each pair, which orders pairs that are equal in all else.

    Args:
        pair_ids: (m,) ASCII.
        seed: of the hash.
    Returns:
        (m,) uint64.
    """
    prefix = f"{seed}\x1f".encode()
    result = np.empty(len(pair_ids), ">u8")
    for start in range(0, len(result), BLOCK_ROWS):
        ids = pair_ids[start : start + BLOCK_ROWS].tolist()
        digests = b"".join(hashlib.sha256(prefix + i).digest()[:8] for i in ids)
        result[start : start + len(ids)] = np.frombuffer(digests, ">u8")
    return result.astype(np.uint64)


def agreement_tiers(c: Candidates) -> np.ndarray:
    """(m,) int64, agreement of the encoders, 0 the best: under all of them each image is the other's nearest.

    Agreement is the sum of 1 / (1 + rank) over encoders and directions; four tiers to a factor of two.
    """
    agreement = np.zeros(len(c))
    for ranks in (c.ranks, c.reverse_ranks):
        for e in range(len(MINER_ROLES)):
            agreement += np.where(ranks[:, e] != ABSENT, 1 / (1 + ranks[:, e].astype(np.float64)), 0)
    return np.maximum(np.floor(4 * (math.log2(BEST_AGREEMENT) - np.log2(agreement)) + 1e-9), 0).astype(np.int64)


def agreement_order(c: Candidates, seed: int, agreement: str = "rank") -> np.ndarray:
    """Best agreement first, then by a seeded hash of the pair.

    Args:
        c: the candidates.
        seed: of the hash.
        agreement: rank (by tier, the nearest pairs first) or encoders (by how many encoders mined the pair, in either
            direction, however near).
    Returns:
        (m,) int64, the candidates' indices in order.
    """
    return np.lexsort((c.keys, seeded_hashes(c.pair_ids, seed), agreement_classes(c, agreement)))


def agreement_classes(c: Candidates, agreement: str) -> np.ndarray:
    """(m,) int64, the candidates' class by `agreement`, the lowest first; never below 0."""
    return agreement_tiers(c) if agreement == "rank" else 2 * len(MINER_ROLES) - c.encoder_counts


def window_bands(
    c: Candidates, count: int, *, by: str, top_k: int, windows: Mapping[str, tuple[float, float]]
) -> np.ndarray:
    """Which of `count` equal bands of its query's window each candidate lies in, 0 the nearest.

    Args:
        c: the candidates; by 'similarity' theirs must be known.
        count: bands.
        by: rank or similarity, under the encoder that ranks the pair best.
        top_k: ranks that a query may have, a count.
        windows: encoder -> (low, high), cosines.
    Returns:
        (m,) int64.
    """
    best = c.ranks.argmin(axis=1)
    rows = np.arange(len(c))
    if by == "rank":
        position = c.ranks[rows, best] / top_k
    else:
        assert c.similarities is not None
        low, high = np.array([windows.get(e, (np.nan, np.nan)) for e in MINER_ROLES])[best].T
        position = (high - c.similarities[rows, best]) / (high - low)
    return np.clip((position * count).astype(np.int64), 0, count - 1)


def band_order(c: Candidates, seed: int, weights: Sequence[float], bands: np.ndarray) -> np.ndarray:
    """Draw candidates over the bands of each query's window: every query's first draw comes before any second one.

    Inside a band, what more encoders mined comes first, then a seeded hash decides.

    Args:
        c: the candidates.
        seed: of the order of a query's bands, and of the candidates in a band.
        weights: of each band, above 0: the chance that a query draws from it first.
        bands: (m,) the band of each candidate.
    Returns:
        (m,) int64, the candidates' indices in order.
    """
    hashes = seeded_hashes(c.pair_ids, seed)
    return np.lexsort((c.keys, hashes, band_draws(c, hashes, seed, weights, bands)))


def band_draws(
    c: Candidates,
    hashes: np.ndarray,
    seed: int,
    weights: Sequence[float],
    bands: np.ndarray,
    tiers: np.ndarray | None = None,
) -> np.ndarray:
    """(m,) int64, in which draw of its query each candidate is taken, from 0.

    Args:
        c: all candidates of their queries.
        hashes: (m,) of `seeded_hashes`.
        seed, weights, bands: as of `band_order`.
        tiers: (m,) what comes first inside a band, the lowest; what more encoders mined when None.
    """
    if tiers is None:
        tiers = -c.encoder_counts
    order = np.lexsort((c.keys, hashes, tiers, bands, c.queries))
    visit = np.empty(len(c), np.int64)  # the visit of its band in which a candidate is drawn
    visit[order] = index_in_group(c.queries[order].astype(np.int64) * len(weights) + bands[order])
    queries, which = np.unique(c.queries, return_inverse=True)
    band_turns = _band_turns(c.image_ids.take(queries).to_pylist(), seed, weights)
    order = np.lexsort((band_turns[which, bands], visit, c.queries))
    draw = np.empty(len(c), np.int64)
    draw[order] = index_in_group(c.queries[order])
    return draw


def _band_turns(queries: Sequence[str], seed: int, weights: Sequence[float]) -> np.ndarray:
    """(m, bands) int64, the turn in which each query visits each band.

    Turns are the order of exponential waiting times, so band b comes first with chance weights[b] / sum(weights)
    (Efraimidis, Spirakis 2006).
    """
    waits = np.empty((len(queries), len(weights)))
    for n, query in enumerate(queries):
        for b, weight in enumerate(weights):
            number = int.from_bytes(seeded_hash(seed, query, b)[:7], "big")
            waits[n, b] = -math.log((number + 1) / 2**56) / weight
    return np.argsort(np.argsort(waits, axis=1, kind="stable"), axis=1, kind="stable")


def preference_classes(
    c: Candidates, hashes: np.ndarray, params: Params, estimated: Estimated | None = None
) -> np.ndarray:
    """What orders candidates before their hash, as `select.bands` and `select.agreement` ask for; the lowest first.

    Args:
        c: all candidates of their queries.
        hashes: (m,) of `seeded_hashes`.
        estimated: of the candidates, where there is an estimate; bands by differences are none without it.
    Returns:
        (m,) int64, never below 0.
    """
    config = params.select
    if config.bands and config.bands_by == "differences" and estimated is not None:
        bands = np.minimum(estimated.bands, len(config.bands) - 1)
        tiers = -np.round(estimated.acceptance * TIERS).astype(np.int64)
        return band_draws(c, hashes, params.open_run.seed, config.bands, bands, tiers)
    if not config.bands or config.bands_by == "differences":
        return agreement_classes(c, config.agreement)
    windows = {str(e): (w.low, w.high) for e, w in params.mine.windows.items()}
    bands = window_bands(c, len(config.bands), by=config.bands_by, top_k=params.mine.neighbours, windows=windows)
    return band_draws(c, hashes, params.open_run.seed, config.bands, bands)
