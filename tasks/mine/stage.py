"""Mine candidates: images that are similar under one encoder, yet not copies of each other.

Reads data/images, data/embeddings/<encoder>; writes data/neighbours/<encoder>/<batch>-<chunk>.parquet. Drops no rows.
Parameters: `mine` (neighbours, windows, backend, memory_mib), `open_run.threads`. Source: MegaPairs, arXiv:2412.14475,
section 3.1.

The work is incremental: each new image gets its nearest images among all, each old image its nearest among the new
ones. So every row names at least one new image, no pair of two old images is compared again, and any other pair is
compared once for both its ends. Where `neighbours` is no limit, the union over the batches equals one batch of
everything. An empty batch writes one empty file.

In parts (`--part i/n`), a part compares its blocks of the pair matrix, each pair once over all parts, and leaves the
candidates below `.run/parts`; the call without --part then merges them, does what no part has done, and writes the same
bytes as a call that does everything (tasks/mine/partial.py).

A file holds the rows of 50,000 queries and is its own completion marker. One join serves as many missing files as
`mine.memory_mib` allows (1 GiB: some 500,000 queries at 12 neighbours). A run that is killed repeats that join, and
only that.

The prefilter's code of a row and its norms (88 to 536 bytes) depend on the row and the axes alone, so a large join
stores them per shard in data/neighbours/<encoder>/codes, and the next one codes the new rows only
(tasks/mine/code_cache.py).

Takedown: neighbours whose image is on the takedown list are removed from all files, and the images that rank next for
their queries are added, in a file of this batch (tasks/mine/withdraw.py).

An index whose encoder `embed.next` no longer names is removed, said and counted (`vectors_given_up_<encoder>`). Where
an older version is rewritten it stays, and loses what is taken down.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.fingerprints.takedown import taken_down
from tasks.knn.neighbours import recall
from tasks.knn.search import join_in_window
from tasks.knn.spec import APPROXIMATE_BACKENDS, SearchSpec
from tasks.mine.code_cache import remove_stale_codes
from tasks.mine.corpus import Corpus, read_corpus
from tasks.mine.neighbour_table import neighbour_table, neighbours_from_table
from tasks.mine.pair_blocks import rows_within
from tasks.mine.partial import PartialSearch, begun_search, remove_parts
from tasks.mine.withdraw import replace_neighbours, withdraw_neighbours
from tasks.names import batch_name
from tasks.progress import Progress
from tasks.records import StageReport
from tasks.renewal.encoders import (
    is_rewriting,
    is_whole,
    move_next,
    next_of,
    next_spec,
    remove_given_up,
    settled,
)
from tasks.store import Store
from tasks.store.chunks import Chunk, iter_chunks

log = logging.getLogger(__name__)
CHUNK_QUERIES = 50_000  # query rows in one file; the unit of resuming
RECALL_QUERIES = 500  # queries whose neighbours an approximate backend's recall is measured on
REPLACEMENTS_CHUNK = 99_999  # number of a batch's file with the neighbours that replace those taken down


def chunk_path(store: Store, encoder: str, batch: str, chunk: int) -> Path:
    """Where one chunk of an encoder's neighbours lies."""
    return store.folder("data", "neighbours", encoder, f"{batch}-{chunk:05d}.parquet")


def group_chunks(chunks: Sequence[Chunk], *, top_k: int, memory_mib: int) -> list[list[Chunk]]:
    """Group chunks so that one join serves each group: as many as its results leave room for.

    Pairs inside a group are compared once.

    Args:
        chunks: number and query rows of each.
        top_k: most neighbours of a query, a count.
        memory_mib: of the join, MiB.
    """
    groups: list[list[Chunk]] = []
    capacity = rows_within(memory_mib, top_k)
    used = 0
    for number, rows in chunks:
        count = rows.stop - rows.start
        if not groups or used + count > capacity:
            groups.append([])
            used = 0
        groups[-1].append(Chunk(number, rows))
        used += count
    return groups


def search_spec(params: Params, encoder: str) -> SearchSpec:
    """The search that `mine` asks for under one encoder.

    Raises:
        ConfigError: the encoder is unknown, or has no window, or an empty one.
    """
    config = params.mine
    if encoder not in params.embed.encoders:
        raise ConfigError(
            f"mine: no encoder '{encoder}' in embed.encoders; known: {sorted(params.embed.encoders)}; name one of them"
        )
    window = config.windows.get(encoder)  # type: ignore[call-overload]
    if window is None or window.low >= window.high:
        raise ConfigError(
            f"mine.windows: '{encoder}' is {window}; expected low < high; "
            "`python -m tasks calibrate` proposes numbers from the embeddings"
        )
    return SearchSpec(window, config.neighbours, config.backend, params.open_run.threads, config.memory_mib)


def _mine_chunks(
    store: Store, encoder: str, files: dict[int, Path], chunks: Sequence[Chunk], corpus: Corpus, spec: SearchSpec
) -> int:
    """Write the chunks that have no file yet. Returns the rows written.

    Args:
        files: number of a chunk -> its file.
        chunks: of the batch.
    """
    query_rows, tie_rank, written = corpus.query_rows, corpus.tie_rank, 0
    missing = [c for c in chunks if not files[c[0]].exists()]
    if missing and (search := begun_search(store, encoder, corpus, spec)):
        return _merge_parts(store, files, missing, corpus, search)
    progress = Progress("mine", sum(rows.stop - rows.start for _, rows in chunks), "queries")
    progress.skip(sum(rows.stop - rows.start for number, rows in chunks if files[number].exists()))
    for group in group_chunks(missing, top_k=spec.top_k, memory_mib=spec.memory_mib):
        queries = np.concatenate([query_rows[rows] for _, rows in group])
        neighbours = join_in_window(corpus.vectors, corpus.is_new, queries, spec, tie_rank=tie_rank, coded=corpus.coded)
        for number, rows in group:
            table = neighbour_table(corpus.ids, query_rows[rows], neighbours)
            written += store.write(files[number], table, "neighbours")
            log.info("mine: chunk %d, %d queries, %d candidates", number, rows.stop - rows.start, table.num_rows)
            progress.advance(rows.stop - rows.start)
    progress.finish()
    return written


def _merge_parts(
    store: Store, files: dict[int, Path], chunks: Sequence[Chunk], corpus: Corpus, search: PartialSearch
) -> int:
    """Write chunks from the candidates of the parts, after making what no part has made. Returns the rows written."""
    written = 0
    for number in range(search.parts):
        search.make_part(number)
    for number, rows in chunks:
        table = neighbour_table(corpus.ids, search.query_rows[rows], search.neighbours(rows))
        written += store.write(files[number], table, "neighbours")
        log.info("mine: chunk %d of %d parts, %d candidates", number, search.parts, table.num_rows)
    return written


def mine_part(store: Store, encoder: str, corpus: Corpus, spec: SearchSpec, part: tuple[int, int]) -> StageReport:
    """Search the i-th of n parts of the pairs; its candidates wait for the call that merges. It counts no rows."""
    search = PartialSearch(store, encoder, corpus, spec, part[1])
    pairs = search.make_part(part[0] - 1)
    blocks = len(search.plan[part[0] - 1])
    return StageReport("mine", notes=[f"part {part[0]} of {part[1]}: {blocks} blocks, {pairs} pairs compared now"])


def _measured_recall(
    store: Store, files: Sequence[Path], queries: np.ndarray, corpus: Corpus, spec: SearchSpec
) -> float:
    """Recall of an approximate backend's files, for some queries: the exact search is the truth."""
    exact_spec = SearchSpec(spec.window, spec.top_k, memory_mib=spec.memory_mib)
    exact = join_in_window(corpus.vectors, corpus.is_new, queries, exact_spec, tie_rank=corpus.tie_rank)
    mined = neighbours_from_table(store.read(files, "neighbours"), corpus.ids, queries)
    share = recall(mined, exact)
    log.info("mine: %s finds %.4f of the neighbours of %d queries", spec.backend, share, len(queries))
    return share


def run(params: Params, store: Store, encoder: str, part: tuple[int, int] | None = None) -> StageReport:
    """Mine this batch's candidates under one encoder, or the i-th of n parts of the pairs.

    Raises:
        ConfigError: the encoder has no window, or an empty one.
        DataError: a shard of this batch is not embedded.
    """
    params = settled(params, store, encoder)
    spec, following = search_spec(params, encoder), next_spec(params, encoder)
    is_part = part is not None and part[1] > 1
    if following is None:
        report = _mine_index(params, store, encoder, spec, part)
        if not is_part:
            _leave_index(params, store, encoder, report)
        return report
    of_next = replace(spec, window=following.window)
    if not is_whole(store, encoder):
        report = _mine_index(params, store, encoder, spec, part)
        if not is_part and store.embedded_shards(next_of(encoder)):
            _mine_index(params, store, next_of(encoder), of_next)
        return report
    return StageReport("mine") if is_part else _take_over(params, store, encoder, of_next)


def _leave_index(params: Params, store: Store, encoder: str, report: StageReport) -> None:
    """Remove an index that was given up: `embed.next` no longer names its encoder.

    Where `python -m tasks purge` rewrites a version from the time before it took over, images are taken down from it.
    """
    index = next_of(encoder)
    if not is_rewriting(store):
        vectors, note = remove_given_up(store, encoder)
        if note is not None:
            log.warning("mine %s", note)
            report.notes.append(note)
            report.figures[f"vectors_given_up_{encoder}"] = float(vectors)
    elif store.folder("data", "neighbours", index).exists() and (removed := taken_down(params, store)):
        withdraw_neighbours(store, index, removed)
        remove_stale_codes(store, index)


def _take_over(params: Params, store: Store, encoder: str, spec: SearchSpec) -> StageReport:
    """Finish the next index and put it into the place of the one in use: from now on pairs come from it."""
    following, batch = next_spec(params, encoder), batch_name(params)
    assert following is not None
    report = _mine_index(params, store, next_of(encoder), spec)
    new_ids = store.read_table("images", ["image_id"], batch).column("image_id").to_pylist()
    move_next(store, encoder, following, new_ids, batch)
    report.notes.append(
        f"{encoder}: every image has a vector of {following.model}; pairs are mined by it from this version on. Put "
        f"embed.next.{encoder} in the place of embed.encoders.{encoder}, and its window into mine.windows"
    )
    return report


def _mine_index(
    params: Params, store: Store, index: str, spec: SearchSpec, part: tuple[int, int] | None = None
) -> StageReport:
    """Mine one index: of the encoder in use, or of the one that is to follow."""
    batch, folder = batch_name(params), store.folder("data", "neighbours", index)
    corpus = read_corpus(store, index, batch, spec, stems_of_run(store, index))
    query_rows = corpus.query_rows
    # an empty batch has one empty file
    chunks = list(iter_chunks(len(query_rows), CHUNK_QUERIES, None)) or [Chunk(0, slice(0, 0))]
    files = {number: chunk_path(store, index, batch, number) for number, _ in chunks}
    if part is not None and part[1] > 1:
        is_done = all(path.exists() for path in files.values())
        return StageReport("mine") if is_done else mine_part(store, index, corpus, spec, part)
    report = StageReport("mine", reused=int((~corpus.is_new).sum()))
    if removed := taken_down(params, store):
        old_ids = corpus.ids.take(pa.array(corpus.old_rows)).to_pylist()
        replacements = chunk_path(store, index, batch, REPLACEMENTS_CHUNK)
        old = (old_ids, corpus.vectors[corpus.old_rows])
        replace_neighbours(store, sorted(folder.glob("*.parquet")), replacements, removed, old, spec)
        remove_stale_codes(store, index)
    folder.mkdir(parents=True, exist_ok=True)
    report.written = _mine_chunks(store, index, files, chunks, corpus, spec)
    remove_parts(store, index)
    report.read = sum(rows.stop - rows.start for _, rows in chunks)
    report.new = report.done = sum(int(corpus.is_new[query_rows[rows]].sum()) for _, rows in chunks)
    report.figures |= _figures(params, store, list(files.values()), corpus, spec, index.partition("/")[0])
    return report


def stems_of_run(store: Store, index: str) -> list[str]:
    """Of the next encoder's index: the shards that this run encoded, as stage embed noted them."""
    role, _, kind = index.partition("/")
    path = store.folder(".run", "renew", f"embed-{role}.json")
    return list(json.loads(path.read_text())["stems"]) if kind and path.exists() else []


def _figures(
    params: Params, store: Store, files: Sequence[Path], corpus: Corpus, spec: SearchSpec, encoder: str
) -> dict[str, float]:
    """Candidates, in all and per new image; the recall of an approximate backend."""
    query_rows = corpus.query_rows
    new = int(corpus.is_new[query_rows].sum())
    candidates = store.read(files, "neighbours", ["rank"]).num_rows
    figures = {f"candidates_{encoder}": float(candidates)}
    if new:
        figures[f"candidates_per_new_image_{encoder}"] = candidates / new
    if spec.backend in APPROXIMATE_BACKENDS and len(query_rows):
        sample = np.sort(np.random.default_rng(params.open_run.seed).permutation(query_rows)[:RECALL_QUERIES])
        figures[f"recall_{encoder}"] = _measured_recall(store, files, sample, corpus, spec)
    return figures
