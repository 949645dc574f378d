"""Keep the 8-bit codes of embedded shards on disk, so that a week codes only its new rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from tasks.knn.choose_screen import corpus_axes, is_worthwhile
from tasks.knn.codes import Axes, Coded, Codes, code_scale, encode
from tasks.store import Store
from tasks.store.vectors import EmbeddedCorpus

CODE_COLUMNS = ("codes", "norm2", "code_norm2", "error")
PROBED = 8  # rows at either end of a shard whose codes are worked out again to see that they belong to it


def stored_codes(store: Store, encoder: str, corpus: EmbeddedCorpus, low: float) -> Coded | None:
    """The screen's codes of all rows: read where an earlier run stored them, else made and stored, shard by shard.

    They lie in data/neighbours/<encoder>/codes, in a folder for the model and the window's low end that the axes were
    chosen for. A shard's file is used if it has as many rows as the shard and its first and last ones are what coding
    gives now.

    Args:
        corpus: all that the encoder has embedded; the codes are in its order.
        low: the window's low end.
    Returns:
        None where the 8-bit screen does not pay.
    """
    folder = store.folder("data", "neighbours", encoder, "codes", f"{corpus.revision}-{low:.4f}")
    axes_path = folder / "axes.npz"
    if axes_path.exists():
        with np.load(axes_path, allow_pickle=False) as kept:
            axes = Axes(kept["matrix"], kept["middle"], float(kept["reach"]))
    else:
        axes, share = corpus_axes(corpus.rows, low)
        if not is_worthwhile(axes, share):
            return None
        _write_arrays(store, axes_path, matrix=axes.matrix, middle=axes.middle, reach=np.float64(axes.reach))
    parts: list[Codes] = []
    for number, stem in enumerate(corpus.shards):
        rows = corpus.rows.file_rows(number)
        path = folder / f"{stem}.npy"
        known = _read_codes(path, axes) if path.exists() else None
        if known is None or not _is_of(known, rows, axes):
            known = encode(rows, axes)
            _write_codes(store, path, known)
        parts.append(known)
    columns = [np.concatenate([getattr(p, c) for p in parts]) for c in CODE_COLUMNS]
    return Coded(axes, Codes(columns[0], parts[0].scale, *columns[1:]))


def _is_of(known: Codes, rows: np.ndarray, axes: Axes) -> bool:
    """Whether codes belong to these rows, looked at on the first and the last few."""
    some = np.unique(np.concatenate([np.arange(len(rows))[:PROBED], np.arange(len(rows))[-PROBED:]]))
    if len(known.norm2) != len(rows) or known.codes.shape[1] != axes.matrix.shape[1]:
        return False
    again, kept = encode(rows[some], axes), known.take(some)
    # a product of other size may round a coordinate the other way: one level, and the error says so
    near = np.abs(again.codes.astype(np.int16) - kept.codes.astype(np.int16)).max(initial=0) <= 1
    return bool(near and again.scale == kept.scale and np.allclose(again.norm2, kept.norm2, rtol=1e-6))


def _read_codes(path: Path, axes: Axes) -> Codes:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return Codes(rows["codes"], code_scale(axes), *(rows[c] for c in CODE_COLUMNS[1:]))


def _write_codes(store: Store, path: Path, codes: Codes) -> None:
    rows = np.empty(
        len(codes.norm2), [("codes", np.int8, codes.codes.shape[1:]), *((c, np.float64) for c in CODE_COLUMNS[1:])]
    )
    for name in CODE_COLUMNS:
        rows[name] = getattr(codes, name)
    out = io.BytesIO()
    np.save(out, rows)
    store.write_bytes(path, out.getvalue())


def _write_arrays(store: Store, path: Path, **arrays: Any) -> None:
    out = io.BytesIO()
    np.savez(out, **arrays)
    store.write_bytes(path, out.getvalue())
