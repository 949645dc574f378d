"""The stored bytes of kept images by their row in the index of duplicates, of earlier batches and of this one."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from tasks.ingest.shards import ShardWriter
from tasks.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_FILES = 4  # of the images table, whose places are in memory


class KeptImages:
    """Where each kept image lies.

    Args:
        store: whose images tables are the index's first rows, in their order.
        shards: of this batch.
    """

    def __init__(self, store: Store, shards: ShardWriter) -> None:
        self._store, self._shards = store, shards
        self._files = store.table_files("images")
        self._ends = np.cumsum([0, *(store.count_rows(path, "images") for path in self._files)])
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._names: list[str] = []  # of this batch's shards; below, one entry an image
        self._shard, self._offset, self._size = array("l"), array("q"), array("q")

    def add(self, shard: str, offset_bytes: int, size_bytes: int) -> None:
        """Append an image of this batch."""
        if not self._names or self._names[-1] != shard:
            self._names.append(shard)
        self._shard.append(len(self._names) - 1)
        self._offset.append(offset_bytes)
        self._size.append(size_bytes)

    def read(self, row: int) -> bytes | None:
        """The image of this row of the index; None where its shard is not here."""
        own = row - int(self._ends[-1])
        if own >= 0:
            return self._shards.read(self._names[self._shard[own]], self._offset[own], self._size[own])
        number = int(np.searchsorted(self._ends, row, side="right")) - 1
        place = self._table(number).slice(row - int(self._ends[number]), 1).to_pylist()[0]
        return self._shards.read(place["shard"], place["offset_bytes"], place["size_bytes"])

    def _table(self, number: int) -> pa.Table:
        """Places of the images of one file of the images table."""
        table = self._tables.pop(number, None)
        if table is None:
            columns = ["shard", "offset_bytes", "size_bytes"]
            table = self._store.read(self._files[number], "images", columns, encoded=["shard"])
        self._tables[number] = table
        while len(self._tables) > KEPT_FILES:
            self._tables.popitem(last=False)
        return table
