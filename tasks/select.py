"""Select pairs: the encoders' candidates united, held to quotas, each with hard negatives, the query picture first.

Reads data/neighbours, data/embeddings, data/images, data/captions, the earlier batches' data/pairs; writes data/pairs/<batch>.parquet
(the marker) and data/dropped/select/<batch>.parquet. Source: MegaPairs, arXiv:2412.14475, section 3.1 and table 4 (the query
picture as a negative is the decisive one).

Order: candidates stand in tiers of agreement (the sum of 1 / (1 + rank) over the encoders that mined the pair, and over those
that mined it the other way round; four tiers to a factor of two); within a tier a seeded hash of the pair's id decides, so
neither the input's order nor chance shows. A rank is a place among all that was ever mined for the query, not among this week's: an old
picture takes a new target where that is among its `mine.neighbours` nearest, as one run over everything would.

With `select.bands` a query's pairs are drawn over its window instead: the window falls into equal bands (by rank, or by cosine of the
encoder that ranks the pair best), a query visits them in a seeded order of its own, each band first with its weight's chance, and takes one
candidate from each in turn - within a band what more encoders mined, then by the seeded hash, however near it is. All queries' first draws stand
before all second ones, so a run's limit cuts no band short.

Quotas count what is published already. A pair is charged to a picture that this batch brings - its query, or where that is old its
target - and a picture brings at most `pairs_per_query` pairs, so n pictures never have more than n x pairs_per_query, however they
came. Without that a second batch of the sample world added 4.3 pairs for each new picture, twice what a query may start: every old picture
with room left took new targets (docs/decisions/0012).

Negatives come from what the same encoders retrieved for the query and for the target, the target's nearest first; one that any
encoder holds for a copy of the target is none. On request: neither is a copy of the query, and none lies nearer to the target than a share
of the pair's own distance; a pair brings its other direction along; an encoder, a source has a quota of its own (tasks/config.py).

Takedown (tasks/takedown.py): an earlier pair of a picture that the ledger names goes, in its own file; its query takes the best of all
that was ever mined for it, as a pair of this batch, and a place as negative goes to the next one retrieved.

Reasons: over_quota, copy_of_query, taken_down (a pair), near_duplicate_negative (a proposed negative; its pair may well be kept).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.batch import batch_of
from tasks.config import Params, SelectConfig
from tasks.errors import DataError
from tasks.knn import exact_of_rows, exact_similarity
from tasks.records import StageReport, stable_id
from tasks.store import Store
from tasks.takedown import REASON, rows_naming, taken_down

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
ENCODERS = ("semantic", "pattern", "caption")
ALL = 1 << 30  # negatives: no limit
_detail = json.JSONEncoder(sort_keys=True).encode
PAIRS_AT_ONCE = 256  # whose negatives are compared with their targets in one go


@dataclass(slots=True)  # there are neighbours x pictures of them
class Candidate:
    """An ordered pair of pictures and the encoders that mined it: encoder -> rank, this way and the other way round, and cosine."""

    query: str
    target: str
    ranks: dict[str, int] = field(default_factory=dict)
    reverse_ranks: dict[str, int] = field(default_factory=dict)
    similarities: dict[str, float] = field(default_factory=dict)
    _pair_id: str = field(default="", compare=False, repr=False)

    @property
    def pair_id(self) -> str:
        """The same in every version."""
        self._pair_id = self._pair_id or stable_id(self.query, self.target)
        return self._pair_id

    @property
    def tier(self) -> int:
        """Agreement of the encoders, 0 the best: for all of them each is the other's nearest."""
        agreement = sum(1 / (1 + rank) for rank in (*self.ranks.values(), *self.reverse_ranks.values()))
        return math.floor(4 * (math.log2(2 * len(ENCODERS)) - math.log2(agreement)) + 1e-9)


class Vectors:
    """Stored vectors by image id, per encoder."""

    def __init__(self, tables: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> None:
        """`tables`: encoder -> ids (n) and vectors (n, d) float16."""
        self.rows = {e: {i: n for n, i in enumerate(ids)} for e, (ids, _) in tables.items()}
        self.vectors = {e: vectors for e, (_, vectors) in tables.items()}

    def similarity(self, encoder: str, a: Sequence[str], b: Sequence[str]) -> list[float | None]:
        """Cosine per pair of ids; None where the encoder has no vector for one of the two."""
        rows = self.rows.get(encoder, {})
        known = [n for n, (x, y) in enumerate(zip(a, b, strict=True)) if x in rows and y in rows]
        out: list[float | None] = [None] * len(a)
        if known:
            ends = [np.array([rows[x[n]] for n in known], np.int64) for x in (a, b)]
            found = exact_of_rows(self.vectors[encoder], self.vectors[encoder], *ends)
            for n, s in zip(known, found.tolist(), strict=True):
                out[n] = s
        return out


def unite(neighbours: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[Candidate]:
    """The encoders' candidates as one list, each pair once, by query and target.

    Args:
        neighbours: encoder -> columns query_image_id, target_image_id, rank, and similarity where bands need it.
    """
    found: dict[tuple[str, str], Candidate] = {}
    known: dict[str, str] = {}  # one string for each picture, not one for each row
    for encoder in sorted(neighbours, key=ENCODERS.index):
        columns = neighbours[encoder]
        similarities = columns.get("similarity") or itertools.repeat(None, len(columns["rank"]))
        for query, target, rank, similarity in zip(columns["query_image_id"], columns["target_image_id"], columns["rank"], similarities, strict=True):
            if query != target:
                key = known.setdefault(query, query), known.setdefault(target, target)
                if (candidate := found.get(key)) is None:
                    candidate = found[key] = Candidate(*key)
                candidate.ranks[encoder] = min(rank, candidate.ranks.get(encoder, rank))
                if similarity is not None:
                    candidate.similarities[encoder] = similarity
    for (query, target), candidate in found.items():
        if (other := found.get((target, query))) is not None:
            candidate.reverse_ranks = other.ranks
    return [found[key] for key in sorted(found)]


def _chance(*parts: object) -> bytes:
    """A seeded hash: what decides where nothing else does, whatever the order of inputs."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def in_order(candidates: Sequence[Candidate], seed: int, agreement: str = "rank") -> list[Candidate]:
    """Best agreement first, then a seeded hash of the pair: whatever the order they come in.

    Args:
        candidates: each pair once.
        seed: of the hash.
        agreement: rank (by tier, the nearest pairs first) or encoders (by how many encoders mined the pair, either way, however near).
    """

    def rank(c: Candidate) -> int:
        return c.tier if agreement == "rank" else -len(c.ranks.keys() | c.reverse_ranks.keys())

    return sorted(candidates, key=lambda c: (rank(c), _chance(seed, c.pair_id), c.pair_id))


def band_of(c: Candidate, count: int, *, by: str, neighbours: int, windows: Mapping[str, tuple[float, float]]) -> int:
    """Which of `count` equal bands of its query's window a candidate lies in, 0 the nearest.

    Args:
        c: the pair; by 'similarity' it must have one.
        count: bands.
        by: rank or similarity, of the encoder that ranks the pair best.
        neighbours: ranks that a query may have, a count.
        windows: encoder -> (low, high), cosines.
    """
    encoder = min(c.ranks, key=lambda e: (c.ranks[e], ENCODERS.index(e)))
    if by == "rank":
        place = c.ranks[encoder] / neighbours
    else:
        low, high = windows[encoder]
        place = (high - c.similarities[encoder]) / (high - low)
    return min(max(int(place * count), 0), count - 1)


def over_bands(candidates: Sequence[Candidate], seed: int, weights: Sequence[float], band: Callable[[Candidate], int]) -> list[Candidate]:
    """Draws over the bands of each query's window, every query's first before anyone's second: whatever the order they come in.

    Args:
        candidates: each pair once.
        seed: of the order of a query's bands, and of the candidates in a band.
        weights: of each band, above 0: the chance that a query draws from it first.
        band: candidate -> its band.
    """
    of_query: dict[str, dict[int, list[Candidate]]] = {}
    for c in candidates:
        of_query.setdefault(c.query, {}).setdefault(band(c), []).append(c)
    turns: list[tuple[int, bytes, str, Candidate]] = []
    for query, bands in of_query.items():

        def first(b: int, query: str = query) -> float:  # exponential waits: b comes first with chance weights[b] / sum (Efraimidis, Spirakis 2006)
            uniform = (int.from_bytes(_chance(seed, query, b)[:7], "big") + 1) / 2**56
            return -math.log(uniform) / weights[b]

        order = {b: n for n, b in enumerate(sorted(range(len(weights)), key=lambda b: (first(b), b)))}
        draws = []
        for b, members in bands.items():
            agreed = sorted(members, key=lambda c: (-len(c.ranks.keys() | c.reverse_ranks.keys()), _chance(seed, c.pair_id), c.pair_id))
            draws += [(n, order[b], c) for n, c in enumerate(agreed)]
        draws.sort(key=lambda d: d[:2])
        turns += [(n, _chance(seed, c.pair_id), c.pair_id, c) for n, (_, _, c) in enumerate(draws)]
    return [c for *_, c in sorted(turns, key=lambda t: t[:3])]


def preferred(candidates: Sequence[Candidate], params: Params) -> list[Candidate]:
    """Candidates as `select.bands` wants them: best agreement first, or drawn over the bands of each query's window."""
    config = params.select
    if not config.bands:
        return in_order(candidates, params.open_run.seed, config.agreement)
    windows = {str(e): (w.low, w.high) for e, w in params.mine.windows.items()}

    def band(c: Candidate) -> int:
        return band_of(c, len(config.bands), by=config.bands_by, neighbours=params.mine.neighbours, windows=windows)

    return over_bands(candidates, params.open_run.seed, config.bands, band)


def with_merged_ranks(new: pa.Table, earlier: pa.Table, neighbours: int) -> pa.Table:
    """This batch's candidates with their place among all that was mined for their query; those beyond the k-th are left out.

    What one run over everything would rank among a query's first k is always among the rest: it was so when the later of the two
    pictures came, among fewer.

    Args:
        new: rows of table `neighbours` of this batch.
        earlier: those of the batches before, at least for the queries of `new`.
        neighbours: k, a count.
    Returns:
        query_image_id, target_image_id, similarity, rank; by query, then rank.
    """
    import pyarrow as pa

    both = pa.concat_tables([t.select(["query_image_id", "target_image_id", "similarity"]) for t in (new, earlier)])
    of, place = _numbered(both.column("query_image_id")), _numbered(both.column("target_image_id"))
    similarity = both.column("similarity").to_numpy()
    order = np.lexsort((place, -similarity, of))
    of = of[order]
    rank = (np.arange(len(of)) - np.searchsorted(of, of)).astype(np.int32)
    kept = (order < new.num_rows) & (rank < neighbours)
    rows = both.take(pa.array(order[kept]))
    return rows.append_column("rank", pa.array(rank[kept]))


def _numbered(column: pa.ChunkedArray) -> np.ndarray:
    """Each row's place among the column's different strings in order, (n,) int64."""
    encoded = column.dictionary_encode().unify_dictionaries()
    if not len(encoded):
        return np.zeros(0, np.int64)
    names = encoded.chunk(0).dictionary.to_pylist()
    place = np.empty(len(names), np.int64)
    place[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return place[np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks])]


def is_nearest(c: Candidate) -> bool:
    """Whether the target is its query's nearest picture by the encoder that composed retrieval starts from: then the picture alone finds it."""
    return c.ranks.get("semantic") == 0


class _Quotas:
    """What is used up so far."""

    def __init__(self, published: Sequence[tuple[str, str]], config: SelectConfig, new: Set[str] | None, sources: Mapping[str, str]) -> None:
        self.config, self.new, self.sources = config, new, sources
        self.limits: dict[str, int] = {str(e): count for e, count in config.pairs_per_encoder.items()}
        self.queries, self.targets = Counter(q for q, _ in published), Counter(t for _, t in published)
        self.brought: Counter[str] = Counter()
        self.nearest = 0
        self.of_encoder: Counter[str] = Counter()
        self.of_source: Counter[str] = Counter()
        self.taken = 0

    def _bringer(self, c: Candidate) -> str:
        return c.query if self.new is None or c.query in self.new else c.target

    def refusal(self, c: Candidate) -> str | None:
        """Which quota has no room for the pair."""
        config = self.config
        if config.pairs_per_batch is not None and self.taken >= config.pairs_per_batch:
            return "pairs_per_batch"
        if self.queries[c.query] >= config.pairs_per_query or self.brought[self._bringer(c)] >= config.pairs_per_query:
            return "pairs_per_query"
        if self.targets[c.target] >= config.pairs_per_target:
            return "pairs_per_target"
        if self.limits and any(self.of_encoder[e] >= self.limits[e] for e in c.ranks if e in self.limits):
            return "pairs_per_encoder"
        if config.nearest_share < 1 and is_nearest(c) and self.nearest + 1 > config.nearest_share * (self.taken + 1):
            return "nearest_share"
        if config.pairs_per_source is not None and self.of_source[self.sources.get(c.query, "")] >= config.pairs_per_source:
            return "pairs_per_source"
        return None

    def charge(self, c: Candidate, count: int = 1) -> None:
        """Use up room for the pair; -1 gives it back."""
        self.taken += count
        self.queries[c.query] += count
        self.targets[c.target] += count
        self.brought[self._bringer(c)] += count
        self.nearest += count * is_nearest(c)
        for encoder in c.ranks:
            self.of_encoder[encoder] += count
        self.of_source[self.sources.get(c.query, "")] += count


def mirrored(c: Candidate) -> Candidate:
    """The pair's other direction. Cosines know none: where its query does not rank its target among the k nearest, the ranks are its mirror's."""
    ranks = {e: c.reverse_ranks.get(e, rank) for e, rank in c.ranks.items()} | c.reverse_ranks
    return Candidate(c.target, c.query, ranks, c.ranks, c.similarities)


def within_quotas(
    candidates: Sequence[Candidate],
    published: Sequence[tuple[str, str]],
    config: SelectConfig,
    new: Set[str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Take candidates in order while quotas allow.

    Args:
        candidates: in order of preference.
        published: (query, target) of earlier batches; they fill quotas, and none of them comes again.
        config: pairs_per_query, pairs_per_target, pairs_per_batch, pairs_per_encoder, pairs_per_source, nearest_share, both_directions.
        new: pictures that this batch brings; all when absent. One of them brings at most pairs_per_query pairs, at whichever end.
        sources: image id -> its source, for pairs_per_source.
    Returns:
        taken, and (left out, which quota).
    """
    quotas = _Quotas(published, config, new, sources or {})
    taken: list[Candidate] = []
    left: list[tuple[Candidate, str]] = []
    old = set(published)
    for c in candidates:
        if (c.query, c.target) in old:
            continue
        if (refusal := quotas.refusal(c)) is not None:
            left.append((c, refusal))
            continue
        quotas.charge(c)
        if config.both_directions:
            if (c.target, c.query) not in old:
                other = mirrored(c)
                if (refusal := quotas.refusal(other)) is not None:
                    quotas.charge(c, -1)
                    left.append((c, refusal))
                    continue
                quotas.charge(other)
                taken.append(other)
            old |= {(c.query, c.target), (c.target, c.query)}
        taken.append(c)
    return taken, left


def proposed_negatives(c: Candidate, retrieved: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """image id -> encoder that proposed it: what the pair's own encoders retrieved for its query and its target.

    Args:
        c: the pair.
        retrieved: encoder -> query -> its neighbours by rank.
    """
    out: dict[str, str] = {}
    for encoder in (e for e in ENCODERS if e in c.ranks):
        for end in (c.query, c.target):
            for image_id in retrieved.get(encoder, {}).get(end, ()):
                if image_id not in (c.query, c.target):
                    out.setdefault(image_id, encoder)
    return out


def copy_limits(params: Params) -> dict[str, float]:
    """Per encoder the similarity from which two pictures count as copies: stated, else the window's high end."""
    limits = dict.fromkeys(ENCODERS, math.inf)
    limits.update({str(e): w.high for e, w in params.mine.windows.items()})
    limits.update(params.select.copy_similarity)
    return limits


def copies_of(image_id: str, others: Sequence[str], vectors: Vectors, limits: Mapping[str, float]) -> list[str]:
    """Those of the others that any encoder holds for copies of one picture."""
    copies: set[str] = set()
    for encoder in ENCODERS:
        found = vectors.similarity(encoder, others, [image_id] * len(others))
        copies.update(i for i, s in zip(others, found, strict=True) if s is not None and s >= limits[encoder])
    return [i for i in others if i in copies]


def hard_negatives(
    c: Candidate,
    retrieved: Mapping[str, Mapping[str, Sequence[str]]],
    vectors: Vectors,
    *,
    limits: Mapping[str, float],
    count: int,
    margin: float = 0,
    query_copies: bool = True,
    proposed: Mapping[str, str] | None = None,
    by_encoder: Mapping[str, Mapping[str, float | None]] | None = None,
) -> tuple[list[tuple[str, float]], list[str]]:
    """A pair's mined negatives, the target's nearest first.

    The margin is positive-aware (after NV-Retriever, arXiv:2407.15831, where a negative must score below the positive by a margin): here
    the pair's own distance is the yardstick, so that one number serves encoders whose cosines are spread differently.

    Args:
        c: the pair.
        retrieved: encoder -> query -> its neighbours by rank.
        vectors: stored vectors.
        limits: per encoder the similarity to the target from which a picture is its copy.
        count: most negatives, a count.
        margin: least distance (1 - cosine) of a negative to the target, by the encoder that proposed it, in distances of query and target.
        query_copies: whether copies of the query may be negatives.
        proposed: of `proposed_negatives`, where it is known.
        by_encoder: encoder -> proposed image id -> its similarity to the target, where it is known (`with_similarities`).
    Returns:
        (image id, similarity to the target by the encoder that proposed it), and the ids left out as copies.
    """
    proposed = proposed_negatives(c, retrieved) if proposed is None else proposed
    ids = sorted(proposed)
    by_encoder = next(with_similarities([c], [proposed], vectors))[2] if by_encoder is None else by_encoder
    out = {i for e, found in by_encoder.items() for i, s in found.items() if s is not None and s >= limits[e]}
    if not query_copies:
        out.update(copies_of(c.query, ids, vectors, limits))
    if margin:
        apart = {e: vectors.similarity(e, [c.query], [c.target])[0] for e in c.ranks}
        for i in ids:
            own, pair = by_encoder[proposed[i]][i], apart[proposed[i]]
            if own is not None and pair is not None and 1 - own < margin * (1 - pair):
                out.add(i)
    copies = [i for i in ids if i in out]
    usable = [(i, s) for i in ids if i not in out and (s := by_encoder[proposed[i]][i]) is not None]
    # encoders' cosines are not comparable: within an encoder by similarity, then the encoders in turn
    turns: dict[str, int] = {}
    places = {}
    for i, _ in sorted(usable, key=lambda x: (-x[1], x[0])):
        turn = turns.get(proposed[i], 0)
        places[i] = (turn, ENCODERS.index(proposed[i]))
        turns[proposed[i]] = turn + 1
    return sorted(usable, key=lambda x: places[x[0]])[:count], copies


def with_similarities(
    pairs: Sequence[Candidate], proposed: Iterable[Mapping[str, str]], vectors: Vectors
) -> Iterator[tuple[Candidate, Mapping[str, str], dict[str, dict[str, float | None]]]]:
    """Pairs with what is proposed as their negatives and how near to the target each lies under each encoder; many at a time, which is faster.

    Args:
        pairs: what to propose for.
        proposed: of each, image id -> encoder that proposed it.
        vectors: stored vectors.
    """
    todo = zip(pairs, proposed, strict=True)
    while some := list(itertools.islice(todo, PAIRS_AT_ONCE)):
        ids = [i for _, proposal in some for i in proposal]
        targets = [c.target for c, proposal in some for _ in proposal]
        found = {e: iter(vectors.similarity(e, ids, targets)) for e in ENCODERS}
        for c, proposal in some:
            yield c, proposal, {e: dict(zip(proposal, found[e], strict=False)) for e in ENCODERS}


def without_copies(candidates: Sequence[Candidate], vectors: Vectors, limits: Mapping[str, float]) -> tuple[list[Candidate], list[Candidate]]:
    """Candidates whose target no encoder holds for a copy of the query, and the others."""
    queries, targets = [c.query for c in candidates], [c.target for c in candidates]
    is_copy = [False] * len(candidates)
    for encoder in ENCODERS:
        for n, s in enumerate(vectors.similarity(encoder, queries, targets)):
            is_copy[n] = is_copy[n] or (s is not None and s >= limits[encoder])
    return [c for c, copy in zip(candidates, is_copy, strict=True) if not copy], [c for c, copy in zip(candidates, is_copy, strict=True) if copy]


def with_negatives(row: Mapping[str, Any], proposed: Sequence[tuple[str, float]], gone: Set[str]) -> dict[str, Any]:
    """A pair whose negatives that are gone have given their places to the nearest proposed ones; the rest stay, in order, and those stand last."""
    kept = [(i, s) for i, s in zip(row["negative_image_ids"], row["negative_similarity"], strict=True) if i not in gone]
    there = {i for i, _ in kept}
    kept += [(i, s) for i, s in proposed if i not in there and i not in gone][: len(row["negative_image_ids"]) - len(kept)]
    return {**row, "negative_image_ids": [i for i, _ in kept], "negative_similarity": [s for _, s in kept]}


def pair_row(c: Candidate, batch: str, similarities: Mapping[str, float | None], negatives: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """A row of table `pairs`."""
    mined_by = [e for e in ENCODERS if e in c.ranks]
    return {
        "pair_id": c.pair_id,
        "batch": batch,
        "query_image_id": c.query,
        "target_image_id": c.target,
        "mined_by": mined_by,
        **{f"similarity_{e}": similarities[e] for e in ENCODERS},
        "rank": min(c.ranks.values()),
        "negative_image_ids": [c.query, *(i for i, _ in negatives)],
        "negative_similarity": [similarities[mined_by[0]], *(s for _, s in negatives)],
    }


# --- the stage --------------------------------------------------------------------------------------------------------


def _read_candidates(store: Store, encoder: str, batch: str, neighbours: int) -> tuple[dict[str, list[Any]], pa.Table]:
    """This batch's candidates under one encoder, ranked among all that was mined for their queries (`with_merged_ranks`).

    Returns:
        the candidates' columns, and all rows of any batch whose query a candidate of this batch names: earlier files are read once.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
    of_batch = [f for f in files if f.stem.rpartition("-")[0] == batch]
    if not of_batch:
        raise DataError(f"select: no candidates of batch {batch} in data/neighbours/{encoder}; run `python -m tasks mine {encoder}` first")
    columns = ["query_image_id", "target_image_id", "similarity", "rank"]
    new, before = store.read(of_batch, "neighbours", columns), [f for f in files if f.stem.rpartition("-")[0] != batch]
    if not before:
        return new.filter(pc.less(new.column("rank"), neighbours)).to_pydict(), new
    named = pc.unique(pa.chunked_array([*new.column("query_image_id").chunks, *new.column("target_image_id").chunks], pa.string()))
    earlier = pa.concat_tables([_rows_of(store.read(path, "neighbours", columns), named) for path in before])
    mined = pa.concat_tables([new, earlier])
    # A query that had k in some batch keeps nothing below the k-th of them: most old queries are settled by that alone.
    floor = earlier.filter(pc.equal(earlier.column("rank"), neighbours - 1)).group_by("query_image_id").aggregate([("similarity", "max")])
    at = pc.index_in(new.column("query_image_id"), value_set=floor.column("query_image_id").combine_chunks())
    least = pc.fill_null(pc.take(floor.column("similarity_max"), at), -2.0)
    new = new.filter(pc.greater_equal(new.column("similarity"), least))
    earlier = _rows_of(earlier, pc.unique(new.column("query_image_id")))
    return with_merged_ranks(new, earlier, neighbours).to_pydict(), mined


def _rows_of(table: pa.Table, queries: pa.Array) -> pa.Table:
    """Rows of table `neighbours` whose query is one of some."""
    import pyarrow.compute as pc

    return table.filter(pc.is_in(table.column("query_image_id"), value_set=queries))


def _read_sources(store: Store) -> dict[str, str]:
    """image id -> name of its source."""
    rows = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    return {i: uri.partition(":")[0] for i, uri in zip(rows["image_id"], rows["source_uri"], strict=True)}


def _retrieved(tables: Iterable[pa.Table], queries: set[str]) -> dict[str, list[str]]:
    """query -> its neighbours by rank, of all batches, for some queries; a table at a time."""
    import pyarrow as pa

    wanted = pa.array(sorted(queries), pa.string())
    found: dict[str, dict[str, int]] = {}
    for table in tables:
        rows = _rows_of(table, wanted).select(["query_image_id", "target_image_id", "rank"]).to_pydict()
        for query, target, rank in zip(rows["query_image_id"], rows["target_image_id"], rows["rank"], strict=True):
            ranks = found.setdefault(query, {})
            ranks[target] = min(rank, ranks.get(target, rank))
    return {q: sorted(r, key=lambda t: (r[t], t)) for q, r in found.items()}


def _read_neighbours(store: Store, encoder: str) -> Iterator[pa.Table]:
    """All that was ever mined under an encoder, a file at a time."""
    for path in sorted(store.folder("data", "neighbours", encoder).glob("*.parquet")):
        yield store.read(path, "neighbours", ["query_image_id", "target_image_id", "rank"])


def _read_published(store: Store, batch: str, ends: set[str]) -> tuple[int, list[tuple[str, str]]]:
    """How many pairs earlier batches have, and those (query, target) that one of some pictures is an end of: no other counts for their quotas."""
    import pyarrow.compute as pc

    pairs = store.read_table("pairs", ["batch", "query_image_id", "target_image_id"])
    pairs = pairs.filter(pc.not_equal(pairs.column("batch"), batch))
    near = pairs.filter(rows_naming(pairs, ends, ["query_image_id", "target_image_id"])).to_pydict()
    return pairs.num_rows, list(zip(near["query_image_id"], near["target_image_id"], strict=True))


def _withdraw_pairs(params: Params, store: Store, batch: str, encoders: Sequence[str], gone: Set[str]) -> None:
    """Drop the pairs of pictures that are taken down, and fill their places as negative from what the pair's encoders retrieved.

    What goes is noted first (reason taken_down, one row a pair), then the files are written anew.
    """
    files = store.table_files("pairs")
    noted = {r["key"]: r for r in store.read([p for p in [_taken_path(store, batch)] if p.exists()], "dropped").to_pylist()}
    found = {path: [r for r in store.read(path, "pairs").to_pylist() if gone & _pictures_of(r)] for path in files}
    for row in (r for rows in found.values() for r in rows):
        if gone & {row["query_image_id"], row["target_image_id"]}:
            noted[row["pair_id"]] = _dropped(batch, row["pair_id"], REASON, {"query": row["query_image_id"], "target": row["target_image_id"]})
    if noted:
        store.write(_taken_path(store, batch), [noted[k] for k in sorted(noted)], "dropped")
    kept = [r for rows in found.values() for r in rows if not gone & {r["query_image_id"], r["target_image_id"]}]
    if not any(found.values()):
        return
    ends = {r[c] for r in kept for c in ("query_image_id", "target_image_id")}
    retrieved = {e: {q: [t for t in ts if t not in gone] for q, ts in _retrieved(_read_neighbours(store, e), ends).items()} for e in encoders}
    vectors = Vectors({e: store.read_embeddings(e)[:2] for e in encoders})
    config, limits = params.select, copy_limits(params)
    for path, some in found.items():
        if not some:
            continue
        rows = []
        for row in store.read(path, "pairs").to_pylist():
            if gone & {row["query_image_id"], row["target_image_id"]}:
                continue
            if gone & _pictures_of(row):
                c = Candidate(row["query_image_id"], row["target_image_id"], dict.fromkeys(row["mined_by"], 0))
                proposed, _ = hard_negatives(
                    c,
                    retrieved,
                    vectors,
                    limits=limits,
                    count=ALL,
                    margin=config.negative_margin,
                    query_copies=not config.drop_query_copies,
                )
                row = with_negatives(row, proposed, gone)
            rows.append(row)
        store.write(path, rows, "pairs")
    log.info("select: %d pairs taken down", len(noted))


def _read_vectors(store: Store, encoders: Sequence[str], wanted: Set[str]) -> Vectors:
    """The stored vectors of some pictures."""
    return Vectors({e: store.read_embeddings(e, wanted=wanted)[:2] for e in encoders})


def _pictures_of(row: Mapping[str, Any]) -> set[str]:
    return {row["query_image_id"], row["target_image_id"], *row["negative_image_ids"]}


def _taken_path(store: Store, batch: str) -> Path:
    """Beside the batch's own dropped rows."""
    return store.dropped_path("select", batch, 0)


def _read_lost(store: Store, batch: str, gone: Set[str]) -> set[str]:
    """Queries that lost a pair to this batch's takedown."""
    path = _taken_path(store, batch)
    details = store.read(path, "dropped").column("detail").to_pylist() if path.exists() else []
    return {json.loads(d)["query"] for d in details} - gone


def _add_candidates_of(store: Store, encoder: str, queries: set[str], neighbours: int, rows: dict[str, list[Any]]) -> None:
    """Lay all that was ever mined for some queries beside a batch's candidates, ranked among themselves."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(queries), pa.string())
    tables = [store.read(p, "neighbours") for p in sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))]
    mined = pa.concat_tables([t.filter(pc.is_in(t.column("query_image_id"), value_set=wanted)) for t in tables])
    for name, column in with_merged_ranks(mined, mined.slice(0, 0), neighbours).to_pydict().items():
        rows[name] += column


def median_caption_cosine(params: Params, store: Store, batch: str) -> float | None:
    """Median cosine of this batch's pictures and their captions; None unless one model embeds both."""
    encoders = params.embed.encoders
    if "semantic" not in encoders or "caption" not in encoders or encoders["semantic"].model != encoders["caption"].model:
        return None
    tables = {}
    for encoder in ("semantic", "caption"):
        shards = [f"{s}.tar" for s in store.embedded_shards(encoder) if s.rpartition("-")[0] == batch]
        ids, vectors, _ = store.read_embeddings(encoder, shards)
        tables[encoder] = dict(zip(ids, vectors, strict=True))
    both = sorted(set(tables["semantic"]) & set(tables["caption"]))
    if not both or len(tables["semantic"][both[0]]) != len(tables["caption"][both[0]]):
        return None
    return float(np.median(exact_similarity(np.stack([tables["semantic"][i] for i in both]), np.stack([tables["caption"][i] for i in both]))))


def run(params: Params, store: Store) -> StageReport:
    """Select this batch's pairs."""
    config, batch = params.select, batch_of(params)
    path, dropped_path = store.table_path("pairs", batch), store.dropped_path("select", batch)
    encoders: list[str] = [e for e in ENCODERS if e in params.embed.encoders]
    if gone := taken_down(params, store):
        _withdraw_pairs(params, store, batch, encoders, gone)
    report = StageReport("select")
    mined, rows_mined = {}, {}
    for encoder in encoders:
        mined[encoder], rows_mined[encoder] = _read_candidates(store, encoder, batch, params.mine.neighbours)
    brought = store.read_table("images", ["image_id"], batch).column("image_id").to_pylist()
    if brought and encoders:  # few candidates a picture: the encoder's window does not fit, or the encoder
        yields = {encoder: len(mined[encoder]["rank"]) / len(brought) for encoder in encoders}
        report.figures |= {f"yield_{encoder}": y for encoder, y in yields.items()} | {"encoder_yield_lowest": min(yields.values())}
        log.info("select: candidates a new picture: %s", ", ".join(f"{e} {y:.2f}" for e, y in yields.items()))
    if lost := _read_lost(store, batch, gone) if gone else set():
        for encoder in encoders:
            _add_candidates_of(store, encoder, lost, params.mine.neighbours, mined[encoder])
    if config.bands_by != "similarity":
        mined = {e: {name: column for name, column in columns.items() if name != "similarity"} for e, columns in mined.items()}
    candidates = unite(mined)
    mined.clear()
    new = set(brought) | lost
    if gone:  # what came up instead of a neighbour is for those who lost a pair, and for who comes later
        candidates = [c for c in candidates if c.query in new or c.target in new - lost]
    report.read = len(candidates)
    report.reused, published = _read_published(store, batch, {i for c in candidates for i in (c.query, c.target)})
    if not path.exists():
        limits = copy_limits(params)
        rows: list[dict[str, Any]] = []
        dropped: list[tuple[str, str, str]] = []  # reason, key, detail
        if config.drop_query_copies:
            named = {i for c in candidates for i in (c.query, c.target)}
            candidates, out = without_copies(candidates, _read_vectors(store, encoders, named), limits)
            dropped += [("copy_of_query", c.pair_id, _detail({"query": c.query, "target": c.target})) for c in out]
        sources = _read_sources(store) if config.pairs_per_source is not None else {}
        taken, left = within_quotas(preferred(candidates, params), published, config, new, sources)
        ends = {c.query for c in taken} | {c.target for c in taken}
        # what a takedown brought back was not mined with this batch: it is looked up in the files
        retrieved = {e: _retrieved(_read_neighbours(store, e) if lost else [rows_mined[e]], ends) for e in encoders}
        vectors = _read_vectors(store, encoders, ends | {i for found in retrieved.values() for q in found for i in found[q]})
        queries, targets = [c.query for c in taken], [c.target for c in taken]
        similarities = {e: vectors.similarity(e, queries, targets) for e in ENCODERS}
        of_pairs = with_similarities(taken, (proposed_negatives(c, retrieved) for c in taken), vectors)
        for n, (c, proposed, by_encoder) in enumerate(of_pairs):
            negatives, copies = hard_negatives(
                c,
                retrieved,
                vectors,
                limits=limits,
                count=config.negatives,
                margin=config.negative_margin,
                query_copies=not config.drop_query_copies,
                proposed=proposed,
                by_encoder=by_encoder,
            )
            rows.append(pair_row(c, batch, {e: similarities[e][n] for e in ENCODERS}, negatives))
            dropped += [("near_duplicate_negative", c.pair_id, _detail({"negative": i})) for i in copies]
        dropped += [("over_quota", c.pair_id, _detail({"query": c.query, "target": c.target, "quota": quota})) for c, quota in left]
        store.write(dropped_path, _dropped_table(batch, sorted(dropped)), "dropped")
        report.written = store.write(path, sorted(rows, key=lambda r: r["pair_id"]), "pairs")  # last: the marker
        log.info("select: %d candidates, %d pairs", len(candidates), len(rows))
    made = store.read(path, "pairs", ["mined_by", "negative_image_ids"]).to_pydict()
    report.new = report.done = len(made["mined_by"])
    for reason in store.read_dropped("select", batch).column("reason").to_pylist():
        report.drop(reason)
    for encoder in encoders:
        report.figures[f"pairs_{encoder}"] = float(sum(encoder in m for m in made["mined_by"]))
    if made["mined_by"]:
        report.figures["negatives_mean"] = statistics.fmean(len(n) - 1 for n in made["negative_image_ids"])
    if (median := median_caption_cosine(params, store, batch)) is not None:
        report.figures["median_caption_cosine_new"] = median
    return report


def _dropped(batch: str, key: str, reason: str, detail: Mapping[str, str]) -> dict[str, str]:
    return {"stage": "select", "batch": batch, "key": key, "reason": reason, "detail": _detail(detail)}


def _dropped_table(batch: str, rows: Sequence[tuple[str, str, str]]) -> pa.Table:
    """Rows (reason, key, detail) as table `dropped`."""
    import pyarrow as pa

    columns = {name: pa.array((r[n] for r in rows), pa.string(), size=len(rows)) for n, name in enumerate(("reason", "key", "detail"))}
    return pa.table({"stage": pa.repeat(pa.scalar("select"), len(rows)), "batch": pa.repeat(pa.scalar(batch), len(rows)), **columns})
