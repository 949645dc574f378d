"""Read the mined neighbours and the vectors that this batch's selection needs, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.errors import DataError
from tasks.select.candidates import MinedRows, rank_among_all
from tasks.select.negatives import Vectors
from tasks.store import Store
from tasks.store.id_order import encode_ids

if TYPE_CHECKING:
    import pyarrow as pa

ENDS = ("query_image_id", "target_image_id")


class MinedTables(NamedTuple):
    """What the stage reads of table `neighbours`.

    Attributes:
        image_ids: (p) strings, sorted: every image that the rows name.
        candidates: encoder -> this batch's, ranked among all that was mined for their queries, and those of queries
            that lost a pair.
        mined: encoder -> all rows of any batch whose query the candidates name, ranked as their own batch did.
        counts: encoder -> this batch's candidates, a count.
    """

    image_ids: pa.Array
    candidates: dict[str, MinedRows]
    mined: dict[str, MinedRows]
    counts: dict[str, int]


def read_mined(store: Store, paths: Path | Iterable[Path]) -> pa.Table:
    """Rows of table `neighbours`; queries, which repeat, as a dictionary."""
    columns = [*ENDS, "similarity", "rank"]
    return store.read(paths, "neighbours", columns, encoded=["query_image_id"])


def mined_rows(table: pa.Table, queries: np.ndarray, targets: np.ndarray) -> MinedRows:
    """Rows of table `neighbours` whose images are given as indices, (n,) int32 each."""
    return MinedRows(queries, targets, table.column("similarity").to_numpy(), table.column("rank").to_numpy())


def rows_with_queries(table: pa.Table, queries: pa.Array) -> pa.Table:
    """Rows of table `neighbours`, as `read_mined` gives it, whose query is one of some."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = table.column("query_image_id").chunks
    ids = pa.concat_arrays([pa.array([], pa.string()), *(c.dictionary for c in chunks)])
    # one call for all chunks: each call builds a hash table of the queries
    is_wanted = pc.is_in(ids, value_set=queries).to_numpy(zero_copy_only=False)
    starts = np.cumsum([0, *(len(c.dictionary) for c in chunks)])
    masks = [
        pa.array(is_wanted[start:][c.indices.to_numpy()]) for start, c in zip(starts.tolist(), chunks, strict=False)
    ]
    return table.filter(pa.chunked_array(masks, pa.bool_()))


def read_candidates(store: Store, encoders: Sequence[str], batch: str, top_k: int, lost: Set[str]) -> MinedTables:
    """Read the candidates of this batch, and what was mined for the images that they name.

    Each earlier file is read once, or twice after a takedown; of it only the rows that are needed stay in memory.

    Args:
        store: to read from.
        encoders: roles.
        batch: the run's.
        top_k: `mine.neighbours`, a count.
        lost: queries that lost a pair to a takedown: all that was ever mined for them are candidates once more.
    """
    import pyarrow as pa

    # of each encoder: this batch's rows, earlier rows, rows of queries that lost a pair
    tables: list[tuple[pa.Table, pa.Table, pa.Table]] = []
    for encoder in encoders:
        of_batch, before = _neighbour_files(store, encoder, batch)
        new = read_mined(store, of_batch)
        lost_ids = pa.array(lost, pa.string())
        of_lost = [rows_with_queries(read_mined(store, p), lost_ids) for p in (*before, *of_batch) if lost]
        ids = encode_ids([t.column(c) for t in (new, *of_lost) for c in ENDS if before])[0]
        older = [rows_with_queries(read_mined(store, path), ids) for path in before]
        none = new.slice(0, 0)
        tables.append((new, pa.concat_tables([none, *older]), pa.concat_tables([none, *of_lost])))
    image_ids, columns = encode_ids([t.column(c) for three in tables for t in three for c in ENDS])
    result = MinedTables(image_ids, {}, {}, {})
    for n, (encoder, three) in enumerate(zip(encoders, tables, strict=True)):
        new_rows, earlier, lost_rows = (
            mined_rows(table, *columns[6 * n + 2 * k : 6 * n + 2 * k + 2]) for k, table in enumerate(three)
        )
        result.mined[encoder] = new_rows.concatenated(earlier)
        if len(earlier.queries):
            ranked = rank_among_all(_above_threshold(new_rows, earlier, top_k, len(image_ids)), earlier, top_k)
        else:  # as they were mined: the table holds 32 bits of the similarities, which may tie where 64 do not
            ranked = new_rows.take(new_rows.ranks < top_k)
        result.counts[encoder] = len(ranked.queries)
        nothing = lost_rows.take(np.zeros(0, np.int64))
        result.candidates[encoder] = ranked.concatenated(rank_among_all(lost_rows, nothing, top_k))
    return result


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


def _above_threshold(new: MinedRows, earlier: MinedRows, top_k: int, count: int) -> MinedRows:
    """Those of this batch's rows that may be among their query's k nearest: a query that had k neighbours in some
    batch needs none below the k-th of them. `count`: images that there are.
    """
    thresholds = np.full(count, -2, np.float32)
    is_kth = earlier.ranks == top_k - 1
    np.maximum.at(thresholds, earlier.queries[is_kth], earlier.similarities[is_kth])
    return new.take(new.similarities >= thresholds[new.queries])


def read_vectors(store: Store, encoders: Sequence[str], image_ids: pa.Array, mask: np.ndarray | None = None) -> Vectors:
    """The stored vectors of some images.

    Args:
        store: to read from.
        encoders: roles.
        image_ids: (p) strings, sorted.
        mask: (p,) bool, the images whose vectors are read; all when absent.
    """
    import pyarrow as pa

    wanted = image_ids if mask is None else image_ids.filter(pa.array(mask))
    return Vectors(image_ids, {e: store.read_wanted(e, wanted) for e in encoders})
