"""Images of a local folder, with metadata from a captions.parquet or captions.csv in it.

Files are listed by path inside the folder, whatever order the file system returns. Memory: the names of one directory
at a time. Symbolic links that leave the folder, and files that are not regular, are rejected as `not_a_picture`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks.config import SourceConfig
from tasks.errors import ConfigError
from tasks.sources.files import FileRejected, SourceFile, make_source_file
from tasks.sources.metadata import CAPTION_FILES, MetadataTable

CHUNK_BYTES = 1 << 20


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path inside the folder, path) of everything below the folder except directories, sorted by the former.

    Linked directories are not entered. A directory sorts with its slash, so that the order is that of the whole paths:
    'a.png' < 'a/x.png'.
    """
    entries = []
    with os.scandir(folder) as directory:
        for entry in directory:
            name = os.fsencode(entry.name).decode("utf-8", "surrogateescape")
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or not (entry.is_symlink() and entry.is_dir()):
                entries.append((name + "/" * is_folder, entry.path))
    for name, path in sorted(entries):
        if name.endswith("/"):
            yield from ((name + inside, file) for inside, file in walk(Path(path)))
        else:
            yield name, Path(path)


def read_file(path: Path, limit_bytes: int) -> bytes:
    """A regular file's bytes.

    Raises:
        FileRejected: too large, or not readable.
    """
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size > limit_bytes:
                raise FileRejected("too_large", f"{size} bytes, at most {limit_bytes}")
            return f.read(limit_bytes + 1)
    except OSError as error:
        raise FileRejected("unreachable", f"cannot be read: {error.strerror}", is_lasting=False) from error


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks of CHUNK_BYTES."""
    with open(path, "rb") as f:
        while chunk := f.read(CHUNK_BYTES):
            yield chunk


def find_local_files(source: SourceConfig, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, path) of a source's tars or tables: its path, the matches of its pattern, or all below its folder.

    Args:
        source: its `path` is a file, a glob pattern or a folder.
        suffixes: of the files taken from a folder.
    Raises:
        ConfigError: no such file.
    """
    path = Path(source.path)
    if path.is_dir():
        return [(inside, file) for inside, file in walk(path) if inside.endswith(suffixes)]
    if "*" in source.path:
        files = sorted((Path(p).name, Path(p)) for p in glob.glob(source.path))
    else:
        files = [(path.name, path)] if path.is_file() else []
    if not files:
        raise ConfigError(
            f"ingest.sources: source '{source.name}': nothing at {source.path}; expected a file, a folder or a pattern "
            "that matches; put files there, or correct 'path'"
        )
    return files


def list_folder(source: SourceConfig) -> Iterator[SourceFile]:
    """All files below the source's folder except its metadata table.

    Raises:
        ConfigError: the folder does not exist.
        DataError: the metadata table is unreadable.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise ConfigError(
            f"ingest.sources: source '{source.name}': {folder} is no folder; expected a folder of images; "
            "create it, or correct 'path' in params.yaml or the trigger form"
        )
    top, metadata = folder.resolve(), MetadataTable()
    table = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    if table is not None:
        metadata.add(table, source)
    for inside, path in walk(folder):
        if inside in CAPTION_FILES:
            continue
        file = make_source_file(source, inside, "", metadata.get(inside))
        if path.is_symlink() and top not in path.resolve().parents:
            yield file.rejected("not_a_picture", "a link out of the source's folder, not followed")
        elif not path.is_file():
            yield file.rejected("not_a_picture", "not a regular file")
        else:
            yield replace(file, reader=partial(read_file, path), open_chunks=partial(read_chunks, path))
