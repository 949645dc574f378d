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

Takedown (tasks/fingerprints/takedown.py): an earlier pair of a picture that the ledger names goes, in its own file; its query takes the best of all
that was ever mined for it, as a pair of this batch, and a place as negative goes to the next one retrieved.

The pure parts: tasks/select/candidates.py (the table and its order), tasks/select/quotas.py, tasks/select/negatives.py; pictures are numbers there (tasks/store/id_order.py).

Reasons: over_quota, copy_of_query, taken_down (a pair), near_duplicate_negative (a proposed negative; its pair may well be kept).
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.config import Params
from tasks.errors import DataError
from tasks.fingerprints.takedown import REASON, rows_naming, taken_down
from tasks.knn.exact import exact_similarity
from tasks.names import batch_of
from tasks.records import StageReport
from tasks.select.candidates import ABSENT, AT_ONCE, ENCODERS, Candidates, Mined, band_of, in_order, over_bands, unite, with_merged_ranks
from tasks.select.negatives import Negatives, Retrieved, Vectors, copy_limits, hard_negatives, without_copies
from tasks.select.quotas import QUOTAS, within_quotas
from tasks.store import Store
from tasks.store.id_order import numbered, numbers_in
from tasks.store.store import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
TORCH_PAIRS = 20_000  # from so many on converting their negatives' float16 by numpy costs more than loading torch, which is twelve times as fast


def preferred(c: Candidates, params: Params) -> np.ndarray:
    """Candidates' numbers as `select.bands` wants them: best agreement first, or drawn over the bands of each query's window."""
    config, seed = params.select, params.open_run.seed
    if not config.bands:
        return in_order(c, seed, config.agreement)
    windows = {str(e): (w.low, w.high) for e, w in params.mine.windows.items()}
    return over_bands(c, seed, config.bands, band_of(c, len(config.bands), by=config.bands_by, neighbours=params.mine.neighbours, windows=windows))


def with_negatives(row: Mapping[str, Any], proposed: Sequence[tuple[str, float]], gone: Set[str]) -> dict[str, Any]:
    """A pair whose negatives that are gone have given their places to the nearest proposed ones; the rest stay, in order, and those stand last."""
    kept = [(i, s) for i, s in zip(row["negative_image_ids"], row["negative_similarity"], strict=True) if i not in gone]
    there = {i for i, _ in kept}
    kept += [(i, s) for i, s in proposed if i not in there and i not in gone][: len(row["negative_image_ids"]) - len(kept)]
    return {**row, "negative_image_ids": [i for i, _ in kept], "negative_similarity": [s for _, s in kept]}


def pair_table(c: Candidates, batch: str, similarities: np.ndarray, negatives: Negatives) -> pa.Table:
    """Rows of table `pairs`, by pair id.

    Args:
        c: the pairs.
        batch: the run's.
        similarities: (m, 3) float64, of query and target; NaN where an encoder has no vector for one of them.
        negatives: of the pairs.
    """
    import pyarrow as pa

    rows = np.argsort(c.pair_ids)
    place = np.empty(len(c), np.int64)
    place[rows] = np.arange(len(c))
    order = np.argsort(place[negatives.pairs], kind="stable")
    of, images, scores = place[negatives.pairs][order], negatives.images[order], negatives.similarities[order]
    c, similarities = c.take(rows), similarities[rows]
    ends = np.cumsum([0, *(np.bincount(of, minlength=len(c)) + 1)])  # negative 0 is the query
    first = np.zeros(ends[-1], bool)
    first[ends[:-1]] = True
    negative_images, negative_scores = np.empty(ends[-1], np.int64), np.empty(ends[-1])
    negative_images[first], negative_images[~first] = c.queries, images
    negative_scores[first], negative_scores[~first] = similarities[np.arange(len(c)), c.mined_by.argmax(axis=1)], scores
    who = np.nonzero(c.mined_by)
    offsets = pa.array(ends, pa.int32())
    return pa.table(
        {
            "pair_id": ascii_column(c.pair_ids),
            "batch": pa.repeat(pa.scalar(batch), len(c)),
            "query_image_id": c.names.take(pa.array(c.queries)),
            "target_image_id": c.names.take(pa.array(c.targets)),
            "mined_by": pa.ListArray.from_arrays(pa.array(np.cumsum([0, *c.mined_by.sum(axis=1)]), pa.int32()), pa.array(ENCODERS).take(pa.array(who[1]))),
            **{f"similarity_{e}": _or_null(similarities[:, n]) for n, e in enumerate(ENCODERS)},
            "rank": pa.array(c.ranks.min(axis=1, initial=ABSENT), pa.int32()),
            "negative_image_ids": pa.ListArray.from_arrays(offsets, c.names.take(pa.array(negative_images))),
            "negative_similarity": pa.ListArray.from_arrays(offsets, _or_null(negative_scores)),
        }
    )


def _or_null(values: np.ndarray) -> pa.Array:
    """float64 as float32, NaN as null."""
    import pyarrow as pa

    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def ascii_column(values: np.ndarray) -> pa.Array:
    """(n,) ASCII of one width as strings."""
    import pyarrow as pa

    kind = pa.binary(values.dtype.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]).cast(pa.binary()).cast(pa.string())


# --- the stage --------------------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """What the stage reads of table `neighbours`.

    Attributes:
        names: (p) strings, rising: every picture that the rows name.
        candidates: encoder -> this batch's, ranked among all that was mined for their queries, and those of queries that lost a pair.
        mined: encoder -> all rows of any batch whose query the candidates name, ranked as their own batch did.
        counts: encoder -> this batch's candidates, a count.
    """

    names: pa.Array
    candidates: dict[str, Mined]
    mined: dict[str, Mined]
    counts: dict[str, int]


def _read_mined(store: Store, paths: Path | Iterable[Path]) -> pa.Table:
    """Rows of table `neighbours`; queries, which repeat, as a dictionary."""
    return store.read(paths, "neighbours", ["query_image_id", "target_image_id", "similarity", "rank"], encoded=["query_image_id"])


def _neighbour_files(store: Store, encoder: str, batch: str) -> tuple[list[Path], list[Path]]:
    """An encoder's files of this batch, and the others."""
    files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
    of_batch = [f for f in files if f.stem.rpartition("-")[0] == batch]
    if not of_batch:
        raise DataError(f"select: no candidates of batch {batch} in data/neighbours/{encoder}; run `python -m tasks mine {encoder}` first")
    return of_batch, [f for f in files if f not in of_batch]


def _read_candidates(store: Store, encoders: Sequence[str], batch: str, neighbours: int, lost: Set[str]) -> _Read:
    """Candidates of this batch, and what was mined for the pictures that they name; of earlier files, each read once (twice after a takedown), no more.

    Args:
        lost: queries that lost a pair to a takedown: all that was ever mined for them are candidates once more.
    """
    import pyarrow as pa

    tables: list[tuple[pa.Table, pa.Table, pa.Table]] = []  # of each encoder: this batch's rows, earlier ones, those of lost queries
    for encoder in encoders:
        of_batch, before = _neighbour_files(store, encoder, batch)
        brought = _read_mined(store, of_batch)
        of_lost = [_rows_of(_read_mined(store, p), pa.array(lost, pa.string())) for p in (*before, *of_batch) if lost]
        named = [t.column(c) for t in (brought, *of_lost) for c in ("query_image_id", "target_image_id") if before]
        ids = numbered(named)[0]
        older = [_rows_of(_read_mined(store, path), ids) for path in before]
        none = brought.slice(0, 0)
        tables.append((brought, pa.concat_tables([none, *older]), pa.concat_tables([none, *of_lost])))
    names, numbers = numbered([t.column(c) for three in tables for t in three for c in ("query_image_id", "target_image_id")])
    out = _Read(names, {}, {}, {})
    for n, (encoder, three) in enumerate(zip(encoders, tables, strict=True)):
        new, earlier, again = (_mined(table, *numbers[6 * n + 2 * k : 6 * n + 2 * k + 2]) for k, table in enumerate(three))
        out.mined[encoder] = new.with_(earlier)
        if len(earlier.queries):
            ranked = with_merged_ranks(_reaching(new, earlier, neighbours, len(names)), earlier, neighbours)
        else:  # as they were mined: by similarities of which the table holds 32 bits
            ranked = new.take(new.ranks < neighbours)
        out.counts[encoder] = len(ranked.queries)
        out.candidates[encoder] = ranked.with_(with_merged_ranks(again, again.take(np.zeros(0, np.int64)), neighbours))
    return out


def _mined(table: pa.Table, queries: np.ndarray, targets: np.ndarray) -> Mined:
    """Rows of table `neighbours` whose pictures are numbers."""
    return Mined(queries, targets, table.column("similarity").to_numpy(), table.column("rank").to_numpy())


def _reaching(new: Mined, earlier: Mined, neighbours: int, count: int) -> Mined:
    """Those of this batch's rows that may be among their query's k nearest: a query that had k in some batch keeps nothing below the k-th of them."""
    floors = np.full(count, -2, np.float32)
    last = earlier.ranks == neighbours - 1
    np.maximum.at(floors, earlier.queries[last], earlier.similarities[last])
    return new.take(new.similarities >= floors[new.queries])


def _rows_of(table: pa.Table, queries: pa.Array) -> pa.Table:
    """Rows of table `neighbours`, as `_read_mined` gives it, whose query is one of some."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = table.column("query_image_id").chunks
    names = pa.concat_arrays([pa.array([], pa.string()), *(c.dictionary for c in chunks)])
    is_asked = pc.is_in(names, value_set=queries).to_numpy(zero_copy_only=False)  # once a table: each call makes a hash table of the queries
    starts = np.cumsum([0, *(len(c.dictionary) for c in chunks)])
    found = [pa.array(is_asked[start:][c.indices.to_numpy()]) for start, c in zip(starts.tolist(), chunks, strict=False)]
    return table.filter(pa.chunked_array(found, pa.bool_()))


def _read_sources(store: Store, names: pa.Array) -> np.ndarray:
    """The source of each picture (p,), a number from 0."""
    rows = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    sources = {i: uri.partition(":")[0] for i, uri in zip(rows["image_id"], rows["source_uri"], strict=True)}
    numbers = {s: n for n, s in enumerate(sorted({"", *sources.values()}))}
    return np.array([numbers[sources.get(i, "")] for i in names.to_pylist()], np.int64)


def _read_published(store: Store, batch: str, c: Candidates) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """How many pairs earlier batches have, and queries and targets of those that share a picture with a candidate, places in `c.names` or -1; no
    other counts for a quota."""
    import pyarrow as pa

    files = [f for f in store.table_files("pairs") if f.stem != batch]
    pairs = store.read(files, "pairs", ["query_image_id", "target_image_id"])
    is_named = np.zeros(len(c.names) + 1, bool)
    is_named[c.queries] = is_named[c.targets] = True
    named = np.append(np.flatnonzero(is_named), -1)
    names = c.names.take(pa.array(named[:-1]))
    queries, targets = (named[numbers_in(pairs.column(end), names)] for end in ("query_image_id", "target_image_id"))
    near = (queries >= 0) | (targets >= 0)
    return pairs.num_rows, (queries[near], targets[near])


def _is_in(names: pa.Array, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(p,) bool: the pictures that are among some."""
    import pyarrow.compute as pc

    return np.asarray(pc.is_in(names, value_set=ids).to_numpy(zero_copy_only=False))


def _withdraw_pairs(params: Params, store: Store, batch: str, encoders: Sequence[str], gone: Set[str]) -> None:
    """Drop the pairs of pictures that are taken down, and fill their places as negative from what the pair's encoders retrieved.

    What goes is noted first (reason taken_down, one row a pair), then the files are written anew.
    """
    files = store.table_files("pairs")
    noted = {r["key"]: r for r in store.read([p for p in [_taken_path(store, batch)] if p.exists()], "dropped").to_pylist()}
    found = {path: [r for r in store.read(path, "pairs").to_pylist() if gone & _pictures_of(r)] for path in files}
    for row in (r for rows in found.values() for r in rows):
        if gone & {row["query_image_id"], row["target_image_id"]}:
            detail = json.dumps({"query": row["query_image_id"], "target": row["target_image_id"]})
            noted[row["pair_id"]] = {"stage": "select", "batch": batch, "key": row["pair_id"], "reason": REASON, "detail": detail}
    if noted:
        store.write(_taken_path(store, batch), [noted[k] for k in sorted(noted)], "dropped")
    kept = [r for rows in found.values() for r in rows if not gone & {r["query_image_id"], r["target_image_id"]}]
    if not any(found.values()):
        return
    proposed = _proposed_for(params, store, encoders, kept, gone)
    for path, some in found.items():
        if some:
            rows = [r for r in store.read(path, "pairs").to_pylist() if not gone & {r["query_image_id"], r["target_image_id"]}]
            store.write(path, [with_negatives(r, proposed[r["pair_id"]], gone) if gone & _pictures_of(r) else r for r in rows], "pairs")
    log.info("select: %d pairs taken down", len(noted))


def _proposed_for(
    params: Params, store: Store, encoders: Sequence[str], pairs: Sequence[Mapping[str, Any]], gone: Set[str]
) -> dict[str, list[tuple[str, float]]]:
    """pair id -> every picture that may be its negative and how near to the target it is, the nearest first.

    Args:
        pairs: rows of table `pairs`.
        gone: pictures that are none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = [pa.chunked_array([pa.array((r[c] for r in pairs), pa.string(), size=len(pairs))]) for c in ("query_image_id", "target_image_id")]
    asked = numbered(ends)[0]
    tables = []
    for encoder in encoders:
        files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
        some = [_rows_of(_read_mined(store, p), asked) for p in files]
        some = [t.filter(pc.invert(rows_naming(t, gone, ["target_image_id"]))) for t in some]
        tables.append(pa.concat_tables(some) if some else _read_mined(store, []))
    names, numbers = numbered([*ends, *(t.column(c) for t in tables for c in ("query_image_id", "target_image_id"))])
    retrieved = {}
    for n, (encoder, table) in enumerate(zip(encoders, tables, strict=True)):
        retrieved[encoder] = Retrieved(_mined(table, *numbers[2 * n + 2 : 2 * n + 4]), len(names))
    mined_by = np.array([[e in r["mined_by"] for e in ENCODERS] for r in pairs], bool).reshape(-1, len(ENCODERS))
    ranks = np.where(mined_by, np.int32(0), np.int32(ABSENT))
    c = Candidates(names, numbers[0], numbers[1], ranks, ranks)
    found = _negatives_of(c, retrieved, _read_vectors(store, encoders, names), params, None)
    out: dict[str, list[tuple[str, float]]] = {r["pair_id"]: [] for r in pairs}
    for pair, image, similarity in zip(found.pairs.tolist(), names.take(pa.array(found.images)).to_pylist(), found.similarities.tolist(), strict=True):
        out[pairs[pair]["pair_id"]].append((image, similarity))
    return out


def _negatives_of(c: Candidates, retrieved: Mapping[str, Retrieved], vectors: Vectors, params: Params, count: int | None) -> Negatives:
    """`hard_negatives` as the parameters say."""
    config, limits = params.select, copy_limits(params)
    return hard_negatives(c, retrieved, vectors, limits=limits, count=count, margin=config.negative_margin, query_copies=not config.drop_query_copies)


def _read_vectors(store: Store, encoders: Sequence[str], names: pa.Array, wanted: np.ndarray | None = None) -> Vectors:
    """The stored vectors of some pictures.

    Args:
        names: (p) strings, rising.
        wanted: (p,) bool, those that are asked for; all when absent.
    """
    import pyarrow as pa

    some = names if wanted is None else names.filter(pa.array(wanted))
    return Vectors(names, {e: store.read_wanted(e, some) for e in encoders})


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
    import pyarrow as pa
    import pyarrow.compute as pc

    config, batch = params.select, batch_of(params)
    path = store.table_path("pairs", batch)
    encoders: list[str] = [e for e in ENCODERS if e in params.embed.encoders]
    gone = taken_down(params, store)
    if gone:
        _withdraw_pairs(params, store, batch, encoders, gone)
    report = StageReport("select")
    lost = _read_lost(store, batch, gone) if gone else set()
    read = _read_candidates(store, encoders, batch, params.mine.neighbours, lost)
    brought = store.read_table("images", ["image_id"], batch).column("image_id")
    if len(brought) and encoders:  # few candidates a picture: the encoder's window does not fit, or the encoder
        yields = {encoder: read.counts[encoder] / len(brought) for encoder in encoders}
        report.figures |= {f"yield_{encoder}": y for encoder, y in yields.items()} | {"encoder_yield_lowest": min(yields.values())}
        log.info("select: candidates a new picture: %s", ", ".join(f"{e} {y:.2f}" for e, y in yields.items()))
    c = unite(read.names, read.candidates, with_similarities=config.bands_by == "similarity")
    read.candidates.clear()
    is_lost = _is_in(read.names, pa.array(lost, pa.string()))
    is_new = _is_in(read.names, brought) | is_lost
    if gone:  # what came up instead of a neighbour is for those who lost a pair, and for who comes later
        c = c.take(is_new[c.queries] | (is_new & ~is_lost)[c.targets])
    report.read = len(c)
    report.reused, published = _read_published(store, batch, c)
    if not path.exists():
        left: list[tuple[str, Candidates, np.ndarray | None]] = []  # reason, pairs, which quota
        if config.drop_query_copies:
            is_named = np.zeros(len(read.names), bool)
            is_named[c.queries] = is_named[c.targets] = True
            good = without_copies(c, _read_vectors(store, encoders, read.names, is_named), copy_limits(params))
            left.append(("copy_of_query", c.take(~good), None))
            c = c.take(good)
        c = c.take(preferred(c, params))
        chosen = within_quotas(c, published, config, is_new, _read_sources(store, read.names) if config.pairs_per_source is not None else None)
        left.append(("over_quota", c.take(chosen.left), chosen.reasons))
        taken = chosen.taken
        is_end = np.zeros(len(read.names), bool)
        is_end[taken.queries] = is_end[taken.targets] = True
        mined = {e: m.take(is_end[m.queries]) for e, m in read.mined.items()}
        read.mined.clear()
        is_wanted = is_end.copy()
        for rows in mined.values():
            is_wanted[rows.targets] = True
        if len(taken) > TORCH_PAIRS:
            torch = importlib.import_module("torch")
            torch.set_num_threads(params.open_run.threads)
        vectors = _read_vectors(store, encoders, read.names, is_wanted)
        negatives = _negatives_of(taken, {e: Retrieved(rows, len(read.names)) for e, rows in mined.items()}, vectors, params, config.negatives)
        similarities = vectors.similarities(taken.queries, taken.targets)
        _write_dropped(store, batch, left, taken, negatives)
        report.written = store.write(path, pair_table(taken, batch, similarities, negatives), "pairs")  # last: the marker
        log.info("select: %d candidates, %d pairs", report.read, report.written)
    made = store.read(path, "pairs", ["mined_by", "negative_image_ids"])
    report.new = report.done = made.num_rows
    for count in pc.value_counts(store.read_dropped("select", batch, ["reason"]).column("reason")).to_pylist():
        report.drop(count["values"], count["counts"])
    mined_by = pc.list_flatten(made.column("mined_by"))
    for encoder in encoders:
        report.figures[f"pairs_{encoder}"] = float(pc.sum(pc.equal(mined_by, encoder)).as_py() or 0)
    if made.num_rows:
        report.figures["negatives_mean"] = pc.sum(pc.list_value_length(made.column("negative_image_ids"))).as_py() / made.num_rows - 1
    if (median := median_caption_cosine(params, store, batch)) is not None:
        report.figures["median_caption_cosine_new"] = median
    return report


def _write_dropped(store: Store, batch: str, left: Sequence[tuple[str, Candidates, np.ndarray | None]], pairs: Candidates, negatives: Negatives) -> None:
    """Write what was left out, by reason, pair id and detail: some thousand rows in memory as text at a time.

    Args:
        left: reason, pairs, which of QUOTAS was full (where that is the reason).
        pairs: those that were taken.
        negatives: theirs; the copies among them.
    """
    import pyarrow as pa

    writer = TableWriter(store.dropped_path("select", batch), "dropped")

    def add(reason: str, keys: np.ndarray, details: list[str]) -> None:
        constant = {name: pa.repeat(pa.scalar(value), len(keys)) for name, value in (("stage", "select"), ("batch", batch), ("reason", reason))}
        writer.add_table(pa.table({**constant, "key": ascii_column(keys), "detail": pa.array(details, pa.string())}))

    def add_pairs(reason: str, c: Candidates, quotas: np.ndarray | None) -> None:
        order = np.argsort(c.pair_ids)
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            queries, targets = ([quoted(i) for i in c.names.take(pa.array(ends[rows])).to_pylist()] for ends in (c.queries, c.targets))
            which = [""] * len(rows) if quotas is None else [f'"quota": "{QUOTAS[q]}", ' for q in quotas[rows].tolist()]
            details = [f'{{"query": {q}, {quota}"target": {t}}}' for q, quota, t in zip(queries, which, targets, strict=True)]
            add(reason, c.pair_ids[rows], details)

    try:
        for reason, c, quotas in sorted(left, key=lambda x: x[0]):
            if reason > "near_duplicate_negative":
                break
            add_pairs(reason, c, quotas)
        images = pairs.names.take(pa.array(negatives.copies)).to_pylist()
        copies = sorted(zip(pairs.pair_ids[negatives.copy_pairs].tolist(), (f'{{"negative": {quoted(i)}}}' for i in images), strict=True))
        add("near_duplicate_negative", np.array([key for key, _ in copies], "S32"), [detail for _, detail in copies])
        for reason, c, quotas in sorted(left, key=lambda x: x[0]):
            if reason > "near_duplicate_negative":
                add_pairs(reason, c, quotas)
        writer.close()
    except BaseException:
        writer.discard()
        raise
