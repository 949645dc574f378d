"""Select pairs: the encoders' candidates united, held to quotas, each with hard negatives, the query image first.

Reads data/neighbours, data/embeddings, data/images, data/captions, the earlier batches' data/pairs; writes
data/pairs/<batch>.parquet (the marker) and data/dropped/select/<batch>.parquet. Source: MegaPairs, arXiv:2412.14475,
section 3.1 and table 4 (the query image as a negative is the decisive one).

Order: candidates stand in tiers of agreement (the sum of 1 / (1 + rank) over the encoders that mined the pair, and over
those that mined it the other way round; four tiers to a factor of two); within a tier a seeded hash of the pair's id
decides, so neither the input's order nor chance shows. A rank is a place among all that was ever mined for the query,
not among this week's: an old image takes a new target where that is among its `mine.neighbours` nearest, as one run
over everything would.

With `select.bands` a query's pairs are drawn over its window instead: the window falls into equal bands (by rank, or by
cosine of the encoder that ranks the pair best), a query visits them in a seeded order of its own, each band first with
its weight's chance, and takes one candidate from each in turn - within a band what more encoders mined, then by the
seeded hash, however near it is. All queries' first draws stand before all second ones, so a run's limit cuts no band
short.

Quotas count what is published already. A pair is charged to an image that this batch brings - its query, or where that
is old its target - and an image brings at most `pairs_per_query` pairs, so n images never have more than n x
pairs_per_query, however they came. Without that a second batch of the sample world added 4.3 pairs for each new image,
twice what a query may start: every old image with room left took new targets (docs/decisions/0012).

Negatives come from what the same encoders retrieved for the query and for the target, the target's nearest first; one
that any encoder holds for a copy of the target is none. On request: neither is a copy of the query, and none lies
nearer to the target than a share of the pair's own distance; a pair brings its other direction along; an encoder, a
source has a quota of its own (tasks/config.py).

Takedown (tasks/fingerprints/takedown.py): an earlier pair of an image that the ledger names goes, in its own file; its
query takes the best of all that was ever mined for it, as a pair of this batch, and a place as negative goes to the
next one retrieved.

The pure parts: tasks/select/candidates.py (the table and its order), tasks/select/quotas.py, tasks/select/negatives.py;
images are numbers there (tasks/store/id_order.py).

Reasons: over_quota, copy_of_query, taken_down (a pair), near_duplicate_negative (a proposed negative; its pair may well
be kept).
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.fingerprints.takedown import taken_down
from tasks.knn.exact import exact_similarity
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.select.candidates import Candidates, band_of, in_order, over_bands, unite
from tasks.select.negatives import Retrieved, copy_limits, without_copies
from tasks.select.pair_table import _write_dropped, pair_table
from tasks.select.quotas import within_quotas
from tasks.select.read_neighbours import _negatives_of, _read_candidates, _read_vectors
from tasks.select.withdraw import _read_lost, _withdraw_pairs
from tasks.store import Store
from tasks.store.id_order import index_in_ids

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
# from so many on converting their negatives' float16 by numpy costs more than loading torch, which is twelve times as
# fast
TORCH_PAIRS = 20_000


def preferred(c: Candidates, params: Params) -> np.ndarray:
    """Candidates' numbers as `select.bands` wants them: best agreement first, or drawn over the bands of each query's
    window.
    """
    config, seed = params.select, params.open_run.seed
    if not config.bands:
        return in_order(c, seed, config.agreement)
    windows = {str(e): (w.low, w.high) for e, w in params.mine.windows.items()}
    return over_bands(
        c,
        seed,
        config.bands,
        band_of(c, len(config.bands), by=config.bands_by, neighbours=params.mine.neighbours, windows=windows),
    )


# --- the stage --------------------------------------------------------------------------------------------------------


def _read_sources(store: Store, names: pa.Array) -> np.ndarray:
    """The source of each image (p,), a number from 0."""
    rows = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    sources = {i: uri.partition(":")[0] for i, uri in zip(rows["image_id"], rows["source_uri"], strict=True)}
    numbers = {s: n for n, s in enumerate(sorted({"", *sources.values()}))}
    return np.array([numbers[sources.get(i, "")] for i in names.to_pylist()], np.int64)


def _read_published(store: Store, batch: str, c: Candidates) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """How many pairs earlier batches have, and queries and targets of those that share an image with a candidate,
    places in `c.names` or -1; no other counts for a quota."""
    import pyarrow as pa

    files = [f for f in store.table_files("pairs") if f.stem != batch]
    pairs = store.read(files, "pairs", ["query_image_id", "target_image_id"])
    is_named = np.zeros(len(c.names) + 1, bool)
    is_named[c.queries] = is_named[c.targets] = True
    named = np.append(np.flatnonzero(is_named), -1)
    names = c.names.take(pa.array(named[:-1]))
    queries, targets = (named[index_in_ids(pairs.column(end), names)] for end in ("query_image_id", "target_image_id"))
    near = (queries >= 0) | (targets >= 0)
    return pairs.num_rows, (queries[near], targets[near])


def _is_in(names: pa.Array, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(p,) bool: the images that are among some."""
    import pyarrow.compute as pc

    return np.asarray(pc.is_in(names, value_set=ids).to_numpy(zero_copy_only=False))


def median_caption_cosine(params: Params, store: Store, batch: str) -> float | None:
    """Median cosine of this batch's images and their captions; None unless one model embeds both."""
    encoders = params.embed.encoders
    if (
        "semantic" not in encoders
        or "caption" not in encoders
        or encoders["semantic"].model != encoders["caption"].model
    ):
        return None
    tables = {}
    for encoder in ("semantic", "caption"):
        shards = [f"{s}.tar" for s in store.embedded_shards(encoder) if s.rpartition("-")[0] == batch]
        ids, vectors, _ = store.read_embeddings(encoder, shards)
        tables[encoder] = dict(zip(ids, vectors, strict=True))
    both = sorted(set(tables["semantic"]) & set(tables["caption"]))
    if not both or len(tables["semantic"][both[0]]) != len(tables["caption"][both[0]]):
        return None
    return float(
        np.median(
            exact_similarity(
                np.stack([tables["semantic"][i] for i in both]), np.stack([tables["caption"][i] for i in both])
            )
        )
    )


def run(params: Params, store: Store) -> StageReport:
    """Select this batch's pairs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    config, batch = params.select, batch_name(params)
    path = store.table_path("pairs", batch)
    encoders: list[str] = [e for e in ENCODER_ROLES if e in params.embed.encoders]
    gone = taken_down(params, store)
    if gone:
        _withdraw_pairs(params, store, batch, encoders, gone)
    report = StageReport("select")
    lost = _read_lost(store, batch, gone) if gone else set()
    read = _read_candidates(store, encoders, batch, params.mine.neighbours, lost)
    brought = store.read_table("images", ["image_id"], batch).column("image_id")
    if len(brought) and encoders:  # few candidates an image: the encoder's window does not fit, or the encoder
        yields = {encoder: read.counts[encoder] / len(brought) for encoder in encoders}
        report.figures |= {f"yield_{encoder}": y for encoder, y in yields.items()} | {
            "encoder_yield_lowest": min(yields.values())
        }
        log.info("select: candidates a new image: %s", ", ".join(f"{e} {y:.2f}" for e, y in yields.items()))
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
        chosen = within_quotas(
            c,
            published,
            config,
            is_new,
            _read_sources(store, read.names) if config.pairs_per_source is not None else None,
        )
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
        negatives = _negatives_of(
            taken, {e: Retrieved(rows, len(read.names)) for e, rows in mined.items()}, vectors, params, config.negatives
        )
        similarities = vectors.similarities(taken.queries, taken.targets)
        _write_dropped(store, batch, left, taken, negatives)
        # last: the marker
        report.written = store.write(path, pair_table(taken, batch, similarities, negatives), "pairs")
        log.info("select: %d candidates, %d pairs", report.read, report.written)
    made = store.read(path, "pairs", ["mined_by", "negative_image_ids"])
    report.new = report.done = made.num_rows
    for count in pc.value_counts(store.read_dropped("select", batch, ["reason"]).column("reason")).to_pylist():
        report.drop(count["values"], count["counts"])
    mined_by = pc.list_flatten(made.column("mined_by"))
    for encoder in encoders:
        report.figures[f"pairs_{encoder}"] = float(pc.sum(pc.equal(mined_by, encoder)).as_py() or 0)
    if made.num_rows:
        report.figures["negatives_mean"] = (
            pc.sum(pc.list_value_length(made.column("negative_image_ids"))).as_py() / made.num_rows - 1
        )
    if (median := median_caption_cosine(params, store, batch)) is not None:
        report.figures["median_caption_cosine_new"] = median
    return report
