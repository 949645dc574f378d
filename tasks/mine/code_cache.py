"""Keep the 8-bit codes of embedded shards on disk, so that a later batch codes its new rows only.

Files lie in data/neighbours/<encoder>/codes, in a folder for the model's revision and the window's low end, which the
axes were chosen for: axes.npz, and one .npy a shard.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from tasks.knn.choose_prefilter import corpus_axes, is_worthwhile
from tasks.knn.codes import Axes, CodedRows, Codes, code_scale, encode
from tasks.store import Store
from tasks.store.vectors import EmbeddedCorpus

CODE_COLUMNS = ("codes", "norm2", "code_norm2", "error")
PROBED_ROWS = 8  # rows at either end of a shard that are coded again to check that its stored codes belong to it


def cached_codes(store: Store, encoder: str, corpus: EmbeddedCorpus, low: float) -> CodedRows | None:
    """The codes of all rows of a corpus: read where an earlier run stored them, else made and stored, shard by shard.

    A shard's file is used if it has as many rows as the shard, and its first and last ones equal what coding gives now.

    Args:
        store: to read and write.
        encoder: the encoder's role.
        corpus: all that the encoder has embedded; the codes are in its order.
        low: the window's low end.
    Returns:
        None where the 8-bit prefilter does not pay.
    """
    folder = store.folder("data", "neighbours", encoder, "codes", f"{corpus.revision}-{low:.4f}")
    axes = _read_or_fit_axes(store, folder / "axes.npz", corpus, low)
    if axes is None:
        return None
    parts: list[Codes] = []
    for number, stem in enumerate(corpus.shards):
        rows = corpus.rows.file_rows(number)
        path = folder / f"{stem}.npy"
        codes = _read_codes(path, axes) if path.exists() else None
        if codes is None or not _belong_to(codes, rows, axes):
            codes = encode(rows, axes)
            _write_codes(store, path, codes)
        parts.append(codes)
    columns = [np.concatenate([getattr(p, c) for p in parts]) for c in CODE_COLUMNS]
    return CodedRows(axes, Codes(columns[0], parts[0].scale, *columns[1:]))


def remove_stale_codes(store: Store, encoder: str) -> None:
    """Remove stored codes that have another number of rows than their shard: some of their images were taken down."""
    import pyarrow.parquet as pq

    for path in sorted(store.folder("data", "neighbours", encoder, "codes").glob("*/*.npy")):
        ids = store.folder("data", "embeddings", encoder, f"{path.stem}.parquet")
        rows = pq.read_metadata(ids).num_rows if ids.exists() else -1
        if len(np.load(path, mmap_mode="r", allow_pickle=False)) != rows:
            path.unlink()


def _read_or_fit_axes(store: Store, path: Path, corpus: EmbeddedCorpus, low: float) -> Axes | None:
    """The stored axes, else new ones, which are stored; None where the 8-bit prefilter does not pay."""
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return Axes(stored["matrix"], stored["middle"], float(stored["reach"]))
    axes, share = corpus_axes(corpus.rows, low)
    if not is_worthwhile(axes, share):
        return None
    # the names of the arrays are the file's format
    _write_arrays(store, path, matrix=axes.matrix, middle=axes.center, reach=np.float64(axes.clip_range))
    return axes


def _belong_to(codes: Codes, rows: np.ndarray, axes: Axes) -> bool:
    """Whether codes belong to these rows, checked on the first and the last few."""
    probed = np.unique(np.concatenate([np.arange(len(rows))[:PROBED_ROWS], np.arange(len(rows))[-PROBED_ROWS:]]))
    if len(codes.norm2) != len(rows) or codes.codes.shape[1] != axes.matrix.shape[1]:
        return False
    again, stored = encode(rows[probed], axes), codes.take(probed)
    # a product of another size may round a coordinate the other way: one level, which the error bound covers
    difference = np.abs(again.codes.astype(np.int16) - stored.codes.astype(np.int16)).max(initial=0)
    return bool(difference <= 1 and again.scale == stored.scale and np.allclose(again.norm2, stored.norm2, rtol=1e-6))


def _read_codes(path: Path, axes: Axes) -> Codes:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return Codes(rows["codes"], code_scale(axes), *(rows[c] for c in CODE_COLUMNS[1:]))


def _write_codes(store: Store, path: Path, codes: Codes) -> None:
    rows = np.empty(
        len(codes.norm2), [("codes", np.int8, codes.codes.shape[1:]), *((c, np.float64) for c in CODE_COLUMNS[1:])]
    )
    for name in CODE_COLUMNS:
        rows[name] = getattr(codes, name)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    store.write_bytes(path, buffer.getvalue())


def _write_arrays(store: Store, path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    store.write_bytes(path, buffer.getvalue())
