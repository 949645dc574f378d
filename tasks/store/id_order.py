"""Ids as integers: an id's index among the sorted distinct ids.

Comparing the integers is comparing the ids by their bytes, so that sorting by id and breaking ties by id need no
strings. Pure functions over Arrow columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def id_order(strings: pa.Array) -> np.ndarray:
    """The order of strings by their bytes, like a stable argsort.

    Ids are hashes: their first eight bytes, read as one integer, distinguish nearly all of them. Strings that are equal
    in these are compared whole; where they are many, Arrow sorts everything. 303,000 ids take 0.03 s this way, 0.13 s
    by Arrow.

    Args:
        strings: (n) without nulls.
    Returns:
        (n,) int64.
    """
    import pyarrow.compute as pc

    count, (_, offsets_buffer, data_buffer) = len(strings), strings.buffers()
    if not count or data_buffer is None:
        return np.arange(count)
    offsets = np.frombuffer(offsets_buffer, np.int32)[strings.offset : strings.offset + count + 1].astype(np.int64)
    text = np.frombuffer(data_buffer, np.uint8)
    first_bytes = np.zeros((count, 8), np.uint8)
    for byte in range(8):
        has_byte = offsets[:-1] + byte < offsets[1:]
        first_bytes[has_byte, byte] = text[offsets[:-1][has_byte] + byte]
    keys = first_bytes.view(">u8").ravel().astype(np.uint64)
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(equal) > count // 20:
        return np.asarray(pc.sort_indices(strings).to_numpy()).astype(np.int64)
    starts = equal[np.diff(equal, prepend=-2) > 1]
    ends = equal[np.diff(equal, append=count + 1) > 1] + 2
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        order[start:end] = sorted(order[start:end].tolist(), key=lambda n: strings[n].as_py().encode())
    return order


def encode_ids(columns: Sequence[pa.ChunkedArray]) -> tuple[pa.Array, list[np.ndarray]]:
    """Replace the strings of several columns by integers that sort like the strings.

    Args:
        columns: strings without nulls, plain or dictionary-encoded.
    Returns:
        The p distinct strings, sorted; and for each column (n,) int32, each row's index among them.
    """
    import pyarrow as pa

    entries, rows_of_columns = _entries(columns)
    entries = entries.dictionary_encode()
    order = id_order(entries.dictionary)
    codes = np.empty(len(order), np.int32)
    codes[order] = np.arange(len(order), dtype=np.int32)
    entry_codes = codes[entries.indices.to_numpy()]
    empty = np.zeros(0, np.int32)
    return entries.dictionary.take(pa.array(order)), [
        np.concatenate([empty, *(entry_codes[rows] for rows in chunks)]).astype(np.int32, copy=False)
        for chunks in rows_of_columns
    ]


def index_in_ids(column: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """Each row's index in `ids`, (n,) int32; -1 where it is absent."""
    import pyarrow as pa
    import pyarrow.compute as pc

    index = pc.fill_null(pc.index_in(column, value_set=ids), pa.scalar(-1, pa.int32()))
    return np.asarray(index.to_numpy())


def _entries(columns: Sequence[pa.ChunkedArray]) -> tuple[pa.Array, list[list[np.ndarray]]]:
    """The strings of all chunks, one chunk after the other (of a dictionary each used one once); and per column and
    chunk, the index of each row among them.
    """
    import pyarrow as pa

    entries: list[pa.Array] = [pa.array([], pa.string())]
    rows_of_columns: list[list[np.ndarray]] = []
    start = 0
    for column in columns:
        rows_of_columns.append([])
        for chunk in column.chunks:
            if pa.types.is_dictionary(column.type):
                rows = chunk.indices.to_numpy()
                is_used = np.zeros(len(chunk.dictionary), bool)  # a filter leaves the dictionary as it was
                is_used[rows] = True
                entries.append(
                    chunk.dictionary if is_used.all() else chunk.dictionary.take(pa.array(np.flatnonzero(is_used)))
                )
                rows_of_columns[-1].append((np.cumsum(is_used) - 1)[rows] + start)
            else:
                entries.append(chunk)
                rows_of_columns[-1].append(np.arange(start, start + len(chunk)))
            start += len(entries[-1])
    return pa.concat_arrays(entries), rows_of_columns
