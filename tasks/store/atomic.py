"""Write a file or a folder whole or not at all: into a temporary sibling, flushed to the disk, renamed into place.

A reader sees the old content or the new one, never half of one, and a file that is a hard link of DVC's cache is
replaced, never written into. The temporary sibling starts with a dot and ends in `.tmp`; it lies in the target's own
folder, because a rename is atomic within one file system only.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.locks import require_leases


def temporary_sibling(path: Path, *, is_sole_writer: bool = False) -> Path:
    """The name to write under before `path` itself; nothing is touched.

    Args:
        path: file or folder that is to appear whole.
        is_sole_writer: a lock, or one name shared by several processes that write together, rules out a second writer:
            the name then holds no process id, so that the next try overwrites what a killed one left behind.
    """
    return path.with_name(f".{path.name}.tmp" if is_sole_writer else f".{path.name}.{os.getpid()}.tmp")


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """fsync of a file, or of every file in a folder."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_into_place(temporary: Path, path: Path) -> None:
    """Flush what was written to `temporary` and rename it to `path`; an old file or folder there is replaced whole.

    A folder cannot be replaced by one rename: the old one is renamed away first, so for a moment there is none, and it
    is removed after the new one is in place, with those that a killed process left there.

    Raises:
        TransientError: another process has taken over a lease that this one worked under.
    """
    flush_to_disk(temporary)
    require_leases()
    if not temporary.is_dir():
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    remove(old)
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
        remove(leftover)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or a folder to; it takes the place of `path` when the block ends.

    An error in the block leaves `path` as it was and no temporary file behind.

        with atomic_write(Path("models/promoted")) as folder:
            model.save_pretrained(folder)
    """
    temporary = temporary_sibling(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        yield temporary
        move_into_place(temporary, path)
    finally:
        remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically; its folder is made where it is missing."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
