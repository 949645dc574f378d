"""Rows of a CSV, TSV, JSONL, Parquet or Arrow table; one that cannot be read is a row that says why.

A `.tsv` has no quoting: each line is one row. In a `.csv` a quoted text may span lines; but where a line within it is a
row of its own, or no quote closes it within RECORD_LINES, the quote counts as a character, and each line as a row.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tasks.config import ARROW_TABLES
from tasks.errors import DataError
from tasks.sources.columnar import TableRow, arrow_rows, make_row, parquet_rows
from tasks.sources.columns import TableFormat, looks_like_url
from tasks.sources.counts import ListingCounts
from tasks.sources.lines import FIELD_CHARS, Line, read_text_lines

RECORD_LINES = 200  # most lines of one quoted record of a CSV
DELIMITERS = (",", ";", "\t", "|")  # of a CSV, by its header
_IMAGE_NAME = re.compile(r"[^\n]*\.(jpe?g|jfif|jpe|png|webp|avif|gif|tiff?|bmp)\s*", re.IGNORECASE)


def read_rows(path: Path, table: TableFormat, counts: ListingCounts | None = None) -> Iterator[TableRow]:
    """All rows of a table, a few thousand in memory; damage is a row.

    Args:
        path: the file; its suffix decides the format. CSV and JSONL may be compressed (.gz, .zst): decompressed as they
            are read, up to MAX_COMPRESSION_RATIO times their size.
        table: how its columns are found.
        counts: where rows are counted, and what is odd about the table is noted.
    Raises:
        DataError: a column that it must have is missing.
    """
    counts = counts or ListingCounts()
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if is_columnar := name.endswith((".parquet", *ARROW_TABLES)):
        read = parquet_rows if name.endswith(".parquet") else arrow_rows
        rows = read(path, table, counts)
    else:
        lines = read_text_lines(path, table.source.encoding)
        if name.endswith((".jsonl", ".ndjson")):
            rows = _jsonl_rows(lines, table, counts)
        else:
            rows = _DelimitedTable(lines, table, counts, "\t" if name.endswith(".tsv") else None).rows()
    for row in rows:
        counts.rows += 1
        counts.damaged_rows += bool(row.damage)
        counts.unread_rows += row.unread
        is_of_line = row.damage and not row.is_end and not is_columnar
        yield replace(row, damage=f"line {row.number}: {row.damage}") if is_of_line else row


def _jsonl_rows(lines: Iterator[Line], table: TableFormat, counts: ListingCounts) -> Iterator[TableRow]:
    names: dict[str, None] = {}  # of all columns seen, in their order
    fields: dict[str, list[str]] = {}
    objects, first_damage = 0, ""
    for line in lines:
        if not line.damage and not line.text.strip("\ufeff \t"):
            continue
        row, damage = None, line.damage
        counts.lines += 1
        if not damage:
            try:
                row = json.loads(line.text)
                damage = "" if isinstance(row, dict) else f"a {type(row).__name__}; expected one JSON object per line"
            except json.JSONDecodeError as error:
                damage = f"no JSON: {error.msg} at character {error.colno}; expected one JSON object per line"
            except (ValueError, RecursionError) as error:
                damage = f"no JSON: {error}; expected one JSON object per line"
        if damage or not isinstance(row, dict):
            first_damage = first_damage or f"line {line.number}: {damage}"
            yield TableRow(line.number, damage=damage, is_end=line.is_end)
            continue
        objects += 1
        if len(names) < 1_000:
            names.update(dict.fromkeys(row))
        fields.update(table.find_columns(list(row)))
        yield make_row(line.number, row, table)
    if objects:
        table.check(fields, list(names))
    elif first_damage and "JSON" in first_damage:
        raise DataError(f"{table.name}: {first_damage}; correct or replace the file")


class _DelimitedTable:
    """A CSV or TSV: its lines, put together to rows.

    Args:
        lines: of the file.
        table: how its columns are found.
        counts: where swallowed lines are noted.
        delimiter: '\\t' for a table without quoting; None for a CSV, whose header decides.
    """

    def __init__(self, lines: Iterator[Line], table: TableFormat, counts: ListingCounts, delimiter: str | None) -> None:
        csv.field_size_limit(2 * FIELD_CHARS)
        self._lines, self._table, self._counts = lines, table, counts
        self._has_quotes, self._delimiter = delimiter is None, delimiter or ","
        self._back: list[Line] = []  # lines that were read ahead, last first
        self._names: list[str] = []
        self._long_rows = self._long_lines = 0  # rows of several lines
        self._open_lines = 0  # read, and of no row so far

    def rows(self) -> Iterator[TableRow]:
        """All rows below the header."""
        is_first, is_empty = True, True
        while (line := self._next()) is not None:
            if line.damage:
                is_empty = False
                yield self._count(TableRow(line.number, damage=line.damage, is_end=line.is_end))
            elif line.text.strip():
                if is_first:
                    is_first = False
                    if self._read_header(line):
                        self._open_lines -= 1
                        continue
                yield self._count(self._read_row(line))
            else:
                self._open_lines -= 1
        if self._long_rows:
            self._counts.note(
                f"{self._table.name}: {self._long_rows} of its rows have a text of several lines, "
                f"{self._long_lines} lines in all"
            )
        if is_first and is_empty:
            self._counts.lines += 1
            yield TableRow(1, damage="the table has no header and no row", is_end=True)

    def _next(self) -> Line | None:
        line = self._back.pop() if self._back else next(self._lines, None)
        self._open_lines += line is not None
        return line

    def _put_back(self, lines: list[Line]) -> None:
        """Lines that were read ahead are read again, the first of them next."""
        self._back += lines[::-1]
        self._open_lines -= len(lines)

    def _count(self, row: TableRow) -> TableRow:
        """The row, for which the lines that were read since the last one are counted: one, or a line is lost."""
        self._counts.lines += self._open_lines
        self._open_lines = 0
        return row

    def _read_header(self, line: Line) -> bool:
        """Take the names of the columns from the first line; returns whether it is a header."""
        if self._has_quotes:
            self._delimiter = next((d for d in DELIMITERS if d in line.text), ",")
        names = self._split(line.text.removeprefix("\ufeff"))
        configured = self._table.source.columns.values()
        positions = self._table.positions.values()
        if is_header := not positions or any(str(column) in names for column in configured):
            self._names = names
        elif max(positions) >= len(names):
            raise DataError(
                f"{self._table.name}: column {max(positions)} is missing, its first line has {len(names)} columns, "
                f"counted from 0; correct ingest.sources '{self._table.source.name}' columns"
            )
        else:
            self._names = [str(n) for n in range(len(names))]
        self._table.check(self._table.find_columns(self._names), self._names)
        return is_header

    def _split(self, text: str) -> list[str]:
        """The fields of one line."""
        if not self._has_quotes or '"' not in text:
            return text.split(self._delimiter)
        return next(csv.reader([text], delimiter=self._delimiter), [])

    def _read_row(self, line: Line) -> TableRow:
        if not self._has_quotes or '"' not in line.text:
            return self._make(line.number, line.text.split(self._delimiter))
        taken, is_open = [line], False

        def feed() -> Iterator[str]:
            nonlocal is_open
            yield line.text + "\n"
            while len(taken) < RECORD_LINES and (more := self._next()) is not None:
                if more.damage:
                    self._put_back([more])
                    break
                taken.append(more)
                yield more.text + "\n"
            is_open = True  # a quote is open, and there is no line that could close it

        try:
            fields = next(csv.reader(feed(), delimiter=self._delimiter), [])
        except csv.Error as error:
            self._put_back(taken[1:])
            return TableRow(line.number, damage=f"no row of a CSV: {error}")
        if not is_open and not any(self._is_row(more.text) for more in taken[1:]):
            if len(taken) > 1:
                self._long_rows += 1
                self._long_lines += len(taken)
                self._open_lines -= len(taken) - 1
            return self._make(line.number, fields)
        self._put_back(taken[1:])
        self._counts.note(
            f"{self._table.name}: line {line.number} opens a quote that would swallow the rows behind it; "
            "each line was read as a row of its own"
        )
        return self._make(line.number, line.text.split(self._delimiter))

    def _is_row(self, text: str) -> bool:
        """Whether a line within a quoted text is a row of its own: all its fields, and the key where it belongs."""
        fields = self._split(text)
        if len(fields) != len(self._names):
            return False
        columns = self._table.find_columns(self._names)
        keys = [fields[self._names.index(name)] for key in self._table.keys for name in columns.get(key, ())]
        return any(looks_like_url(key) or _IMAGE_NAME.fullmatch(key) for key in keys)

    def _make(self, number: int, fields: list[str]) -> TableRow:
        """A row of these fields; a comma too many belongs to a caption in the last column, else it is damage."""
        extra = fields[len(self._names) :]
        if any(text.strip() for text in extra):
            captions = self._table.find_columns(self._names).get("caption", [])
            if self._names[-1] not in captions:
                return TableRow(
                    number, damage=f"{len(fields)} fields, the table has {len(self._names)} columns: which is which?"
                )
            last = len(self._names) - 1
            fields = [*fields[:last], self._delimiter.join(fields[last:])]
        values = dict(zip(self._names, fields, strict=False))
        if len(values) < len(self._names):  # of two columns of one name the first counts
            values = dict(reversed(list(zip(self._names, fields, strict=False))))
        return make_row(number, values, self._table)
