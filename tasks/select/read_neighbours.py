"""Read the mined neighbours and vectors that this week's selection needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import Params
from tasks.errors import DataError
from tasks.select.candidates import Candidates, Mined, with_merged_ranks
from tasks.select.negatives import Negatives, Retrieved, Vectors, copy_limits, hard_negatives
from tasks.store import Store
from tasks.store.id_order import encode_ids

if TYPE_CHECKING:
    import pyarrow as pa


class _Read(NamedTuple):
    """What the stage reads of table `neighbours`.

    Attributes:
        names: (p) strings, rising: every image that the rows name.
        candidates: encoder -> this batch's, ranked among all that was mined for their queries, and those of queries
            that lost a pair.
        mined: encoder -> all rows of any batch whose query the candidates name, ranked as their own batch did.
        counts: encoder -> this batch's candidates, a count.
    """

    names: pa.Array
    candidates: dict[str, Mined]
    mined: dict[str, Mined]
    counts: dict[str, int]


def _read_mined(store: Store, paths: Path | Iterable[Path]) -> pa.Table:
    """Rows of table `neighbours`; queries, which repeat, as a dictionary."""
    return store.read(
        paths, "neighbours", ["query_image_id", "target_image_id", "similarity", "rank"], encoded=["query_image_id"]
    )


def _neighbour_files(store: Store, encoder: str, batch: str) -> tuple[list[Path], list[Path]]:
    """An encoder's files of this batch, and the others."""
    files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
    of_batch = [f for f in files if f.stem.rpartition("-")[0] == batch]
    if not of_batch:
        raise DataError(
            f"select: no candidates of batch {batch} in data/neighbours/{encoder}; run `python -m tasks mine {encoder}` first"
        )
    return of_batch, [f for f in files if f not in of_batch]


def _read_candidates(store: Store, encoders: Sequence[str], batch: str, neighbours: int, lost: Set[str]) -> _Read:
    """Candidates of this batch, and what was mined for the images that they name; of earlier files, each read once
    (twice after a takedown), no more.

    Args:
        lost: queries that lost a pair to a takedown: all that was ever mined for them are candidates once more.
    """
    import pyarrow as pa

    # of each encoder: this batch's rows, earlier ones, those of lost queries
    tables: list[tuple[pa.Table, pa.Table, pa.Table]] = []
    for encoder in encoders:
        of_batch, before = _neighbour_files(store, encoder, batch)
        brought = _read_mined(store, of_batch)
        of_lost = [_rows_of(_read_mined(store, p), pa.array(lost, pa.string())) for p in (*before, *of_batch) if lost]
        named = [t.column(c) for t in (brought, *of_lost) for c in ("query_image_id", "target_image_id") if before]
        ids = encode_ids(named)[0]
        older = [_rows_of(_read_mined(store, path), ids) for path in before]
        none = brought.slice(0, 0)
        tables.append((brought, pa.concat_tables([none, *older]), pa.concat_tables([none, *of_lost])))
    names, numbers = encode_ids(
        [t.column(c) for three in tables for t in three for c in ("query_image_id", "target_image_id")]
    )
    out = _Read(names, {}, {}, {})
    for n, (encoder, three) in enumerate(zip(encoders, tables, strict=True)):
        new, earlier, again = (
            _mined(table, *numbers[6 * n + 2 * k : 6 * n + 2 * k + 2]) for k, table in enumerate(three)
        )
        out.mined[encoder] = new.with_(earlier)
        if len(earlier.queries):
            ranked = with_merged_ranks(_reaching(new, earlier, neighbours, len(names)), earlier, neighbours)
        else:  # as they were mined: by similarities of which the table holds 32 bits
            ranked = new.take(new.ranks < neighbours)
        out.counts[encoder] = len(ranked.queries)
        out.candidates[encoder] = ranked.with_(with_merged_ranks(again, again.take(np.zeros(0, np.int64)), neighbours))
    return out


def _mined(table: pa.Table, queries: np.ndarray, targets: np.ndarray) -> Mined:
    """Rows of table `neighbours` whose images are numbers."""
    return Mined(queries, targets, table.column("similarity").to_numpy(), table.column("rank").to_numpy())


def _reaching(new: Mined, earlier: Mined, neighbours: int, count: int) -> Mined:
    """Those of this batch's rows that may be among their query's k nearest: a query that had k in some batch keeps
    nothing below the k-th of them.
    """
    floors = np.full(count, -2, np.float32)
    last = earlier.ranks == neighbours - 1
    np.maximum.at(floors, earlier.queries[last], earlier.similarities[last])
    return new.take(new.similarities >= floors[new.queries])


def _rows_of(table: pa.Table, queries: pa.Array) -> pa.Table:
    """Rows of table `neighbours`, as `_read_mined` gives it, whose query is one of some."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = table.column("query_image_id").chunks
    names = pa.concat_arrays([pa.array([], pa.string()), *(c.dictionary for c in chunks)])
    # once a table: each call makes a hash table of the queries
    is_asked = pc.is_in(names, value_set=queries).to_numpy(zero_copy_only=False)
    starts = np.cumsum([0, *(len(c.dictionary) for c in chunks)])
    found = [
        pa.array(is_asked[start:][c.indices.to_numpy()]) for start, c in zip(starts.tolist(), chunks, strict=False)
    ]
    return table.filter(pa.chunked_array(found, pa.bool_()))


def _negatives_of(
    c: Candidates, retrieved: Mapping[str, Retrieved], vectors: Vectors, params: Params, count: int | None
) -> Negatives:
    """`hard_negatives` as the parameters say."""
    config, limits = params.select, copy_limits(params)
    return hard_negatives(
        c,
        retrieved,
        vectors,
        limits=limits,
        count=count,
        margin=config.negative_margin,
        query_copies=not config.drop_query_copies,
    )


def _read_vectors(store: Store, encoders: Sequence[str], names: pa.Array, wanted: np.ndarray | None = None) -> Vectors:
    """The stored vectors of some images.

    Args:
        names: (p) strings, rising.
        wanted: (p,) bool, those that are asked for; all when absent.
    """
    import pyarrow as pa

    some = names if wanted is None else names.filter(pa.array(wanted))
    return Vectors(names, {e: store.read_wanted(e, some) for e in encoders})
