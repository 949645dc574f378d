"""Withdraw neighbours whose image was taken down, and give the queries that lost one the images that rank next."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.knn.search import neighbours_in_window
from tasks.knn.spec import SearchSpec
from tasks.mine.neighbour_table import renumbered_ranks
from tasks.store import Store
from tasks.store.tables import names_any_id

log = logging.getLogger(__name__)
ENDS = ["query_image_id", "target_image_id"]


def replace_neighbours(
    store: Store,
    files: Sequence[Path],
    replacements: Path,
    removed: Set[str],
    old: tuple[Sequence[str], np.ndarray],
    spec: SearchSpec,
) -> None:
    """Drop neighbours of images that were taken down, and write those that rank next for the queries that lost one.

    The replacements are written first, then the older files anew, with each query's ranks renumbered; so a rerun after
    a crash finds what is left to do.

    Args:
        store: to read and write.
        files: all files of an encoder's neighbours.
        replacements: the file of this batch that takes the new rows.
        removed: ids of images that were taken down.
        old: ids of the old images that stay, sorted, and their vectors (n, d) float16.
        spec: window, k and backend of the search.
    """
    ids, vectors = old
    queries_of_removed: set[str] = set()
    for path in files:
        table = store.read(path, "neighbours", ENDS)
        rows = table.filter(names_any_id(table, removed, ["target_image_id"]))
        queries_of_removed.update(rows.column("query_image_id").to_pylist())
    query_rows = np.array([n for n, i in enumerate(ids) if i in queries_of_removed and i not in removed], np.int64)
    if len(query_rows):
        new_rows = _next_neighbours(store, files, query_rows, old, spec)
        before = store.read(replacements, "neighbours").to_pylist() if replacements.exists() else []
        rows = sorted(before + new_rows, key=lambda r: (r["query_image_id"], r["rank"]))
        store.write(replacements, rows, "neighbours")
        log.info("mine: %d queries lost a neighbour, %d others rank next", len(query_rows), len(new_rows))
    for path in files:
        _remove_rows(store, path, removed)


def withdraw_neighbours(store: Store, index: str, removed: Set[str]) -> None:
    """Drop neighbours of images that were taken down from an index that nothing is mined from; none takes their place.

    Args:
        store: to read and write.
        index: an encoder's, or that of one which was to follow.
        removed: ids of images that were taken down.
    """
    for path in store.table_files(f"neighbours/{index}") if removed else ():
        _remove_rows(store, path, removed)


def _next_neighbours(
    store: Store,
    files: Sequence[Path],
    query_rows: np.ndarray,
    old: tuple[Sequence[str], np.ndarray],
    spec: SearchSpec,
) -> list[dict[str, Any]]:
    """Rows of table `neighbours` of some old images among the old ones that no file holds yet."""
    ids, vectors = old
    queries = [ids[n] for n in query_rows]
    # one thread: an approximate index is then built the same way every time
    one_thread = dataclasses.replace(spec, threads=1)
    neighbours = neighbours_in_window(vectors[query_rows], vectors, queries, ids, one_thread)
    stored: set[tuple[str, str]] = set()
    for path in files:
        table = store.read(path, "neighbours", ENDS)
        rows = table.filter(names_any_id(table, queries, ["query_image_id"])).to_pydict()
        stored.update(zip(rows["query_image_id"], rows["target_image_id"], strict=True))
    return [
        {"query_image_id": queries[q], "target_image_id": ids[t], "similarity": s, "rank": r}
        for q, t, s, r in zip(*(column.tolist() for column in neighbours), strict=True)
        if (queries[q], ids[t]) not in stored
    ]


def _remove_rows(store: Store, path: Path, removed: Set[str]) -> None:
    """Rewrite a file without the rows that name a removed image; a file without such rows is left alone."""
    table = store.read(path, "neighbours")
    rest = table.filter(pc.invert(names_any_id(table, removed, ENDS)))
    if rest.num_rows < table.num_rows:
        ranks = pa.array(renumbered_ranks(rest.column("query_image_id").to_pylist()), pa.int32())
        store.write(path, rest.set_column(3, "rank", ranks), "neighbours")
