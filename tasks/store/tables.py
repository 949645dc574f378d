"""Write Parquet tables in row groups of bounded size; find the rows that name an id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.records import schemas
from tasks.store.atomic import move_into_place, temporary_sibling

if TYPE_CHECKING:
    import pyarrow as pa


ROW_GROUP_ROWS = 100_000
BATCH_ROWS = 2_000  # rows as Python objects at a time, of a TableWriter


class TableWriter:
    """One file of a table, a row at a time, in memory that does not grow with the rows; the bytes are those of
    `Store.write` for the same rows.
    """

    def __init__(self, path: Path, schema: str) -> None:
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
        """Append rows of the table's columns."""
        table = table.select(self._schema.names).cast(self._schema)
        self._pack()
        while len(table):
            some = table.slice(0, ROW_GROUP_ROWS - self.count % ROW_GROUP_ROWS)
            self._batches += some.to_batches()
            self.count += len(some)
            table = table.slice(len(some))
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
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd", store_schema=True)
        table = pa.Table.from_batches(self._batches, schema=self._schema).combine_chunks()
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
        """Leave no file behind; for a run that ends with an error."""
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):  # a full disk, or closed by then
                self._writer.close()
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)


def rows_naming(table: pa.Table, ids: Iterable[str], columns: Sequence[str]) -> pa.ChunkedArray:
    """(n,) bool: rows that name one of the ids in one of the columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(ids), pa.string())
    found = [pc.is_in(table.column(c), value_set=wanted) for c in columns]
    out = found[0]
    for other in found[1:]:
        out = pc.or_(out, other)
    return out
