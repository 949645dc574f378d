"""Work cut into chunks of rows, one file each: what is there is skipped, so that a rerun after a crash does what is
missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tasks.records import StageReport
from tasks.store import Store

Rows = Sequence[dict[str, Any]]
Columns = dict[str, list[Any]]
log = logging.getLogger(__name__)


def finish_chunks(
    store: Store,
    report: StageReport,
    *,
    table: str,
    batch: str,
    count: int,
    chunk_rows: int,
    part: tuple[int, int] | None,
    make: Callable[[slice], tuple[Rows, Rows]],
    tokens: Callable[[Columns, Columns], int] | None = None,
    budget: int | None = None,
) -> tuple[Columns, Columns]:
    """Make the chunks of a part that are not there yet, and count all of them into the report.

    Args:
        report: of the stage; gets new, done, written, read and the drops by reason.
        table: that the stage writes.
        count: rows of the stage's input in this batch.
        chunk_rows: input rows of one file, a count.
        part: (i, n), or None for the whole.
        make: input rows as a slice -> (rows to keep, dropped rows).
        tokens: (kept rows, dropped rows) of chunks -> tokens that they took; needed with a budget.
        budget: tokens of the part; no chunk is begun once the chunks before it, in order, have taken as many. What is
            left then
            has no file, is not counted as done, and is made by a later call with a larger budget.
    Returns:
        the part's kept rows and dropped rows, by column.
    """
    chunks = list(chunks_of_part(count, chunk_rows, part))
    files = [store.table_path(table, batch, number) for number, _ in chunks]
    dropped_files = [store.dropped_path(report.stage, batch, number) for number, _ in chunks]
    spent = 0
    for (number, rows), file, dropped_file in zip(chunks, files, dropped_files, strict=True):
        report.new += rows.stop - rows.start
        if not file.exists():
            if budget is not None and spent >= budget:
                continue
            kept, dropped = make(rows)
            store.write(dropped_file, dropped, "dropped")
            report.written += store.write(file, kept, table)  # last: the chunk's marker
            log.info("%s: chunk %d, %d pairs, %d %s", report.stage, number, rows.stop - rows.start, len(kept), table)
        report.done += rows.stop - rows.start
        if budget is not None and tokens is not None:
            spent += tokens(store.read(file, table).to_pydict(), store.read(dropped_file, "dropped").to_pydict())
    files, dropped_files = [f for f in files if f.exists()], [f for f in dropped_files if f.exists()]
    report.read = report.new
    left = store.read(dropped_files, "dropped").to_pydict()
    for reason in left["reason"]:
        report.drop(reason)
    return store.read(files, table).to_pydict(), left


def chunks_of_part(count: int, chunk_rows: int, part: tuple[int, int] | None) -> Iterator[tuple[int, slice]]:
    """Chunk numbers and row slices that belong to part (i, n), 1-based: chunk c goes to part c mod n.

    Chunks are fixed by the input's order alone, so the tables do not depend on the number of parts, and a chunk's file
    is its own marker: after a crash only the missing ones are done.
    """
    for number, start in enumerate(range(0, count, chunk_rows)):
        if part is None or number % part[1] == part[0] - 1:
            yield number, slice(start, min(start + chunk_rows, count))
