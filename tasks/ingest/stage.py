"""Ingest: take in the new images of all sources; each file is kept, or dropped with a reason.

Reads the sources of `ingest.sources` (tasks/sources/open.py), the takedown list, the blocklists and the benchmark
hashes. Writes data/shards/<batch>-<nnnnn>.tar, data/dropped/ingest/<batch>.parquet and, last, as the mark that the
batch is done, data/images/<batch>.parquet.

A file is read under a byte limit, its header's pixel count is checked before anything is decoded, and it is decoded in
a worker process with limits of its own (tasks/ingest/workers.py) to the stored form (tasks/ingest/normalize.py). It is
dropped, in this order, for: its licence, an exact duplicate, the takedown list, the exclusion lists, quality flags,
classifiers, a near duplicate (tasks/ingest/dedup.py, against the whole corpus). Files are taken in order of source and
path, so neither the file system's order nor the number of workers affects the tables. A file that an earlier batch has
kept or dropped with the same bytes is skipped. One that was unreachable is tried again, after all others, in up to
`ingest.max_tries` batches. `open_run.limit` counts kept images.

A large batch is listed once (`ingest_list`), fetched and decoded in parts (`ingest_fetch --part i/n`), and this stage
then decides about duplicates and writes the tables: the same bytes for any number of parts. Alone it does all of it.
What it fetches over a network waits in .run/ingest/<batch> until the tables are written, so that a killed call fetches
nothing twice.

Stored images that the takedown list names are withdrawn first (tasks/ingest/withdraw.py).

Every file ends as one row, which is checked before the tables are published: kept + dropped = read. A dropped row keeps
the source URI and, as JSON, the detail, the sha256, and for duplicates the image that it repeats. Measurements:
docs/decisions/0020 and 0021.

Drops, by reason (closed list REASONS; sentences in tasks/reasons.py): `undecodable`, `too_small`, `too_costly`,
`extreme_ratio`, `duplicate`, `near_duplicate`, `licence`, `blocked`, `taken_down`, `benchmark`, `low_quality`,
`filtered`, `unsupported_format`, and what a source rejects (tasks/sources/files.py). Parameters: `ingest.*`,
`open_run.limit`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing

from tasks.config import Params
from tasks.fingerprints.takedown import withdrawn_ids
from tasks.fingerprints.takedown_list import TakedownList
from tasks.ingest.batch import BatchWriter, changed_captions_note, changes_path, limited_path, listing_path
from tasks.ingest.dedup import limited_note
from tasks.ingest.history import SourceHistory
from tasks.ingest.inspect import InspectedFile, apply_filters, inspect_file, make_workers, reject_known
from tasks.ingest.intake import new_files
from tasks.ingest.lanes import PlacedFile, lanes_of_part, place
from tasks.ingest.parallel import Threads, map_in_order
from tasks.ingest.rows import GIVEN_UP
from tasks.ingest.staging import InspectedFiles, Staging, identity
from tasks.ingest.withdraw import takedown_notes, withdraw_images, write_report
from tasks.names import batch_name
from tasks.reasons import COPY_REASONS, UNREADABLE_REASONS
from tasks.records import StageReport
from tasks.sources import files as source_files
from tasks.sources.counts import ListingCounts
from tasks.sources.files import SourceFile
from tasks.store import Store

log = logging.getLogger(__name__)

REASONS = (
    "undecodable",
    "too_small",
    "too_costly",
    "extreme_ratio",
    "duplicate",
    "near_duplicate",
    "licence",
    "blocked",
    "taken_down",
    "benchmark",
    "low_quality",
    "filtered",
    "unsupported_format",
    *source_files.REASONS,
)
FLAG_COLUMNS = ("is_blurry", "is_near_empty", "has_extreme_ratio", "is_text_heavy")


def run(params: Params, store: Store) -> StageReport:
    """Take in what is new in the sources, or what `ingest_list` has listed; what no part has inspected, this call does.

    Raises:
        ConfigError: a source that does not exist, two sources of one name, or a list that is unreadable.
        DataError: a source's table that is unreadable.
        TransientError: a storage that fails.
    """
    batch, limit = batch_name(params), params.open_run.limit
    staging = Staging(store, batch)
    takedown = withdraw_images(params, store)
    if not store.table_path("images", batch).exists():
        history = SourceHistory.load(store, batch, params.ingest.max_tries)
        with closing(files_to_take(params, history, staging)) as files:
            ingest_files(files, params, store, history, staging, takedown)
        if takedown is not None:
            write_report(store, batch, takedown)
    staging.remove()
    report = build_report(store, batch)
    if limit is not None and report.written >= limit:
        report.notes.append(f"stopped at open_run.limit, {limit} images; a later run takes what is left")
    return report


def files_to_take(params: Params, history: SourceHistory, staging: Staging) -> Generator[SourceFile, None, None]:
    """The listed files, then (where a limit ended the listing, or there is none) those that the sources have beyond.

    Args:
        params: of the run.
        history: of earlier batches; gets what the listing counted.
        staging: of the batch.
    """
    listing, taken = staging.read_listing(), set()
    if listing is not None:
        history.changed_count, history.changed_captions = listing.changed_count, listing.changed_captions
        history.listing = ListingCounts(**listing.counts)
        for placed in staging.listed(lanes_of_part(None)):
            if not listing.is_whole:
                taken.add(identity(placed.file))
            yield placed.file
        if listing.is_whole:
            return
        # listed again from the start: what was counted before is counted again
        history.changed_count, history.changed_captions, history.listing = 0, {}, ListingCounts()
    yield from (file for file in new_files(params.ingest, history) if not taken or identity(file) not in taken)


def ingest_files(
    files: Iterable[SourceFile],
    params: Params,
    store: Store,
    history: SourceHistory | None = None,
    staging: Staging | None = None,
    takedown: TakedownList | None = None,
) -> None:
    """Take in these files as the batch of `params`, until `open_run.limit` images are kept.

    Args:
        files: in the order in which they are taken; of two copies the first is kept.
        params: of the run.
        store: of the run.
        history: of earlier batches, in which changed captions are counted.
        staging: of the batch: results that are there are taken, and those of remote files are put there, so that a
            killed call fetches nothing twice; None: neither.
        takedown: the takedown list; its images are refused, and counted there.
    Raises:
        DataError: kept and dropped rows are not as many as the files (a bug; nothing is published).
    """
    config, results = params.ingest, InspectedFiles(staging) if staging else None
    threads = Threads(local=config.workers or os.cpu_count() or 1)
    with BatchWriter(params, store, history or SourceHistory(), takedown) as writer, make_workers(config) as workers:
        known_sha256s = writer.index.ids_by_source_sha256.copy()

        def inspect(placed: PlacedFile) -> InspectedFile:
            return inspect_file(placed.file, config, workers, known_sha256s)

        ready = results.take if results else None
        placed_files = writer.count_read(place(files))
        with closing(map_in_order(placed_files, inspect, threads, writer.wanted, ready)) as inspected_files:
            stored = _store_remote(inspected_files, results)
            for inspected in apply_filters((reject_known(i, known_sha256s) for i in stored), config):
                writer.add(inspected)
                if writer.wanted() <= 0:
                    break


def _store_remote(
    inspected_files: Iterable[tuple[PlacedFile, InspectedFile, bool]], results: InspectedFiles | None
) -> Iterator[InspectedFile]:
    """The inspected files; new results of remote ones are stored, at the latest when this ends."""
    try:
        for placed, inspected, is_new in inspected_files:
            if results is not None and is_new and placed.file.is_remote:
                results.add(placed, inspected)
            yield inspected
    finally:
        if results is not None:
            results.flush()


def given_up_note(details: Iterable[tuple[str, str]]) -> str | None:
    """A sentence about files that are not tried again; None where there are none.

    Args:
        details: source_uri and detail of dropped rows.
    """
    uris = [uri for uri, detail in details if GIVEN_UP in detail and json.loads(detail).get(GIVEN_UP)]
    if not uris:
        return None
    shown = ", ".join(uris[:3]) + (" ..." if len(uris) > 3 else "")
    return f"{len(uris)} files were unreachable in ingest.max_tries batches and are not tried again: {shown}"


def build_report(store: Store, batch: str) -> StageReport:
    """The batch's report, from its files on disk alone: the same after a crash as without one."""
    images = store.read_table("images", ["caption", *FLAG_COLUMNS], batch)
    kept = images.num_rows
    dropped = store.read(store.dropped_path("ingest", batch), "dropped", ["reason", "key", "detail"])
    reasons = Counter(dropped.column("reason").to_pylist())
    read = kept + reasons.total()
    reused = store.read_table("images", ["batch"]).num_rows - kept
    report = StageReport("ingest", read=read, written=kept, new=read, done=read, reused=reused)
    for reason, count in reasons.items():
        report.drop(reason, count)
    if files := read - source_files.count_litter(dropped.column("key").to_pylist()):
        report.figures["duplicate_share"] = sum(reasons[r] for r in COPY_REASONS) / files
        report.figures["unreadable_share"] = sum(reasons[r] for r in UNREADABLE_REASONS) / files
    if kept:
        report.figures["caption_share"] = sum(map(bool, images.column("caption").to_pylist())) / kept
    for column in FLAG_COLUMNS:
        if count := sum(map(bool, images.column(column).to_pylist())):
            report.figures[f"{column}_share"] = count / kept
    details = zip(dropped.column("key").to_pylist(), dropped.column("detail").to_pylist(), strict=True)
    if note := given_up_note(details):
        report.notes.append(note)
    if (path := changes_path(store, batch)).exists():
        changed = json.loads(path.read_text())
        report.figures["captions_changed"] = float(changed["count"])
        report.notes.append(changed_captions_note(changed["count"], changed["first"]))
    report.notes += takedown_notes(store, batch)
    if withdrawn := len(withdrawn_ids(store, batch)):
        report.figures["images_withdrawn"] = float(withdrawn)
    if (path := limited_path(store, batch)).exists():
        report.notes.append(limited_note(json.loads(path.read_text())))
    if (path := listing_path(store, batch)).exists():
        listing = ListingCounts.from_json(path.read_text())
        report.figures |= listing.figures()
        report.notes += listing.sentences()
    return report
