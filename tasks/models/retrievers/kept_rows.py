"""Rows that were computed before, by the id of what they were computed from: in memory, or in files of a folder.

A file holds up to `ROWS_PER_FILE` rows with their ids and is written whole, aside and renamed, so that an encoding that
is killed loses at most the file it was at. Files are named by the ids in them: several processes may write into one
folder, and several evaluations read it. A file that cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks.progress import Progress
from tasks.store.atomic import atomic_write

ROWS_PER_FILE = 1024


class KeptRows:
    """Computes each row once; see the module."""

    def __init__(self, folder: Path | None) -> None:
        """Read the ids that the folder's files hold.

        Args:
            folder: made with the first file; None: rows are kept nowhere.
        """
        self.folder = folder
        self._places: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob("*.npz")) if folder else ():
            try:
                with np.load(path, allow_pickle=False) as content:
                    ids = content["ids"].tolist()
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            self._places.update({i: (path, n) for n, i in enumerate(ids)})

    def rows(
        self,
        ids: Sequence[str],
        compute: Callable[[Sequence[int]], Iterator[np.ndarray]],
        on_kept: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """The rows of n ids, each id once.

        Args:
            ids: what identifies the content of each row.
            compute: positions in `ids` -> their rows in that order, in batches (k, d) of any dtype.
            on_kept: told how many rows are read instead of computed.
        Returns:
            (n, d), d and dtype as computed.
        """
        known, out = self._read(ids)
        on_kept(len(ids) - len(missing := [n for n in range(len(ids)) if n not in known]))
        position, waiting, count = 0, list[np.ndarray](), 0
        for batch in compute(missing) if missing else ():
            if out is None:
                out = np.empty((len(ids), batch.shape[1]), batch.dtype)
            out[missing[position : position + len(batch)]] = batch
            position, count = position + len(batch), count + len(batch)
            waiting.append(batch)
            if count >= ROWS_PER_FILE or position == len(missing):
                self._write([ids[n] for n in missing[position - count : position]], np.concatenate(waiting))
                waiting, count = [], 0
        return np.zeros((0, 0), np.float32) if out is None else out

    def _read(self, ids: Sequence[str]) -> tuple[set[int], np.ndarray | None]:
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for n, i in enumerate(ids):
            if i in self._places:
                path, row = self._places[i]
                by_file.setdefault(path, []).append((n, row))
        known, out = set[int](), None
        for path, places in by_file.items():
            try:
                with np.load(path, allow_pickle=False) as content:
                    rows = content["rows"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            if out is None:
                out = np.empty((len(ids), rows.shape[1]), rows.dtype)
            if rows.shape[1] != out.shape[1]:
                continue
            targets, sources = zip(*places, strict=True)
            out[list(targets)] = rows[list(sources)]
            known.update(targets)
        return known, out

    def _write(self, ids: Sequence[str], rows: np.ndarray) -> None:
        if self.folder is None:
            return
        path = self.folder / f"{hashlib.sha256(chr(10).join(ids).encode()).hexdigest()[:24]}.npz"
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=np.array(ids), rows=rows)
        self._places.update({i: (path, n) for n, i in enumerate(ids)})


@dataclass(frozen=True)
class EncodeOptions:
    """How contents are encoded.

    Attributes:
        kept: rows of earlier encodings with the same weights.
        image_id: image key -> what identifies the image's bytes; the key itself for a benchmark that never changes.
        workers: threads that read and prepare images, a count.
        is_fast: resize images by a faster kernel, the same up to rounding; of the CLIP type.
        progress: counts images (or contents, of the MLLM type).
        replicas: the same model on further devices; batches go to all of them in turn.
        arithmetic: device -> context in which a replica computes there; such contexts belong to a thread.
    """

    kept: KeptRows = field(default_factory=lambda: KeptRows(None))
    image_id: Callable[[str], str] = str
    workers: int = 1
    progress: Progress | None = None
    replicas: Sequence[Any] = ()
    arithmetic: Callable[[str], AbstractContextManager[Any]] = lambda device: nullcontext()
    is_fast: bool = False

    def advance(self, count: int) -> None:
        """Count what was encoded."""
        if self.progress is not None:
            self.progress.advance(count)

    def skip(self, count: int) -> None:
        """Count what was kept."""
        if self.progress is not None:
            self.progress.skip(count)
