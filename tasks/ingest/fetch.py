"""Fetch and decode the listed files of one part: all that can be said about a file without regard to other files.

Reads the batch's listing (`python -m tasks ingest_list`). Writes what became of each file to .run/ingest/<batch>/
inspected (tasks/ingest/staging.py), from where `python -m tasks ingest` takes it. A host's URLs all belong to one part,
so the limits per host (tasks/sources/web/hosts.py) hold over all parts, on however many machines they run. A part that
is run again, also as another one of more or fewer parts, fetches what has no result yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.ingest.inspect import inspect_file, make_workers
from tasks.ingest.lanes import PlacedFile, lanes_of_part
from tasks.ingest.parallel import Threads, map_in_order
from tasks.ingest.progress import Progress
from tasks.ingest.rules import Rejection
from tasks.ingest.staging import InspectedFiles, Staging
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store


def run(params: Params, store: Store, part: tuple[int, int] | None = None) -> StageReport:
    """Fetch one part's files; see the module's docstring.

    Args:
        params: of the run.
        store: of the run.
        part: (i, n), 1-based; None for all files.
    Raises:
        ConfigError: the batch is not listed.
        TransientError: a storage that fails.
    """
    batch = batch_name(params)
    report, staging = StageReport("ingest_fetch"), Staging(store, batch)
    if store.table_path("images", batch).exists():
        return report
    listing, lanes = staging.read_listing(), lanes_of_part(part)
    if listing is None:
        raise ConfigError(
            f"ingest_fetch: batch {batch} is not listed; expected {staging.folder / 'listing.json'}; "
            "run `python -m tasks ingest_list` before"
        )
    inspected = InspectedFiles(staging)
    done = {lane: inspected.numbers_done(lane) for lane in lanes}
    report.new = report.done = sum(listing.lane_counts[lane] for lane in lanes)
    missing = (placed for placed in staging.listed(lanes) if placed.number not in done[placed.lane])
    report.read = report.written = inspect_missing(missing, params, inspected)
    return report


def inspect_missing(files: Iterator[PlacedFile], params: Params, inspected: InspectedFiles) -> int:
    """Inspect files and store their results; returns how many. An error ends it after what is finished is stored."""
    config, progress = params.ingest, Progress()
    threads = Threads(local=config.workers or os.cpu_count() or 1)
    with make_workers(config) as workers:
        try:
            for placed, result, _ in map_in_order(files, lambda p: inspect_file(p.file, config, workers), threads):
                inspected.add(placed, result)
                progress.count(result.result.reason if isinstance(result.result, Rejection) else None)
        finally:
            inspected.flush()
            progress.close()
    return progress.files
