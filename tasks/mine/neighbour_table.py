"""Rows of table `neighbours`: from a join's result, and back. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.knn.neighbours import Neighbours
from tasks.store.tables import names_any_id


def neighbour_table(ids: pa.Array, query_rows: np.ndarray, neighbours: Neighbours) -> pa.Table:
    """Rows of table `neighbours` for some queries, in the order of the queries, then by rank.

    Args:
        ids: (n) image ids of the corpus' rows.
        query_rows: (m,) int64, the queries.
        neighbours: of at least these queries, by query row.
    """
    first = np.searchsorted(neighbours.query_rows, query_rows)
    counts = np.searchsorted(neighbours.query_rows, query_rows, side="right") - first
    rows = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    columns = [
        ids.take(pa.array(neighbours.query_rows[rows])),
        ids.take(pa.array(neighbours.target_rows[rows])),
        pa.array(neighbours.similarity[rows], pa.float64()),
        pa.array(neighbours.rank[rows]),
    ]
    return pa.table(columns, names=["query_image_id", "target_image_id", "similarity", "rank"])


def neighbours_from_table(table: pa.Table, ids: pa.Array, query_rows: np.ndarray) -> Neighbours:
    """The inverse of `neighbour_table`, for some queries.

    Args:
        table: rows of table `neighbours`.
        ids: (n) image ids of the corpus' rows.
        query_rows: (m,) int64, the queries that are wanted.
    """
    table = table.filter(names_any_id(table, ids.take(pa.array(query_rows)).to_pylist(), ["query_image_id"]))
    queries, targets = (
        pc.index_in(table.column(c), value_set=ids).to_numpy().astype(np.int64)
        for c in ("query_image_id", "target_image_id")
    )
    return Neighbours(queries, targets, table.column("similarity").to_numpy(), table.column("rank").to_numpy())


def renumbered_ranks(queries: Sequence[str]) -> list[int]:
    """Ranks from 0 without gaps, for rows with these queries, where the rows of a query are adjacent."""
    return [rank for _, rows in itertools.groupby(queries) for rank, _ in enumerate(rows)]
