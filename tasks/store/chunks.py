"""Resumable chunks: a stage's rows in one file per chunk; a chunk whose file exists is skipped.

Chunks are fixed by the order of the stage's input alone, so the tables do not depend on the number of parts. A chunk's
file is its own completion marker: a rerun after a crash makes the missing chunks only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.records import StageReport
from tasks.store.store import Store

Rows = Sequence[dict[str, Any]]
Columns = dict[str, list[Any]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkSpec:
    """Which chunks of a table one call makes.

    Attributes:
        table: name of the table that the stage writes.
        batch: the run's batch.
        input_rows: rows of the stage's input in this batch, a count.
        chunk_rows: input rows of one chunk, a count.
        part: (i, n), 1-based: this call makes the i-th of n parts; None for the whole.
    """

    table: str
    batch: str
    input_rows: int
    chunk_rows: int
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class TokenBudget:
    """A limit on the model tokens of one call.

    No chunk is begun once the chunks before it, in order, have used `limit` tokens. Chunks that are left have no file
    and are not counted as done; a later call with a larger budget makes them.

    Attributes:
        limit: tokens, a count.
        count: accepted rows and dropped rows of a chunk, by column -> tokens that they used.
    """

    limit: int
    count: Callable[[Columns, Columns], int]


def make_missing_chunks(
    store: Store,
    report: StageReport,
    spec: ChunkSpec,
    make: Callable[[slice], tuple[Rows, Rows]],
    budget: TokenBudget | None = None,
) -> tuple[Columns, Columns]:
    """Make those chunks of a part that have no file yet, and count all of them into the report.

    Args:
        store: where the chunks are written.
        report: of the stage; gets new, done, written, read and the drops by reason.
        spec: which chunks.
        make: a slice of the input rows -> (accepted rows, dropped rows).
        budget: limit on the tokens; none when absent.
    Returns:
        The part's accepted rows and dropped rows, by column.
    """
    chunks = list(iter_chunks(spec.input_rows, spec.chunk_rows, spec.part))
    files = [store.table_path(spec.table, spec.batch, number) for number, _ in chunks]
    dropped_files = [store.dropped_path(report.stage, spec.batch, number) for number, _ in chunks]
    tokens = 0
    for (number, rows), file, dropped_file in zip(chunks, files, dropped_files, strict=True):
        size = rows.stop - rows.start
        report.new += size
        if not file.exists():
            if budget is not None and tokens >= budget.limit:
                continue
            accepted, dropped = make(rows)
            store.write(dropped_file, dropped, "dropped")
            report.written += store.write(file, accepted, spec.table)  # last: the chunk's completion marker
            log.info("%s: chunk %d, %d pairs, %d %s", report.stage, number, size, len(accepted), spec.table)
        report.done += size
        if budget is not None:
            tokens += budget.count(
                store.read(file, spec.table).to_pydict(), store.read(dropped_file, "dropped").to_pydict()
            )
    report.read = report.new
    dropped_rows = store.read([f for f in dropped_files if f.exists()], "dropped").to_pydict()
    for reason in dropped_rows["reason"]:
        report.drop(reason)
    return store.read([f for f in files if f.exists()], spec.table).to_pydict(), dropped_rows


def iter_chunks(count: int, chunk_rows: int, part: tuple[int, int] | None) -> Iterator[tuple[int, slice]]:
    """Numbers and row slices of the chunks that belong to a part; chunk c belongs to part c mod n.

    Args:
        count: rows to cut into chunks, a count.
        chunk_rows: rows of one chunk, a count.
        part: (i, n), 1-based, or None for all chunks.
    """
    for number, start in enumerate(range(0, count, chunk_rows)):
        if part is None or number % part[1] == part[0] - 1:
            yield number, slice(start, min(start + chunk_rows, count))
