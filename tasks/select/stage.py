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

Memory: candidates go through files in .run/select, a partition of the queries at a time (ranges.py, settle.py), so that
what grows with them takes about `select.memory_mib`; beside it the stage holds the id and a few numbers of each image.
The result is the same for any limit (docs/decisions/0068).

Takedown (tasks/select/withdraw.py): an earlier pair of an image on the takedown list is removed from its file; its
query takes the best of all that was ever mined for it, as a pair of this batch, and a place as negative goes to the
next image retrieved.

Same content (`select.same_content_min`, off by default): a candidate whose two images are as similar as the limit or
more under an encoder named there is left out before anything else is counted. Negatives are not touched. What earlier
batches published stays. Calibrated by `python -m tasks calibrate --same-content` (docs/decisions/0141).

Drop reasons: over_quota, copy_of_query, same_content, too_different, taken_down (a pair), near_duplicate_negative (a
proposed negative; its pair may well stay).
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import MINER_ROLES, Params
from tasks.fingerprints.takedown import taken_down, withdraw_dropped
from tasks.names import batch_name
from tasks.progress import Progress
from tasks.records import StageReport
from tasks.select.estimate import estimate_note, read_estimate
from tasks.select.figures import count_drops, count_pairs, median_caption_cosine
from tasks.select.negatives import hard_negatives, negative_rules, pair_blocks
from tasks.select.pair_table import DroppedWriter, pair_table
from tasks.select.quotas import PublishedPairs
from tasks.select.ranges import MergedOnDisk, merge_on_disk
from tasks.select.read_neighbours import ENDS, open_vectors, read_candidates
from tasks.select.settle import Rules, Settled, candidates_of_batch, settle, unpack_pairs
from tasks.select.spill import WorkingMemory
from tasks.select.withdraw import read_lost_queries, withdraw_pairs
from tasks.store import Store
from tasks.store.id_order import index_in_ids
from tasks.store.tables import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
# from so many on, converting their negatives' float16 by numpy costs more than loading torch, which is twelve times as
# fast
TORCH_PAIRS = 20_000
STRING_ROW_BYTES = 200  # of memory for a row of two ids and their indices


def _read_sources(store: Store, image_ids: pa.Array, memory: WorkingMemory) -> np.ndarray:
    """The source of each image, a number from 1, 0 where it is unknown; (p,) int64."""
    import pyarrow.compute as pc

    numbers, result = {"": 0}, np.zeros(len(image_ids), np.int64)
    files, rows = store.table_files("images"), memory.rows(STRING_ROW_BYTES)
    for table in store.iter_blocks(files, "images", ["image_id", "source_uri"], rows=rows):
        names = pc.replace_substring_regex(table.column("source_uri"), "(?s):.*", "").combine_chunks()
        names = pc.fill_null(names, "").dictionary_encode()
        of_entry = [numbers.setdefault(name, len(numbers)) for name in names.dictionary.to_pylist()]
        image = index_in_ids(table.column("image_id"), image_ids)
        sources = np.array(of_entry, np.int64)[names.indices.to_numpy()]
        result[image[image >= 0]] = sources[image >= 0]
    return result


def _read_published(store: Store, batch: str, image_ids: pa.Array, memory: WorkingMemory) -> tuple[int, PublishedPairs]:
    """Earlier batches' pairs: their count, and those that share an image with `image_ids`. No other pair counts against
    a quota.
    """
    files = [f for f in store.table_files("pairs") if f.stem != batch]
    count, published = 0, PublishedPairs(len(image_ids))
    for pairs in store.iter_blocks(files, "pairs", list(ENDS), rows=memory.rows(STRING_ROW_BYTES)):
        count += pairs.num_rows
        published.add(*(index_in_ids(pairs.column(end), image_ids) for end in ENDS))
    return count, published


def _is_in(image_ids: pa.Array, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(p,) bool: the images that are among some."""
    import pyarrow.compute as pc

    return np.asarray(pc.is_in(image_ids, value_set=ids).to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class _Batch:
    """The batch that the run selects pairs for.

    Attributes:
        name: the batch's.
        encoders: roles whose neighbours and vectors are read.
        new_ids: ids of its images.
        lost: queries that lost a pair to its takedown.
        has_takedown: whether a takedown list is configured that names an id.
        memory: for what grows with the candidates.
    """

    name: str
    encoders: list[str]
    new_ids: pa.ChunkedArray
    lost: set[str]
    has_takedown: bool
    memory: WorkingMemory


def _yields(batch: _Batch, counts: dict[str, int]) -> dict[str, float]:
    """Figures: candidates for each new image, by encoder; few mean that the window or the encoder does not fit."""
    if not len(batch.new_ids) or not batch.encoders:
        return {}
    yields = {encoder: counts[encoder] / len(batch.new_ids) for encoder in batch.encoders}
    log.info("select: candidates a new image: %s", ", ".join(f"{e} {y:.2f}" for e, y in yields.items()))
    return {f"yield_{e}": y for e, y in yields.items()} | {"encoder_yield_lowest": min(yields.values())}


@contextmanager
def _scratch_folder(store: Store) -> Iterator[Path]:
    """An empty folder for the rows of this run; what a killed run left there goes first."""
    folder = store.folder(".run", "select", "rows")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _merged(params: Params, store: Store, batch: _Batch, folder: Path) -> Iterator[tuple[MergedOnDisk, Rules]]:
    """The candidates for this batch, and what decides about them."""
    import pyarrow as pa

    mined = read_candidates(store, batch.encoders, batch.name, batch.lost, batch.memory, folder)
    config, image_ids = params.select, mined.image_ids
    merged = merge_on_disk(mined, params.mine.neighbours, folder, config.bands_by == "similarity")
    try:
        is_lost = _is_in(image_ids, pa.array(sorted(batch.lost), pa.string()))
        is_new = _is_in(image_ids, batch.new_ids) | is_lost
        sources = None if config.pairs_per_source is None else _read_sources(store, image_ids, batch.memory)
        _, published = _read_published(store, batch.name, image_ids, batch.memory)
        vectors = open_vectors(store, batch.encoders, image_ids)
        estimate = read_estimate(params, store, image_ids, vectors, folder, batch.memory)
        lost = is_lost if batch.has_takedown else None
        yield merged, Rules(params, published, vectors, is_new, lost, sources, estimate)
    finally:
        merged.close()


def _write_rows(
    params: Params, store: Store, batch: _Batch, merged: MergedOnDisk, rules: Rules, settled: Settled
) -> TableWriter:
    """Write the dropped rows, and the pairs up to the closing of their file, which marks the batch as complete."""
    if settled.pairs.total > TORCH_PAIRS:
        torch = importlib.import_module("torch")
        torch.set_num_threads(params.open_run.threads)
    limits = negative_rules(params, params.select.negatives)
    dropped = DroppedWriter(store, batch.name, merged.mined.image_ids)
    writer = TableWriter(store.table_path("pairs", batch.name), "pairs")
    try:
        for reason, of_reason in (("copy_of_query", settled.copies), ("same_content", settled.same_content)):
            for records in of_reason.iter_sorted():
                dropped.add_pairs(reason, records)
        progress = Progress("select", settled.pairs.total, "pairs")
        for records in settled.pairs.iter_sorted():
            c = unpack_pairs(merged.mined.image_ids, records)
            for block in pair_blocks(c, merged.retrieved, rules.vectors, batch.memory):
                pairs = c.take(np.arange(block.start, block.stop))
                similarities, negatives = hard_negatives(pairs, merged.retrieved, rules.vectors, limits)
                dropped.add_copies(pairs, negatives)
                estimated = rules.differences.estimate(pairs) if rules.differences else None
                writer.add_table(pair_table(pairs, batch.name, similarities, negatives, estimated))
                progress.advance(len(pairs))
        for reason, of_reason in (("over_quota", settled.over_quota), ("too_different", settled.too_different)):
            for records in of_reason.iter_sorted():
                dropped.add_pairs(reason, records)
        dropped.close()
        progress.finish()
    except BaseException:
        dropped.discard()
        writer.discard()
        raise
    return writer


@dataclass(frozen=True)
class _Summary:
    """Counts of a batch's candidates: `read`, all of them, and `counts`, encoder -> its own."""

    read: int
    counts: dict[str, int]


def _summary_path(store: Store, batch: str) -> Path:
    """Where counts of a batch's candidates lie, for a run that finds its pairs made."""
    return store.folder(".run", "select", f"{batch}.json")


def _select_pairs(params: Params, store: Store, batch: _Batch) -> tuple[_Summary, int]:
    """Select this batch's pairs and write them, with what was dropped; a batch whose file exists is only counted.

    Returns:
        Counts of the candidates; and how many pairs were written.
    """
    path, summary_path = store.table_path("pairs", batch.name), _summary_path(store, batch.name)
    if path.exists() and summary_path.exists():
        return _Summary(**json.loads(summary_path.read_text())), 0
    with _scratch_folder(store) as folder, _merged(params, store, batch, folder) as (merged, rules):
        if path.exists():
            return _Summary(sum(map(len, candidates_of_batch(merged, rules))), merged.counts), 0
        settled = settle(merged, rules, batch.memory, folder)
        writer = _write_rows(params, store, batch, merged, rules, settled)
        summary = _Summary(settled.read, merged.counts)
        store.write_bytes(summary_path, json.dumps(asdict(summary)).encode())
        writer.close()  # last: the completion marker
    log.info("select: %d candidates, %d pairs", settled.read, writer.count)
    return summary, writer.count


def run(params: Params, store: Store) -> StageReport:
    """Select this batch's pairs."""
    return select(params, store, WorkingMemory(params.select.memory_mib << 20))


def select(params: Params, store: Store, memory: WorkingMemory) -> StageReport:
    """`run` with a limit of memory in bytes."""
    name = batch_name(params)
    encoders: list[str] = [e for e in MINER_ROLES if e in params.embed.encoders]
    lost: set[str] = set()
    if removed := taken_down(params, store):
        withdraw_pairs(params, store, name, encoders, removed)
        withdraw_dropped(params, store, "select")
        if not params.open_run.takedown:  # a takedown by hand asks no model, and so adds no pair
            lost = read_lost_queries(store, name, removed)
    new_ids = store.read_table("images", ["image_id"], name).column("image_id")
    batch = _Batch(name, encoders, new_ids, lost, bool(removed), memory)
    summary, written = _select_pairs(params, store, batch)
    report = StageReport("select", figures=_yields(batch, summary.counts))
    report.read, report.written = summary.read, written
    report.reused = sum(store.count_rows(f, "pairs") for f in store.table_files("pairs") if f.stem != name)
    pairs = count_pairs(store, name, encoders)
    report.new = report.done = pairs.rows
    for reason, count in count_drops(store, name).items():
        report.drop(reason, count)
    report.figures |= pairs.figures
    report.notes += filter(None, [estimate_note(params, store)])
    if (median := median_caption_cosine(params, store, name)) is not None:
        report.figures["median_caption_cosine_new"] = median
    return report
