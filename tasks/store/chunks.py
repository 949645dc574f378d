"""Resumable chunks: a stage's rows in one file per chunk; a chunk whose file exists is skipped.

Chunks are fixed by the order of the stage's input alone, so the tables do not depend on the number of parts. A chunk's
file is its own completion marker: a rerun after a crash makes the missing chunks only. When the version is made, the
chunks are merged (tasks/publish/merge.py); a rerun after that finds all of them done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tasks.progress import Progress
from tasks.records import StageReport
from tasks.store.store import Store

Rows = Sequence[dict[str, Any]]
Columns = dict[str, list[Any]]
log = logging.getLogger(__name__)


def merge_plan_path(store: Store, folder: str, batch: str) -> Path:
    """Where it is noted which of a batch's chunks become one file; `folder` below data, e.g. dropped/judge."""
    return store.folder(".run", "merge", f"{folder.replace('/', '-')}-{batch}.json")


def is_chunk(path: Path, batch: str) -> bool:
    """Whether a file is one of a batch's chunks, by its name."""
    stem, _, number = path.stem.rpartition("-")
    return stem == batch and number.isdecimal()


class Chunk(NamedTuple):
    """A piece of a stage's input.

    Attributes:
        number: of the chunk, from 0; its files carry it.
        rows: of the input: of the whole table, or of the input's own chunk file (`file_chunks`).
    """

    number: int
    rows: slice


@dataclass(frozen=True)
class ChunkSpec:
    """Which chunks of a table one call makes.

    Attributes:
        table: name of the table that the stage writes.
        batch: the run's batch.
        chunks: of `iter_chunks` or `file_chunks`.
    """

    table: str
    batch: str
    chunks: Sequence[Chunk]


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
    make: Callable[[Chunk], tuple[Rows, Rows]],
    budget: TokenBudget | None = None,
) -> tuple[Columns, Columns]:
    """Make those chunks of a part that have no file yet, and count all of them into the report.

    Args:
        store: where the chunks are written.
        report: of the stage; gets new, done, written, read and the drops by reason.
        spec: which chunks.
        make: a chunk of the input -> (accepted rows, dropped rows).
        budget: limit on the tokens; none when absent.
    Returns:
        The part's accepted rows and dropped rows, by column.
    """
    if merge_plan_path(store, spec.table, spec.batch).exists():
        return _count_merged(store, report, spec)
    files = [store.table_path(spec.table, spec.batch, chunk.number) for chunk in spec.chunks]
    dropped_files = [store.dropped_path(report.stage, spec.batch, chunk.number) for chunk in spec.chunks]
    tokens = 0
    progress = Progress(report.stage, sum(chunk.rows.stop - chunk.rows.start for chunk in spec.chunks))
    for chunk, file, dropped_file in zip(spec.chunks, files, dropped_files, strict=True):
        size = chunk.rows.stop - chunk.rows.start
        report.new += size
        if file.exists():
            progress.skip(size)
        if not file.exists():
            if budget is not None and tokens >= budget.limit:
                continue
            accepted, dropped = make(chunk)
            store.write(dropped_file, dropped, "dropped")
            report.written += store.write(file, accepted, spec.table)  # last: the chunk's completion marker
            log.info("%s: chunk %d, %d rows, %d %s", report.stage, chunk.number, size, len(accepted), spec.table)
            progress.advance(size)
        report.done += size
        if budget is not None:
            tokens += budget.count(
                store.read(file, spec.table).to_pydict(), store.read(dropped_file, "dropped").to_pydict()
            )
    progress.finish()
    report.read = report.new
    dropped_rows = store.read([f for f in dropped_files if f.exists()], "dropped").to_pydict()
    for reason in dropped_rows["reason"]:
        report.drop(reason)
    return store.read([f for f in files if f.exists()], spec.table).to_pydict(), dropped_rows


def _count_merged(store: Store, report: StageReport, spec: ChunkSpec) -> tuple[Columns, Columns]:
    """The rows of a batch whose chunks are merged already: nothing is left to do, whatever the part."""
    accepted = store.read_table(spec.table, batch=spec.batch).to_pydict()
    dropped = store.read_dropped(report.stage, spec.batch).to_pydict()
    for reason in dropped["reason"]:
        report.drop(reason)
    report.new = report.done = report.read = len(next(iter(accepted.values()))) + len(dropped["reason"])
    report.notes.append("the version is made: its chunks are merged, nothing is left to do")
    return accepted, dropped


def iter_chunks(count: int, chunk_rows: int, part: tuple[int, int] | None) -> Iterator[Chunk]:
    """The chunks that belong to a part; chunk c belongs to part c mod n.

    Args:
        count: rows to cut into chunks, a count.
        chunk_rows: rows of one chunk, a count.
        part: (i, n), 1-based, or None for all chunks.
    """
    for number, start in enumerate(range(0, count, chunk_rows)):
        if is_of_part(number, part):
            yield Chunk(number, slice(start, min(start + chunk_rows, count)))


def is_of_part(number: int, part: tuple[int, int] | None) -> bool:
    """Whether a chunk belongs to a part, (i, n) from 1; every chunk belongs to the whole (None)."""
    return part is None or number % part[1] == part[0] - 1


def file_chunks(store: Store, table: str, batch: str, part: tuple[int, int] | None) -> list[Chunk]:
    """Chunks that follow the chunk files of an earlier stage: chunk c is all of that stage's file c.

    A part needs the files of the same part of that stage alone; files that are not there yet are of other parts, or of
    work that a budget left undone.

    Args:
        store: of the worktree.
        table: that the earlier stage wrote.
        batch: the run's batch.
        part: (i, n), 1-based, or None for all files.
    """
    import pyarrow.parquet as pq

    numbered = {int(f.stem.rpartition("-")[2]): f for f in store.batch_files(table, batch) if f.stem != batch}
    chosen = sorted((number, file) for number, file in numbered.items() if is_of_part(number, part))
    return [Chunk(number, slice(0, pq.read_metadata(file).num_rows)) for number, file in chosen]
