"""Parquet files of a table: written in row groups of bounded size, and searched for rows that name an id."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.records import schemas
from tasks.store.atomic import move_into_place, temporary_sibling, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 100_000  # rows of one Parquet row group
# A reader of some columns or rows finds their pages by the index. Pages that end where the content says so stay the
# same when rows before them come or go, so that stores which keep chunks (the Hub) hold them once.
OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "store_schema": True,
    "write_page_index": True,
    "use_content_defined_chunking": True,
}
BATCH_ROWS = 2_000  # rows that a TableWriter holds as Python objects at a time


def to_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file; equal tables give equal bytes.

    One without rows has no row group: `datasets` (3.6 and 5.2) stops at a group of no rows.
    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, **OPTIONS) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return buffer.getvalue()


def rewrite_empty(paths: Iterable[Path]) -> int:
    """Write those files again that have a row group and no row; returns how many (see `to_parquet`)."""
    import pyarrow.parquet as pq

    count = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        if metadata.num_row_groups and not metadata.num_rows:
            write_bytes(path, to_parquet(pq.read_table(path)))
            count += 1
    return count


class TableWriter:
    """Write one file of a table row by row, in memory that does not grow with the rows.

    The bytes are those of `Store.write` for the same rows. The file appears under its name when `close` renames it.
    """

    def __init__(self, path: Path, schema: str) -> None:
        """`path`: of the finished file; `schema`: name of the table's schema."""
        self._path, self._schema = path, schemas()[schema]
        self._temporary = temporary_sibling(path, is_sole_writer=True)
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._file: Any = None
        self._writer: Any = None
        self.count = 0

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == BATCH_ROWS:
            self._pack()
            if self.count % ROW_GROUP_ROWS == 0:
                self._write()

    def add_table(self, table: pa.Table) -> None:
        """Append the rows of an Arrow table."""
        table = table.select(self._schema.names).cast(self._schema)
        self._pack()
        while len(table):
            head = table.slice(0, ROW_GROUP_ROWS - self.count % ROW_GROUP_ROWS)
            self._batches += head.to_batches()
            self.count += len(head)
            table = table.slice(len(head))
            if self.count % ROW_GROUP_ROWS == 0:
                self._write()

    def _pack(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by close() or discard()
            self._writer = pq.ParquetWriter(self._file, self._schema, **OPTIONS)
        table = pa.Table.from_batches(self._batches, schema=self._schema).combine_chunks()
        if table.num_rows:
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._batches = []

    def close(self) -> None:
        """Finish the file and move it into place."""
        self._pack()
        if self._batches or self._writer is None:
            self._write()
        self._writer.close()
        self._file.close()
        move_into_place(self._temporary, self._path)

    def discard(self) -> None:
        """Remove what was written; for a run that ends with an error."""
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):  # a full disk, or a file that is closed already
                self._writer.close()
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)


def names_any_id(table: pa.Table, ids: Iterable[str], columns: Sequence[str]) -> pa.ChunkedArray:
    """Which rows name one of the ids in one of the columns; (n,) bool."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(ids), pa.string())
    masks = [pc.is_in(table.column(c), value_set=wanted) for c in columns]
    result = masks[0]
    for mask in masks[1:]:
        result = pc.or_(result, mask)
    return result
