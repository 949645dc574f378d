"""Mine candidates: pictures related under one encoder, yet not copies of each other.

Reads data/embeddings/<encoder>, writes data/neighbours/<encoder>/<batch>-<chunk>.parquet (each its own marker). Source:
MegaPairs, arXiv:2412.14475, section 3.1.

Work is what this batch brings: for each new picture its nearest among all, for each old one its nearest among the new. So a
row names at least one new picture, and no pair of two old ones is looked at again. With `neighbours` no limit, the union over
the batches is what one batch of everything would give. An empty batch writes one empty file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from tasks.batch import batch_of
from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.knn import neighbours_in_window
from tasks.records import StageReport
from tasks.store import Store, chunks_of_part

log = logging.getLogger(__name__)
CHUNK_QUERIES = 50_000  # query rows in one file; the unit of resuming and of parts


def chunk_path(store: Store, encoder: str, batch: str, chunk: int) -> Path:
    """Where one chunk of an encoder's candidates lies."""
    return store.folder("data", "neighbours", encoder, f"{batch}-{chunk:05d}.parquet")


def mine_chunk(
    ids: list[str], vectors: np.ndarray, is_new: np.ndarray, queries: np.ndarray, *, low: float, high: float, neighbours: int, threads: int = 1
) -> list[dict[str, Any]]:
    """Rows of table `neighbours` for some queries: new ones against all rows, old ones against the new rows.

    Args:
        ids: (n) image ids.
        vectors: (n, d) float16, rows of unit length.
        is_new: (n,) bool, which rows this batch brings.
        queries: (m,) int64, rows to find neighbours of.
        low, high: window of cosine similarity, low <= s < high.
        neighbours: most neighbours of a query, a count.
        threads: CPU threads of the search, a count.
    """
    rows: list[dict[str, Any]] = []
    for of_new, targets in ((True, np.arange(len(ids))), (False, np.flatnonzero(is_new))):
        asked = queries[is_new[queries] == of_new]
        keys, target_keys = [ids[i] for i in asked], [ids[i] for i in targets]
        found = neighbours_in_window(vectors[asked], vectors[targets], keys, target_keys, low=low, high=high, neighbours=neighbours, threads=threads)
        rows += [
            {"query_image_id": keys[q], "target_image_id": target_keys[t], "similarity": s, "rank": r}
            for q, t, s, r in zip(*(column.tolist() for column in found), strict=True)
        ]
    return rows


def run(params: Params, store: Store, encoder: str, part: tuple[int, int] | None = None) -> StageReport:
    """Mine this batch's candidates under one encoder, or the i-th of n parts of their chunks.

    Raises:
        ConfigError: the encoder has no window, or an empty one.
        DataError: a shard of this batch is not embedded.
    """
    config, batch = params.mine, batch_of(params)
    if encoder not in params.embed.encoders:
        raise ConfigError(f"mine: no encoder '{encoder}' in embed.encoders; known: {sorted(params.embed.encoders)}")
    window = config.windows.get(encoder)  # type: ignore[call-overload]
    if window is None or window.low >= window.high:
        raise ConfigError(f"mine.windows: '{encoder}' is {window}; expected low < high; `python -m tasks.calibrate` proposes numbers from the embeddings")
    stems = store.embedded_shards(encoder)
    images = store.read_table("images", ["shard", "batch"]).to_pydict()
    wanted = {Path(s).stem for s, b in zip(images["shard"], images["batch"], strict=True) if b == batch}
    if missing := sorted(wanted - set(stems)):
        raise DataError(f"mine {encoder}: shards {missing} are not embedded; run `python -m tasks embed {encoder}` first")
    new_ids = set(store.read_embeddings(encoder, [f"{s}.tar" for s in stems if s in wanted])[0])
    ids, vectors, _ = store.read_embeddings(encoder)
    by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)  # the order of shards must not show
    ids, vectors = [ids[i] for i in by_id], vectors[by_id]
    is_new = np.array([i in new_ids for i in ids], bool)
    queries = np.concatenate([np.flatnonzero(is_new), np.flatnonzero(~is_new)]) if new_ids else np.zeros(0, np.int64)
    is_first = part is None or part[0] == 1
    report = StageReport("mine", reused=len(ids) - len(new_ids) if is_first else 0)
    chunks = list(chunks_of_part(len(queries), CHUNK_QUERIES, part)) or ([(0, slice(0, 0))] if is_first and not len(queries) else [])
    store.folder("data", "neighbours", encoder).mkdir(parents=True, exist_ok=True)
    made = 0
    for number, rows in chunks:
        path, asked = chunk_path(store, encoder, batch, number), queries[rows]
        if not path.exists():
            found = mine_chunk(ids, vectors, is_new, asked, low=window.low, high=window.high, neighbours=config.neighbours, threads=params.open_run.threads)
            report.written += store.write(path, found, "neighbours")
            log.info("mine %s: chunk %d, %d queries, %d candidates", encoder, number, len(asked), len(found))
        made += store.read(path, "neighbours", ["rank"]).num_rows
        report.read += len(asked)
        count = int(is_new[asked].sum())
        report.new += count
        report.done += count
    report.figures = {f"candidates_{encoder}": float(made)} | ({f"candidates_per_new_image_{encoder}": made / report.new} if report.new else {})
    return report
