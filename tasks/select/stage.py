"""Select pairs: the encoders' candidates merged, limited by quotas, each with hard negatives, the query image first.

Reads data/neighbours, data/embeddings, data/images, data/captions, the earlier batches' data/pairs; writes
data/pairs/<batch>.parquet (the completion marker) and data/dropped/select/<batch>.parquet. Parameters: `select`,
`mine.neighbours`, `mine.windows`. Source: MegaPairs, arXiv:2412.14475, section 3.1 and table 4 (the query image as a
negative is the decisive one).

Order: candidates are sorted by tiers of agreement (the sum of 1 / (1 + rank) over the encoders that mined the pair, and
over those that mined its other direction; four tiers to a factor of two); within a tier a seeded hash of the pair's id
decides, so the order of the input does not show. A rank is among all that was ever mined for the query, not among this
batch's rows: an old image takes a new target where that is among its `mine.neighbours` nearest, as one run over
everything would.

With `select.bands` a query's pairs are drawn over its window instead: the window is divided into equal bands (by rank,
or by cosine under the encoder that ranks the pair best); a query visits them in a seeded order of its own, each band
first with the chance of its weight, and takes one candidate from each in turn. Within a band what more encoders mined
comes first, then the seeded hash decides, however near a candidate is. All queries' first draws come before all second
ones, so a run's limit cuts no band short. Both orders: tasks/select/order.py.

Quotas (tasks/select/quotas.py) count what is published already. A pair counts against an image of this batch (its
query, or its target where the query is old), and an image has at most `pairs_per_query` such pairs, so n images never
have more than n x pairs_per_query pairs, in whatever batches they came. Without that rule a second batch of the sample
world added 4.3 pairs for each new image, twice what a query may start: every old image with room left took new targets
(docs/decisions/0012).

Negatives (tasks/select/negatives.py) come from what the same encoders retrieved for the query and for the target, the
target's nearest first; an image that is a copy of the target under any encoder is left out. On request: copies of the
query are left out, and images nearer to the target than a multiple of the pair's own distance; a pair brings its other
direction along; an encoder or a source has a quota of its own (tasks/config/pairs.py).

Takedown (tasks/select/withdraw.py): an earlier pair of an image on the takedown list is removed from its file; its
query takes the best of all that was ever mined for it, as a pair of this batch, and a place as negative goes to the
next image retrieved.

Drop reasons: over_quota, copy_of_query, taken_down (a pair), near_duplicate_negative (a proposed negative; its pair may
well stay).
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.fingerprints.takedown import taken_down
from tasks.knn.exact import exact_similarity
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.select.candidates import Candidates, MinedRows, merge_candidates
from tasks.select.negatives import Negatives, Retrieved, copy_limits, hard_negatives, is_no_copy, negative_rules
from tasks.select.order import preference_order
from tasks.select.pair_table import DroppedPairs, pair_table, write_dropped
from tasks.select.quotas import within_quotas
from tasks.select.read_neighbours import ENDS, MinedTables, read_candidates, read_vectors
from tasks.select.withdraw import read_lost_queries, withdraw_pairs
from tasks.store import Store
from tasks.store.id_order import index_in_ids

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
# from so many on, converting their negatives' float16 by numpy costs more than loading torch, which is twelve times as
# fast
TORCH_PAIRS = 20_000


def _read_sources(store: Store, image_ids: pa.Array) -> np.ndarray:
    """The source of each image, a number from 0; (p,) int64."""
    rows = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    sources = {i: uri.partition(":")[0] for i, uri in zip(rows["image_id"], rows["source_uri"], strict=True)}
    numbers = {s: n for n, s in enumerate(sorted({"", *sources.values()}))}
    return np.array([numbers[sources.get(i, "")] for i in image_ids.to_pylist()], np.int64)


def _is_end(c: Candidates) -> np.ndarray:
    """(p,) bool: images that are query or target of a pair."""
    result = np.zeros(len(c.image_ids), bool)
    result[c.queries] = result[c.targets] = True
    return result


def _read_published(store: Store, batch: str, c: Candidates) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """Earlier batches' pairs: their count, and queries and targets of those that share an image with a candidate, as
    indices into `c.image_ids` or -1. No other pair counts against a quota.
    """
    import pyarrow as pa

    files = [f for f in store.table_files("pairs") if f.stem != batch]
    pairs = store.read(files, "pairs", list(ENDS))
    ends = np.append(np.flatnonzero(_is_end(c)), -1)
    ids = c.image_ids.take(pa.array(ends[:-1]))
    queries, targets = (ends[index_in_ids(pairs.column(end), ids)] for end in ENDS)
    is_shared = (queries >= 0) | (targets >= 0)
    return pairs.num_rows, (queries[is_shared], targets[is_shared])


def _is_in(image_ids: pa.Array, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(p,) bool: the images that are among some."""
    import pyarrow.compute as pc

    return np.asarray(pc.is_in(image_ids, value_set=ids).to_numpy(zero_copy_only=False))


def median_caption_cosine(params: Params, store: Store, batch: str) -> float | None:
    """Median cosine similarity of this batch's images and their captions; None unless one model embeds both."""
    encoders = params.embed.encoders
    if (
        "semantic" not in encoders
        or "caption" not in encoders
        or encoders["semantic"].model != encoders["caption"].model
    ):
        return None
    vectors = {}
    for encoder in ("semantic", "caption"):
        shards = [f"{s}.tar" for s in store.embedded_shards(encoder) if s.rpartition("-")[0] == batch]
        ids, rows, _ = store.read_embeddings(encoder, shards)
        vectors[encoder] = dict(zip(ids, rows, strict=True))
    both = sorted(set(vectors["semantic"]) & set(vectors["caption"]))
    if not both or len(vectors["semantic"][both[0]]) != len(vectors["caption"][both[0]]):
        return None
    images, captions = (np.stack([vectors[encoder][i] for i in both]) for encoder in ("semantic", "caption"))
    return float(np.median(exact_similarity(images, captions)))


@dataclass(frozen=True)
class _Batch:
    """The batch that the run selects pairs for.

    Attributes:
        name: the batch's.
        encoders: roles whose neighbours and vectors are read.
        new_ids: ids of its images.
        lost: queries that lost a pair to its takedown.
        has_takedown: whether a takedown list is configured that names an id.
    """

    name: str
    encoders: list[str]
    new_ids: pa.ChunkedArray
    lost: set[str]
    has_takedown: bool


def _yields(batch: _Batch, counts: dict[str, int]) -> dict[str, float]:
    """Figures: candidates for each new image, by encoder; few mean that the window or the encoder does not fit."""
    if not len(batch.new_ids) or not batch.encoders:
        return {}
    yields = {encoder: counts[encoder] / len(batch.new_ids) for encoder in batch.encoders}
    log.info("select: candidates a new image: %s", ", ".join(f"{e} {y:.2f}" for e, y in yields.items()))
    return {f"yield_{e}": y for e, y in yields.items()} | {"encoder_yield_lowest": min(yields.values())}


def _merge(batch: _Batch, mined: MinedTables, with_similarities: bool) -> tuple[Candidates, np.ndarray]:
    """The candidates for this batch, and which images count as new: those of the batch, and queries that lost a pair.

    The encoders' own tables are released.
    """
    import pyarrow as pa

    c = merge_candidates(mined.image_ids, mined.candidates, with_similarities=with_similarities)
    mined.candidates.clear()
    is_lost = _is_in(mined.image_ids, pa.array(batch.lost, pa.string()))
    is_new = _is_in(mined.image_ids, batch.new_ids) | is_lost
    if batch.has_takedown:  # what ranks next in place of a neighbour is for queries that lost a pair, and later images
        c = c.take(is_new[c.queries] | (is_new & ~is_lost)[c.targets])
    return c, is_new


def _select_pairs(params: Params, store: Store, batch: _Batch, mined: MinedTables, report: StageReport) -> None:
    """Select this batch's pairs and write them, with what was dropped; a batch whose file exists is only counted."""
    config = params.select
    c, is_new = _merge(batch, mined, with_similarities=config.bands_by == "similarity")
    report.read = len(c)
    report.reused, published = _read_published(store, batch.name, c)
    path = store.table_path("pairs", batch.name)
    if path.exists():
        return
    dropped: list[DroppedPairs] = []
    if config.drop_query_copies:
        vectors = read_vectors(store, batch.encoders, mined.image_ids, _is_end(c))
        is_distinct = is_no_copy(c, vectors, copy_limits(params))
        del vectors
        dropped.append(DroppedPairs("copy_of_query", c.take(~is_distinct)))
        c = c.take(is_distinct)
    c = c.take(preference_order(c, params))
    sources = None if config.pairs_per_source is None else _read_sources(store, mined.image_ids)
    selection = within_quotas(c, published, config, is_new, sources)
    dropped.append(DroppedPairs("over_quota", c.take(selection.rejected), selection.full_quotas))
    pairs = selection.pairs
    similarities, negatives = _with_negatives(params, store, batch, pairs, mined)
    write_dropped(store, batch.name, dropped, pairs, negatives)
    # last: the completion marker
    report.written = store.write(path, pair_table(pairs, batch.name, similarities, negatives), "pairs")
    log.info("select: %d candidates, %d pairs", report.read, report.written)


def _with_negatives(
    params: Params, store: Store, batch: _Batch, pairs: Candidates, mined: MinedTables
) -> tuple[np.ndarray, Negatives]:
    """Similarities of the pairs under each encoder, (m, 3) float64, and their negatives. `mined.mined` is released."""
    is_end = _is_end(pairs)
    neighbours: dict[str, MinedRows] = {e: rows.take(is_end[rows.queries]) for e, rows in mined.mined.items()}
    mined.mined.clear()
    is_needed = is_end.copy()
    for rows in neighbours.values():
        is_needed[rows.targets] = True
    if len(pairs) > TORCH_PAIRS:
        torch = importlib.import_module("torch")
        torch.set_num_threads(params.open_run.threads)
    vectors = read_vectors(store, batch.encoders, mined.image_ids, is_needed)
    retrieved = {e: Retrieved(rows, len(mined.image_ids)) for e, rows in neighbours.items()}
    negatives = hard_negatives(pairs, retrieved, vectors, negative_rules(params, params.select.negatives))
    return vectors.similarities(pairs.queries, pairs.targets), negatives


def run(params: Params, store: Store) -> StageReport:
    """Select this batch's pairs."""
    import pyarrow.compute as pc

    name = batch_name(params)
    encoders: list[str] = [e for e in ENCODER_ROLES if e in params.embed.encoders]
    lost: set[str] = set()
    if removed := taken_down(params, store):
        withdraw_pairs(params, store, name, encoders, removed)
        lost = read_lost_queries(store, name, removed)
    mined = read_candidates(store, encoders, name, params.mine.neighbours, lost)
    new_ids = store.read_table("images", ["image_id"], name).column("image_id")
    batch = _Batch(name, encoders, new_ids, lost, bool(removed))
    report = StageReport("select", figures=_yields(batch, mined.counts))
    _select_pairs(params, store, batch, mined, report)
    pairs = store.read(store.table_path("pairs", name), "pairs", ["mined_by", "negative_image_ids"])
    report.new = report.done = pairs.num_rows
    reasons = store.read_dropped("select", name, ["reason"]).column("reason")
    for count in pc.value_counts(reasons).to_pylist():
        report.drop(count["values"], count["counts"])
    mined_by = pc.list_flatten(pairs.column("mined_by"))
    for encoder in encoders:
        report.figures[f"pairs_{encoder}"] = float(pc.sum(pc.equal(mined_by, encoder)).as_py() or 0)
    if pairs.num_rows:
        negatives = pc.sum(pc.list_value_length(pairs.column("negative_image_ids"))).as_py()
        report.figures["negatives_mean"] = negatives / pairs.num_rows - 1
    if (median := median_caption_cosine(params, store, name)) is not None:
        report.figures["median_caption_cosine_new"] = median
    return report
