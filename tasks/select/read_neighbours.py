"""Read the mined neighbours and the vectors that this batch's selection needs, and no more.

Rows of `data/neighbours` are read a block of row groups at a time and go to disk with their images as numbers, cut into
partitions by query: all rows of a query lie in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import DataError
from tasks.select.candidates import MinedRows, rank_among_all
from tasks.select.negatives import Vectors
from tasks.select.spill import Spill, WorkingMemory
from tasks.store import Store
from tasks.store.id_order import id_order

if TYPE_CHECKING:
    import pyarrow as pa

ENDS = ("query_image_id", "target_image_id")
BLOCK_ROW_BYTES = 150  # of memory for a row while its ids are strings
RANGE_ROW_BYTES = 300  # of memory for a mined row while candidates are merged and put in order
MINED = np.dtype([("query", "<i4"), ("target", "<i4"), ("similarity", "<f4"), ("rank", "<i4")])
# Rows of this batch; rows of earlier batches for images that this encoder's new rows name; all rows, of any batch, of
# queries that lost a pair to a takedown.
NEW, EARLIER, LOST = "new", "earlier", "lost"
KINDS = (NEW, EARLIER, LOST)


class _IdCodes:
    """Ids as numbers in the order in which they first occur.

    Attributes:
        ids: (p) strings.
    """

    def __init__(self) -> None:
        import pyarrow as pa

        self.ids = pa.array([], pa.string())

    def find(self, ids: pa.Array) -> np.ndarray:
        """(n,) int32, the codes of ids; -1 for those without."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return np.array(pc.fill_null(pc.index_in(ids, value_set=self.ids), pa.scalar(-1, pa.int32())))

    def encode(self, ids: pa.Array) -> np.ndarray:
        """(n,) int32, the codes of ids; those that are new get the next ones."""
        import pyarrow as pa
        import pyarrow.compute as pc

        codes = self.find(ids)
        if len(unknown := np.flatnonzero(codes < 0)):
            missing = ids.take(pa.array(unknown))
            new = pc.unique(missing)
            codes[unknown] = np.asarray(pc.index_in(missing, value_set=new)) + len(self.ids)
            self.ids = pa.concat_arrays([self.ids, new])
        return codes


def read_mined(store: Store, paths: Path | Sequence[Path], memory: WorkingMemory) -> Iterator[pa.Table]:
    """Rows of table `neighbours`, a block at a time; queries, which repeat, as a dictionary."""
    columns = [*ENDS, "similarity", "rank"]
    rows = memory.rows(BLOCK_ROW_BYTES)
    return store.iter_blocks(paths, "neighbours", columns, rows=rows, encoded=["query_image_id"])


def rows_with_queries(table: pa.Table, queries: pa.Array) -> pa.Table:
    """Rows of table `neighbours`, as `read_mined` gives it, whose query is one of some."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, rows = _dictionary(table.column("query_image_id"))
    is_wanted = pc.is_in(ids, value_set=queries).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(is_wanted[rows]))


def _dictionary(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The entries of all chunks' dictionaries, and the index of each row's among them, (n,) int64."""
    import pyarrow as pa

    chunks = column.chunks
    starts = np.cumsum([0, *(len(c.dictionary) for c in chunks)])
    rows = [c.indices.to_numpy() + start for c, start in zip(chunks, starts.tolist(), strict=False)]
    entries = pa.concat_arrays([pa.array([], pa.string()), *(c.dictionary for c in chunks)])
    return entries, np.concatenate([np.zeros(0, np.int64), *rows])


def mined_rows(table: pa.Table, queries: np.ndarray, targets: np.ndarray) -> MinedRows:
    """Rows of table `neighbours` whose images are given as indices, (n,) int32 each."""
    return MinedRows(queries, targets, table.column("similarity").to_numpy(), table.column("rank").to_numpy())


@dataclass(frozen=True)
class MinedOnDisk:
    """What the stage reads of table `neighbours`, on disk.

    Attributes:
        image_ids: (p) strings, sorted: every image that the rows name.
        partition: (p,) int32, the partition in which each image's rows as query lie.
        partitions: how many there are.
        encoders: roles.
        spills: (encoder, kind) -> the rows, their images as codes.
        index_of_code: (p,) int32, the index into `image_ids` of each code.
    """

    image_ids: pa.Array
    partition: np.ndarray
    partitions: int
    encoders: Sequence[str]
    spills: dict[tuple[str, str], Spill]
    index_of_code: np.ndarray

    def read(self, encoder: str, kind: str, partition: int) -> MinedRows:
        """An encoder's rows of one of KINDS, in the order of their files."""
        rows = self.spills[encoder, kind].read(partition)
        queries, targets = (self.index_of_code[rows[end]] for end in ("query", "target"))
        return MinedRows(queries, targets, rows["similarity"].copy(), rows["rank"].copy())

    def remove(self, partition: int) -> None:
        """Delete the rows of one partition."""
        for spill in self.spills.values():
            spill.remove(partition)

    def has(self, encoder: str, kind: str) -> bool:
        """Whether an encoder has any row of that kind."""
        return bool(self.spills[encoder, kind].counts.any())


class _MinedWriter:
    """Encode rows and append them to their partitions."""

    def __init__(self, folder: Path, encoders: Sequence[str], partitions: int) -> None:
        self.codes, self.partitions = _IdCodes(), partitions
        self.spills = {
            (encoder, kind): Spill(folder, f"{encoder}-{kind}", MINED, partitions)
            for encoder in encoders
            for kind in KINDS
        }

    def add(self, encoder: str, kind: str, table: pa.Table, wanted: np.ndarray | None = None) -> np.ndarray:
        """Append the rows of a block.

        Args:
            wanted: bool by code; only rows whose query is set there are appended.
        Returns:
            The codes that were appended.
        """
        import pyarrow as pa

        entries, entry_rows = _dictionary(table.column("query_image_id"))
        if wanted is None:
            queries = self.codes.encode(entries)[entry_rows]
        else:
            found = self.codes.find(entries)
            is_wanted = np.zeros(len(found), bool)
            is_known = (found >= 0) & (found < len(wanted))
            is_wanted[is_known] = wanted[found[is_known]]
            kept = np.flatnonzero(is_wanted[entry_rows])
            queries, table = found[entry_rows[kept]], table.take(pa.array(kept))
        targets = self.codes.encode(table.column("target_image_id").combine_chunks())
        rows = np.empty(len(queries), MINED)
        rows["query"], rows["target"] = queries, targets
        rows["similarity"], rows["rank"] = table.column("similarity").to_numpy(), table.column("rank").to_numpy()
        self.spills[encoder, kind].add(rows, queries % self.partitions)
        return np.concatenate([queries, targets])


def read_candidates(
    store: Store, encoders: Sequence[str], batch: str, lost: Set[str], memory: WorkingMemory, folder: Path
) -> MinedOnDisk:
    """Read the candidates of this batch, and what was mined for the images that they name.

    Each earlier file is read once, or twice after a takedown.

    Args:
        store: to read from.
        encoders: roles.
        batch: the run's.
        lost: queries that lost a pair to a takedown: all that was ever mined for them are candidates once more.
        memory: for the blocks, and for a partition later.
        folder: for the rows.
    Raises:
        DataError: an encoder has no file of this batch.
    """
    import pyarrow as pa

    files = {encoder: _neighbour_files(store, encoder, batch) for encoder in encoders}
    paths = [path for both in files.values() for some in both for path in some]
    rows = sum(store.count_rows(path, "neighbours") for path in paths)
    writer = _MinedWriter(folder, encoders, memory.pieces(rows, RANGE_ROW_BYTES))
    is_lost = _mark(np.zeros(0, bool), writer.codes.encode(pa.array(sorted(lost), pa.string())))
    for encoder, (of_batch, before) in files.items():
        is_named = np.zeros(0, bool)
        for table in read_mined(store, of_batch, memory):
            is_named = _mark(is_named, writer.add(encoder, NEW, table))
        for table in read_mined(store, [*before, *of_batch] if lost else [], memory):
            is_named = _mark(is_named, writer.add(encoder, LOST, table, is_lost))
        for table in read_mined(store, before, memory):
            writer.add(encoder, EARLIER, table, is_named)
    order = id_order(writer.codes.ids)
    index_of_code = np.empty(len(order), np.int32)
    index_of_code[order] = np.arange(len(order), dtype=np.int32)
    partition = (order % writer.partitions).astype(np.int32)
    image_ids = writer.codes.ids.take(pa.array(order))
    return MinedOnDisk(image_ids, partition, writer.partitions, encoders, writer.spills, index_of_code)


def _mark(mask: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The mask, longer where a code needs it, set at codes."""
    if (size := int(codes.max(initial=-1)) + 1) > len(mask):
        mask = np.concatenate([mask, np.zeros(size - len(mask), bool)])
    mask[codes] = True
    return mask


def _neighbour_files(store: Store, encoder: str, batch: str) -> tuple[list[Path], list[Path]]:
    """An encoder's files of this batch, and those of other batches.

    Raises:
        DataError: there are none of this batch.
    """
    files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
    of_batch = [f for f in files if f.stem.rpartition("-")[0] == batch]
    if not of_batch:
        raise DataError(
            f"select: no candidates of batch {batch} in data/neighbours/{encoder}; "
            f"run `python -m tasks mine {encoder}` first"
        )
    return of_batch, [f for f in files if f not in of_batch]


def rank_new(new: MinedRows, earlier: MinedRows, top_k: int, is_as_mined: bool) -> MinedRows:
    """This batch's candidates of some queries, ranked among all that was mined for them.

    Args:
        new, earlier: the queries' rows.
        top_k: `mine.neighbours`, a count.
        is_as_mined: whether the encoder has no earlier row: the rows then stay ranked as they were mined, since the
            table holds 32 bits of the similarities, which may tie where 64 do not.
    """
    if is_as_mined:
        return new.take(new.ranks < top_k)
    return rank_among_all(_above_threshold(new, earlier, top_k), earlier, top_k)


def _above_threshold(new: MinedRows, earlier: MinedRows, top_k: int) -> MinedRows:
    """Those of this batch's rows that may be among their query's k nearest: a query that had k neighbours in some
    batch needs none below the k-th of them.
    """
    is_kth = earlier.ranks == top_k - 1
    queries, which = np.unique(earlier.queries[is_kth], return_inverse=True)
    thresholds = np.full(len(queries) + 1, -2, np.float32)
    np.maximum.at(thresholds, which, earlier.similarities[is_kth])
    at = np.searchsorted(queries, new.queries)
    at[(np.append(queries, -1)[at]) != new.queries] = len(queries)
    return new.take(new.similarities >= thresholds[at])


def open_vectors(store: Store, encoders: Sequence[str], image_ids: pa.Array) -> Vectors:
    """The stored vectors of some images; they stay in their files.

    Args:
        store: to read from.
        encoders: roles.
        image_ids: (p) strings, sorted.
    """
    tables = {}
    for encoder in encoders:
        corpus = store.read_corpus(encoder)
        tables[encoder] = (corpus.ids, corpus.rows)
    return Vectors(image_ids, tables)
