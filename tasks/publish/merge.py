"""Merge a run's chunk files when its version is made: one file per table and version, up to a size.

Triplets are what a training streams, and loaders give each worker whole files. So a run with enough of them leaves
several files, of whole chunks and about equal rows, until the table has as many as `version.loader_files`.

A stage writes one small file a chunk, so that a killed call loses little. A version needs them no more, and a dataset
of 500 weeks would hold tens of thousands of them. Merged are the run's own files; those of earlier versions are not
touched. A merged file bears the name of its first chunk, and rows keep their order: neither the number of parts nor a
kill shows.

`.run/merge/<folder>-<batch>.json` is written first: which chunks become which file. The merged file is made beside it,
the other chunks are removed, then it takes its place. A killed call goes on from there, and a stage that is started
again finds its work done (tasks/store/chunks.py), also where no chunk of its table was merged: those of the
stage before it may have been, and no longer tell which chunks there were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.store import Store
from tasks.store.chunks import is_chunk, merge_plan_path
from tasks.store.tables import TableWriter

MERGED_BYTES = 512 << 20  # of the chunks that become one file, at most
BLOCK_ROWS = 20_000  # in memory at a time
# folder below data -> schema of its files; the other tables have one file a batch, or one a shard
MERGED_FOLDERS: Mapping[str, str] = {
    "captions": "captions",
    "captioned": "captioned",
    "triplets": "triplets",
    "dropped/recaption": "dropped",
    "dropped/caption": "dropped",
    "dropped/judge": "dropped",
}


STREAMED = "triplets"  # the table whose files are shared out among a loader's workers


class LoaderFiles(NamedTuple):
    """How many files the streamed table is to have: `files`, where each gets `rows_min` rows."""

    files: int
    rows_min: int

    def wanted(self, earlier: int, rows: int) -> int:
        """How many files a run should leave.

        Args:
            earlier: files of earlier versions, a count.
            rows: of the run, a count.
        """
        return max(1, min(self.files - earlier, rows // self.rows_min))


def group_by_rows(rows: Sequence[int], groups: int) -> list[int]:
    """How many files, in their order, go into each of at most `groups` groups of about as many rows.

    Args:
        rows: of each file.
        groups: at most; fewer where a file alone has more rows than a group's share.
    """
    total, before = sum(rows), 0
    counts = dict.fromkeys(range(groups), 0)
    for count in rows:
        counts[min(groups - 1, before * groups // total) if total else 0] += 1
        before += count
    return [count for count in counts.values() if count]


def group_by_size(sizes: Sequence[int], limit: int) -> list[int]:
    """How many files, in their order, go into each group: as many as stay within `limit` bytes, at least one."""
    counts: list[int] = []
    held = 0
    for size in sizes:
        if not counts or held + size > limit:
            counts.append(0)
            held = 0
        counts[-1] += 1
        held += size
    return counts


def plan_merge(groups: Sequence[Sequence[Path]], limit: int) -> list[list[str]]:
    """Names of the chunks that become one file each time, two or more; the first one's name is the file's.

    Args:
        groups: chunks, in their order; those of two groups never become one file.
        limit: bytes of one file.
    """
    merged = []
    for files in groups:
        counts = group_by_size([path.stat().st_size for path in files], limit)
        merged += [[path.name for path in group] for group in cut(files, counts)]
    return [group for group in merged if len(group) > 1]


def cut(files: Sequence[Path], counts: Sequence[int]) -> list[Sequence[Path]]:
    """The files, in their order, in groups of these counts."""
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return [files[start : start + count] for start, count in zip(starts, counts, strict=True)]


def merge_chunks(store: Store, batch: str, limit: int = MERGED_BYTES, loader: LoaderFiles | None = None) -> int:
    """Merge the chunk files that a batch wrote; returns how many files fewer there are. Repeatable after a crash.

    Args:
        store: of the run.
        batch: the run's.
        limit: bytes of one file.
        loader: how many files the streamed table is to have; one where None.
    """
    removed = 0
    for name, schema in MERGED_FOLDERS.items():
        folder, plan_path = store.folder("data", name), merge_plan_path(store, name, batch)
        if not plan_path.exists():
            chunks = [path for path in sorted(folder.glob(f"{batch}-*.parquet")) if is_chunk(path, batch)]
            counts = [len(chunks)]
            if loader and name == STREAMED:
                rows = [store.count_rows(path, schema) for path in chunks]
                counts = group_by_rows(rows, loader.wanted(len(store.table_files(name)) - len(chunks), sum(rows)))
            if len(chunks) < 2:
                continue
            plan = plan_merge(cut(chunks, counts), limit)  # kept also where all files stay: it says that they are whole
            store.write_bytes(plan_path, json.dumps(plan).encode())
        for group in json.loads(plan_path.read_text()):
            removed += _merge(store, [folder / chunk for chunk in group], schema, plan_path.with_suffix(f".{group[0]}"))
    return removed


def _merge(store: Store, chunks: Sequence[Path], schema: str, aside: Path) -> int:
    """Put all chunks into the first one; returns how many were removed.

    Args:
        store: to read and write.
        chunks: of the group, in their order.
        schema: of their rows.
        aside: where the merged file is made; once it is there, it is complete.
    """
    others = chunks[1:]
    is_over = not aside.exists() and not all(path.exists() for path in others)
    if is_over:  # the merged file is in its place, and the others were removed before that
        return 0
    if not aside.exists():
        writer = TableWriter(aside, schema)
        try:
            for block in store.iter_blocks(chunks, schema, rows=BLOCK_ROWS):
                writer.add_table(block)
            writer.close()
        except BaseException:
            writer.discard()
            raise
    removed = sum(path.exists() for path in others)
    for path in others:
        path.unlink(missing_ok=True)
    os.replace(aside, chunks[0])
    return removed
