"""Mine candidates: images related under one encoder, yet not copies of each other.

Reads data/embeddings/<encoder>, writes data/neighbours/<encoder>/<batch>-<chunk>.parquet (each its own marker). Source:
MegaPairs, arXiv:2412.14475, section 3.1.

Work is what this batch brings: for each new image its nearest among all, for each old one its nearest among the new. So
a row names at least one new image, no pair of two old ones is looked at again, and any other pair once for both its
ends. With `neighbours` no limit, the union over the batches is what one batch of everything would give. An empty batch
writes one empty file.

A file holds the rows of 50,000 queries and is its own marker. One join serves as many missing files as
`mine.memory_mib` allows (1 GiB: some 500,000 queries at 12 neighbours); a run that is killed does that join again, and
only that.

What the screen knows of a row (its code, its norms: 88 to 536 bytes) depends on nothing but the row and the axes, so a
large join stores it per shard in data/neighbours/<encoder>/codes, and the next one codes the new rows alone.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config import MineConfig, Params, Window
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown import taken_down
from tasks.knn.blocked_join import ENTRY_BYTES
from tasks.knn.choose_screen import load_for
from tasks.knn.exact import Found, recall_of
from tasks.knn.faiss_index import APPROXIMATE
from tasks.knn.search import join_in_window, neighbours_in_window
from tasks.mine.code_cache import stored_codes
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.chunks import iter_chunks
from tasks.store.id_order import id_order
from tasks.store.tables import names_any_id

log = logging.getLogger(__name__)
CHUNK_QUERIES = 50_000  # query rows in one file; the unit of resuming and of parts
RECALL_QUERIES = 500  # queries whose neighbours an approximate backend is measured on
REPLACEMENTS = 99_999  # number of a batch's file with what comes up where a neighbour was taken down


def chunk_path(store: Store, encoder: str, batch: str, chunk: int) -> Path:
    """Where one chunk of an encoder's candidates lies."""
    return store.folder("data", "neighbours", encoder, f"{batch}-{chunk:05d}.parquet")


def groups_of(
    chunks: Sequence[tuple[int, slice]], *, neighbours: int, memory_mib: int
) -> list[list[tuple[int, slice]]]:
    """Chunks that one join serves: as many as its results leave room for. Pairs inside a group are looked at once.

    Args:
        chunks: number and query rows of each.
        neighbours: most neighbours of a query, a count.
        memory_mib: of the join, MiB.
    """
    groups: list[list[tuple[int, slice]]] = []
    room = (memory_mib << 20) // 2 // (neighbours * ENTRY_BYTES)  # query rows
    used = 0
    for number, rows in chunks:
        count = rows.stop - rows.start
        if not groups or used + count > room:
            groups.append([])
            used = 0
        groups[-1].append((number, rows))
        used += count
    return groups


def neighbour_rows(ids: pa.Array, asked: np.ndarray, found: Found) -> pa.Table:
    """Rows of table `neighbours` for some queries, in their order, then by rank.

    Args:
        ids: (n) image ids.
        asked: (m,) int64, the queries.
        found: of `join_in_window`, at least for the queries.
    """
    query, target, similarity, rank = found
    first, last = np.searchsorted(query, asked), np.searchsorted(query, asked, side="right")
    counts = last - first
    rows = (
        np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        if len(asked)
        else asked
    )
    columns = [
        ids.take(pa.array(query[rows])),
        ids.take(pa.array(target[rows])),
        pa.array(similarity[rows], pa.float64()),
        pa.array(rank[rows]),
    ]
    return pa.table(columns, names=["query_image_id", "target_image_id", "similarity", "rank"])


def _replace_neighbours(
    store: Store,
    encoder: str,
    batch: str,
    gone: Set[str],
    ids: Sequence[str],
    vectors: np.ndarray,
    config: MineConfig,
    window: Window,
) -> None:
    """Drop candidates of images that are taken down; queries that lost one get the old images that come up instead.

    Those are written first, to a file of this batch, then the older files anew, a query's ranks closing up; so a rerun
    finds what is left to do.

    Args:
        ids: of the old images that stay, in order.
        vectors: (n, d) float16, theirs.
    """
    files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
    lost: set[str] = set()
    for path in files:
        table = store.read(path, "neighbours", ["query_image_id", "target_image_id"])
        lost.update(table.filter(names_any_id(table, gone, ["target_image_id"])).column("query_image_id").to_pylist())
    asked = np.array([n for n, i in enumerate(ids) if i in lost and i not in gone], np.int64)
    if len(asked):
        query, target, similarity, rank = neighbours_in_window(
            vectors[asked],
            vectors,
            [ids[n] for n in asked],
            ids,
            low=window.low,
            high=window.high,
            neighbours=config.neighbours,
            backend=config.backend,
            memory_mib=config.memory_mib,
        )
        held: set[tuple[str, str]] = set()
        for path in files:
            table = store.read(path, "neighbours", ["query_image_id", "target_image_id"])
            rows = table.filter(names_any_id(table, [ids[n] for n in asked], ["query_image_id"])).to_pydict()
            held.update(zip(rows["query_image_id"], rows["target_image_id"], strict=True))
        found = [
            {"query_image_id": ids[asked[q]], "target_image_id": ids[t], "similarity": s, "rank": r}
            for q, t, s, r in zip(query.tolist(), target.tolist(), similarity.tolist(), rank.tolist(), strict=True)
            if (ids[asked[q]], ids[t]) not in held
        ]
        path = chunk_path(store, encoder, batch, REPLACEMENTS)
        before = store.read(path, "neighbours").to_pylist() if path.exists() else []
        store.write(path, sorted(before + found, key=lambda r: (r["query_image_id"], r["rank"])), "neighbours")
        log.info("mine %s: %d queries lost a neighbour, %d come up instead", encoder, len(asked), len(found))
    for path in files:
        table = store.read(path, "neighbours")
        kept = table.filter(pc.invert(names_any_id(table, gone, ["query_image_id", "target_image_id"])))
        if kept.num_rows < table.num_rows:
            store.write(
                path,
                kept.set_column(3, "rank", pa.array(closed_up(kept.column("query_image_id").to_pylist()), pa.int32())),
                "neighbours",
            )


def closed_up(queries: Sequence[str]) -> list[int]:
    """Each row's place among its query's rows, which lie together."""
    return [n for _, rows in itertools.groupby(queries) for n, _ in enumerate(rows)]


def run(params: Params, store: Store, encoder: str, part: tuple[int, int] | None = None) -> StageReport:
    """Mine this batch's candidates under one encoder, or the i-th of n parts of their chunks.

    Raises:
        ConfigError: the encoder has no window, or an empty one.
        DataError: a shard of this batch is not embedded.
    """
    config, batch = params.mine, batch_name(params)
    if encoder not in params.embed.encoders:
        raise ConfigError(f"mine: no encoder '{encoder}' in embed.encoders; known: {sorted(params.embed.encoders)}")
    window = config.windows.get(encoder)  # type: ignore[call-overload]
    if window is None or window.low >= window.high:
        raise ConfigError(
            f"mine.windows: '{encoder}' is {window}; expected low < high; `python -m tasks calibrate` proposes numbers from the embeddings"
        )
    stems = store.embedded_shards(encoder)
    images = store.read_table("images", ["shard"], batch)
    wanted = {Path(s).stem for s in pc.unique(images.column("shard")).to_pylist()}
    if missing := sorted(wanted - set(stems)):
        raise DataError(
            f"mine {encoder}: shards {missing} are not embedded; run `python -m tasks embed {encoder}` first"
        )
    corpus = store.read_corpus(encoder)
    ids = corpus.ids
    coded = None
    is_new = np.zeros(len(ids), bool)
    for stem in wanted & corpus.shards.keys():
        is_new[corpus.shards[stem]] = True
    if config.backend == "blocked" and load_for(len(ids) * int(is_new.sum()), corpus.rows.shape[1]):
        coded = stored_codes(store, encoder, corpus, window.low)
    # behind codes few rows are looked at, here and there; without them all are, again and again
    vectors = corpus.rows.to_array() if coded is None else corpus.rows
    by_id = id_order(ids)  # the order of shards must not show; ties go by id
    place = np.empty(len(ids), np.int64)
    place[by_id] = np.arange(len(ids))
    queries = np.concatenate([by_id[is_new[by_id]], by_id[~is_new[by_id]]]) if is_new.any() else np.zeros(0, np.int64)
    is_first = part is None or part[0] == 1
    report = StageReport("mine", reused=int((~is_new).sum()) if is_first else 0)
    if is_first and (gone := taken_down(params, store)):
        old = by_id[~is_new[by_id]]
        _replace_neighbours(
            store, encoder, batch, gone, ids.take(pa.array(old)).to_pylist(), vectors[old], config, window
        )
    chunks = list(iter_chunks(len(queries), CHUNK_QUERIES, part)) or (
        [(0, slice(0, 0))] if is_first and not len(queries) else []
    )
    store.folder("data", "neighbours", encoder).mkdir(parents=True, exist_ok=True)
    missing_chunks = [c for c in chunks if not chunk_path(store, encoder, batch, c[0]).exists()]
    for group in groups_of(missing_chunks, neighbours=config.neighbours, memory_mib=config.memory_mib):
        asked = np.concatenate([queries[rows] for _, rows in group])
        found = join_in_window(
            vectors,
            is_new,
            asked,
            place,
            low=window.low,
            high=window.high,
            neighbours=config.neighbours,
            threads=params.open_run.threads,
            backend=config.backend,
            memory_mib=config.memory_mib,
            coded=coded,
        )
        for number, rows in group:
            written = store.write(
                chunk_path(store, encoder, batch, number), neighbour_rows(ids, queries[rows], found), "neighbours"
            )
            report.written += written
            log.info("mine %s: chunk %d, %d queries, %d candidates", encoder, number, rows.stop - rows.start, written)
    made = 0
    for number, rows in chunks:
        made += store.read(chunk_path(store, encoder, batch, number), "neighbours", ["rank"]).num_rows
        report.read += rows.stop - rows.start
        count = int(is_new[queries[rows]].sum())
        report.new += count
        report.done += count
    report.figures = {f"candidates_{encoder}": float(made)} | (
        {f"candidates_per_new_image_{encoder}": made / report.new} if report.new else {}
    )
    if config.backend in APPROXIMATE and len(queries) and chunks:
        mined = np.concatenate([queries[rows] for _, rows in chunks])
        sample = np.sort(np.random.default_rng(params.open_run.seed).permutation(mined)[:RECALL_QUERIES])
        files = [chunk_path(store, encoder, batch, number) for number, _ in chunks]
        exact = join_in_window(
            vectors,
            is_new,
            sample,
            place,
            low=window.low,
            high=window.high,
            neighbours=config.neighbours,
            memory_mib=config.memory_mib,
        )
        found = _read_found(store, files, ids, sample)
        report.figures[f"recall_{encoder}"] = recall_of(found, exact)
        log.info(
            "mine %s: %s finds %.4f of the neighbours of %d queries",
            encoder,
            config.backend,
            report.figures[f"recall_{encoder}"],
            len(sample),
        )
    return report


def _read_found(store: Store, files: Sequence[Path], names: pa.Array, asked: np.ndarray) -> Found:
    """What files hold for some queries, as rows of the corpus."""
    table = store.read(files, "neighbours")
    table = table.filter(names_any_id(table, names.take(pa.array(asked)).to_pylist(), ["query_image_id"]))
    query, target = (
        pc.index_in(table.column(c), value_set=names).to_numpy().astype(np.int64)
        for c in ("query_image_id", "target_image_id")
    )
    return query, target, table.column("similarity").to_numpy(), table.column("rank").to_numpy()
