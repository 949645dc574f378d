"""List the sources once, for ingest in parts.

Reads the sources of `ingest.sources` and what earlier batches took. Writes the files to be taken, in the order in which
they are taken, to .run/ingest/<batch>/listing (tasks/ingest/staging.py), and says how many parts they make.

`python -m tasks ingest_fetch --part i/n` then fetches and decodes them in parts, and `python -m tasks ingest` decides
about duplicates and writes the tables. With `open_run.limit` twice as many files as images are wanted are listed, and
SURPLUS_FILES; where too many of them are dropped, `ingest` goes on listing by itself. Parameters: `ingest.part_files`.
"""

from __future__ import annotations

import dataclasses
import itertools

from tasks.config import Params
from tasks.ingest.history import SourceHistory
from tasks.ingest.intake import new_files
from tasks.ingest.lanes import LANES, place
from tasks.ingest.staging import Listing, ListingWriter, Staging
from tasks.names import batch_name
from tasks.parts import count_parts
from tasks.records import StageReport
from tasks.store import Store

SURPLUS_FILES = 256  # files that are listed beyond twice a run's limit


def run(params: Params, store: Store) -> StageReport:
    """List what is new; a batch that is listed, or done, is not listed again.

    Raises:
        ConfigError: a source that does not exist, or two sources of one name.
        DataError: a source's table that is unreadable.
        TransientError: a storage that fails.
    """
    batch = batch_name(params)
    staging = Staging(store, batch)
    is_done = store.table_path("images", batch).exists()
    listing = Listing() if is_done else staging.read_listing() or list_new_files(params, store, staging)
    report = StageReport("ingest_list", read=listing.count, new=listing.count, done=listing.count)
    report.parts = {"ingest_fetch": min(LANES, count_parts(listing.count, params.ingest.part_files))}
    return report


def list_new_files(params: Params, store: Store, staging: Staging) -> Listing:
    """List the files to be taken and write the listing."""
    limit = params.open_run.limit
    most = None if limit is None else 2 * limit + SURPLUS_FILES
    history = SourceHistory.load(store, batch_name(params), params.ingest.max_tries)
    files = place(new_files(params.ingest, history))
    writer = ListingWriter(staging)
    for placed in itertools.islice(files, most):
        writer.add(placed)
    writer.listing.is_whole = most is None or next(files, None) is None
    writer.listing.changed_count = history.changed_count
    writer.listing.changed_captions = history.changed_captions
    writer.listing.counts = dataclasses.asdict(history.listing)
    writer.close()
    return writer.listing
