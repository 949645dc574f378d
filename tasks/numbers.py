"""Strings of Arrow columns as numbers in the strings' order, and back. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def numbered(columns: Sequence[pa.ChunkedArray]) -> tuple[pa.Array, list[np.ndarray]]:
    """The different strings of several columns, rising, and for each column every row's place among them.

    Args:
        columns: strings without nulls, or such dictionaries.
    Returns:
        (p) strings, and (n,) int32 a column.
    """
    import pyarrow.compute as pc

    entries, parts = _entries(columns)
    entries = entries.dictionary_encode()
    order = pc.sort_indices(entries.dictionary)
    place = np.empty(len(order), np.int32)
    place[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return entries.dictionary.take(order), _spread(place[entries.indices.to_numpy()], parts)


def numbers_in(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """Every row's place in `names`, (n,) int32; -1 where it is not there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    place = pc.fill_null(pc.index_in(column, value_set=names), pa.scalar(-1, pa.int32()))
    return np.asarray(place.to_numpy())


def _entries(columns: Sequence[pa.ChunkedArray]) -> tuple[pa.Array, list[list[np.ndarray]]]:
    """The strings that chunks name, one chunk's after the other's (a dictionary's each once); and each chunk's rows as places among them."""
    import pyarrow as pa

    entries: list[pa.Array] = [pa.array([], pa.string())]
    parts: list[list[np.ndarray]] = []
    start = 0
    for column in columns:
        parts.append([])
        for chunk in column.chunks:
            if pa.types.is_dictionary(column.type):
                rows = chunk.indices.to_numpy()
                is_used = np.zeros(len(chunk.dictionary), bool)  # a filter leaves the dictionary as it was
                is_used[rows] = True
                entries.append(chunk.dictionary if is_used.all() else chunk.dictionary.take(pa.array(np.flatnonzero(is_used))))
                parts[-1].append((np.cumsum(is_used) - 1)[rows] + start)
            else:
                entries.append(chunk)
                parts[-1].append(np.arange(start, start + len(chunk)))
            start += len(entries[-1])
    return pa.concat_arrays(entries), parts


def _spread(values: np.ndarray, parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate([np.zeros(0, np.int32), *(values[rows] for rows in of)]).astype(np.int32, copy=False) for of in parts]
