"""Rows of Parquet and Arrow files; what cannot be read of them is a row that says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.sources.columns import IMAGE_LISTS, TableFormat, UnreadableText, plain_name
from tasks.sources.counts import ListingCounts
from tasks.sources.lines import READ_ERRORS

BATCH_ROWS = 8_192  # read at a time
IMAGE_BATCH_ROWS = 16  # the same, of a table that holds images


@dataclass(frozen=True)
class TableRow:
    """One row of a table.

    Attributes:
        number: of its first line in a text table, counted from 1; of the row in another table, from 0.
        values: field of COLUMNS -> what the row states for it.
        damage: why it cannot be read; '' for a good row.
        is_end: whether the damage is the file's, which may be whole next time.
        unread: rows that a damage stands for beside this one, a count.
    """

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    damage: str = ""
    is_end: bool = False
    unread: int = 0


def make_row(number: int, row: dict[str, Any], table: TableFormat) -> TableRow:
    """A row of these values, by the names of their columns; a damaged one where a text cannot be read."""
    try:
        return TableRow(number, table.values(row))
    except UnreadableText as error:
        return TableRow(number, damage=str(error))


def parquet_rows(path: Path, table: TableFormat, counts: ListingCounts) -> Iterator[TableRow]:
    """Rows of a Parquet file, row group by row group; of a damaged or a short group one row tells.

    Args:
        path: the file.
        table: how its columns are found.
        counts: where lines are counted: here, the rows that the file states.
    Raises:
        DataError: a column that it must have is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (*READ_ERRORS, pa.ArrowException) as error:
        counts.lines += 1
        yield TableRow(0, damage=f"the Parquet file cannot be read: {error}", is_end=True)
        return
    with file:
        wanted, size = _find_wanted(file.schema_arrow, table)
        number = 0
        for group in range(file.num_row_groups):
            stated, read, problem = file.metadata.row_group(group).num_rows, 0, ""
            try:
                for batch in file.iter_batches(size, row_groups=[group], columns=wanted):
                    rows = _batch_rows(batch, number + read, table)
                    read += batch.num_rows
                    counts.lines += batch.num_rows
                    yield from rows
                problem = f"it holds {read} rows" if read < stated else ""
            except (*READ_ERRORS, pa.ArrowException) as error:
                problem = f"{error}"
            number += read
            if problem:  # a file of so many bytes holds no more rows, whatever it states
                missing = max(1, min(stated - read, path.stat().st_size))
                counts.lines += missing
                where = f"rows {number} to {number + missing - 1} of row group {group}"
                yield TableRow(number, damage=f"{where} cannot be read: {problem}", unread=missing - 1)
                number += missing


def _find_wanted(schema: Any, table: TableFormat) -> tuple[list[str], int]:
    """(the columns that are read, how many rows at a time).

    Raises:
        DataError: a column that the table must have is missing.
    """
    columns = table.find_columns(schema.names)
    _refuse_image_lists(schema, columns, table)
    table.check(columns, schema.names)
    wanted = list(dict.fromkeys(name for names in columns.values() for name in names))
    holds_images = any(_is_binary(schema.field(name).type) for name in columns.get("image", ()))
    return wanted, IMAGE_BATCH_ROWS if holds_images else BATCH_ROWS


def arrow_rows(path: Path, table: TableFormat, counts: ListingCounts) -> Iterator[TableRow]:
    """Rows of an Arrow stream, as `datasets.save_to_disk` writes it, or of an Arrow file (Feather).

    Arguments and errors as of `parquet_rows`.
    """
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as file:
            is_file = bytes(file.read(6)) == b"ARROW1"
            file.seek(max(0, file.size() - 4))
            is_ended = is_file or bytes(file.read(4)) == bytes(4)
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            wanted, size = _find_wanted(reader.schema, table)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            for batch in batches:
                batch = batch.select(wanted)
                counts.lines += batch.num_rows
                for start in range(0, batch.num_rows, size):
                    rows = _checked_rows(batch.slice(start, size), number, table)
                    number += len(rows)
                    yield from rows
            if not is_ended:
                counts.lines += 1
                yield TableRow(number, damage=f"the Arrow stream ends early, after row {number - 1}", is_end=True)
    except (*READ_ERRORS, pa.ArrowException) as error:
        counts.lines += 1
        yield TableRow(number, damage=f"the Arrow file cannot be read from row {number} on: {error}", is_end=True)


def _is_binary(kind: Any) -> bool:
    """Whether a column of this Arrow type can hold images: bytes, or a struct with bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _refuse_image_lists(schema: Any, columns: dict[str, list[str]], table: TableFormat) -> None:
    """Refuse a table whose only images are lists of images.

    Raises:
        DataError: it names the column.
    """
    import pyarrow.types as types

    if "url" in columns or any(_is_binary(schema.field(name).type) for name in columns.get("image", ())):
        return
    for name in schema.names:
        kind = schema.field(name).type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if plain_name(name) in IMAGE_LISTS and is_list and _is_binary(kind.value_type):
            raise DataError(
                f"{table.name}: column '{name}' is a list of images; expected one image per row; write one row per "
                "image, e.g. with explode() of pandas or polars"
            )


def _checked_rows(batch: Any, first: int, table: TableFormat) -> list[TableRow]:
    """`_batch_rows` of data that nobody has checked: offsets that lead out of an Arrow file would end the process."""
    import pyarrow as pa

    rows: list[TableRow] = []
    try:
        batch.validate(full=True)
        return _batch_rows(batch, first, table)
    except pa.ArrowInvalid:
        for n in range(batch.num_rows):
            row = batch.slice(n, 1)
            try:
                row.validate(full=True)
                rows += _batch_rows(row, first + n, table)
            except pa.ArrowInvalid as error:
                rows.append(TableRow(first + n, damage=f"the row's data is damaged: {error}"))
    return rows


def _batch_rows(batch: Any, first: int, table: TableFormat) -> list[TableRow]:
    """The rows of a record batch; a text that is no UTF-8 is a damaged row."""
    try:
        return [make_row(first + n, row, table) for n, row in enumerate(batch.to_pylist())]
    except UnicodeDecodeError:
        rows = []
        for n in range(batch.num_rows):
            try:
                rows.append(make_row(first + n, batch.slice(n, 1).to_pylist()[0], table))
            except UnicodeDecodeError as error:
                rows.append(TableRow(first + n, damage=f"a text that is no UTF-8: {error.reason}"))
        return rows
