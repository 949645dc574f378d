"""Images of a local folder, with metadata from the tables and texts in it (tasks/sources/matching.py).

Files are listed by path inside the folder, whatever order the file system returns. All names are listed, to a temporary
file, before the first image is read, because captions are matched with them. Memory: the names of one directory at a
time. Symbolic links that leave the folder, and files that are not regular, are rejected as `not_a_picture`; linked
folders are not entered, and the run's report names them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tasks.config import SourceConfig
from tasks.errors import ConfigError
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected, Metadata, SourceFile, is_litter, make_source_file
from tasks.sources.matching import CaptionedFiles
from tasks.sources.patterns import Pattern, compile_pattern, split_pattern
from tasks.sources.sidecars import MAX_CAPTION_BYTES, is_caption_name

CHUNK_BYTES = 1 << 20


def walk(
    folder: str | Path, depth: int = 1_000, on_link: Callable[[str], None] | None = None, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """(path inside the folder, path) of everything below the folder except directories, sorted by the former.

    Linked directories are not entered. A directory sorts with its slash, so that the order is that of the whole paths:
    'a.png' < 'a/x.png'.

    Args:
        folder: where to begin.
        depth: of directories that are entered below it, a count.
        on_link: called with the path inside the folder of each linked directory, which is not entered.
        prefix: of these paths.
    """
    entries = []
    with os.scandir(folder) as directory:
        for entry in directory:
            name = os.fsencode(entry.name).decode("utf-8", "surrogateescape")
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or not (entry.is_symlink() and entry.is_dir()):
                entries.append((name + "/" * is_folder, entry.path))
            elif on_link is not None:
                on_link(prefix + name)
    for name, path in sorted(entries):
        if name.endswith("/"):
            if depth:
                below = walk(path, depth - 1, on_link, prefix + name)
                yield from ((name + inside, file) for inside, file in below)
        else:
            yield name, path


def read_file(path: str | Path, limit_bytes: int) -> bytes:
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


def read_chunks(path: str | Path) -> Iterator[bytes]:
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
        return [(inside, Path(file)) for inside, file in walk(path) if inside.endswith(suffixes)]
    base, pattern = split_pattern(source.path)
    files: list[tuple[str, Path]] = []
    if path.is_file():
        files = [(path.name, path)]
    elif pattern and Path(base or ".").is_dir():
        depth = 1_000 if "**" in pattern or not pattern.endswith(suffixes) else pattern.count("/") + 1
        wanted = compile_pattern(pattern)
        below = walk(Path(base or "."), depth)
        matching = [(inside, Path(file)) for inside, file in below if wanted.matches_or_holds(inside)]
        files = [item for item in matching if item[0].endswith(suffixes)] or matching
    if not files:
        raise ConfigError(_nothing_at(source))
    return files


def _nothing_at(source: SourceConfig) -> str:
    return (
        f"ingest.sources: source '{source.name}': nothing at {source.path}; expected a file, a folder or a pattern "
        "that matches; put files there, or correct 'path'"
    )


def list_folder(source: SourceConfig, counts: ListingCounts | None = None) -> Iterator[SourceFile]:
    """All files below the source's folder, or those of its pattern, except tables of captions and texts beside images.

    Args:
        source: of a folder.
        counts: where captions are counted.
    Raises:
        ConfigError: the folder does not exist, or its pattern matches nothing.
        DataError: captions.* has no column of paths, or no caption matches a file.
    """
    folder, wanted = _find_folder(source)
    counts = counts or ListingCounts()
    files = CaptionedFiles(source, counts)

    def note_link(inside: str) -> None:
        counts.note(f"{inside}: a linked folder, not entered; name the folder that it leads to as a source of its own")

    is_any = wanted is None  # a folder may be empty; a pattern that matches nothing is a mistake
    for inside, _ in walk(folder, on_link=note_link):
        is_wanted = wanted is None or wanted.matches_or_holds(inside)
        if is_wanted or files.is_table(inside) or is_caption_name(inside):
            files.add(inside)
        is_any |= is_wanted
    if not is_any:
        raise ConfigError(_nothing_at(source))

    def read_texts(texts: Iterator[tuple[str, str, int]]) -> Iterator[tuple[str, bytes]]:
        for inside, *_ in texts:
            try:
                with open(_local_path(folder, inside), "rb") as f:
                    yield inside, f.read(MAX_CAPTION_BYTES)
            except OSError as error:
                counts.note(f"{inside}: cannot be read: {error.strerror}")

    for place, why, is_lasting in files.read_captions(lambda inside: nullcontext(folder / inside), read_texts):
        yield make_damaged_row(source, place, why, is_lasting=is_lasting)
    top, start = folder.resolve(), os.path.join(folder, "")
    for inside, _, _, metadata in files.files():
        if wanted is not None and not wanted.matches_or_holds(inside):
            continue
        path = f"{start}{os.fsdecode(inside.encode('utf-8', 'surrogateescape'))}"
        refusal = _refusal(path, inside, top)
        if refusal:
            yield make_source_file(source, inside, "", metadata).rejected("not_a_picture", refusal)
        else:
            reader, chunks = partial(read_file, path), partial(read_chunks, path)
            yield make_source_file(source, inside, "", metadata, reader=reader, open_chunks=chunks)


def _refusal(path: str, inside: str, top: Path) -> str:
    """Why a file of a folder is not read; '' for a regular file."""
    if is_litter(inside):
        return "a file that an operating system leaves, not an image"
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "not a regular file"
    if stat.S_ISLNK(mode):
        if top not in Path(path).resolve().parents:
            return "a link out of the source's folder, not followed"
        return "" if os.path.isfile(path) else "not a regular file"
    return "" if stat.S_ISREG(mode) else "not a regular file"


def make_damaged_row(source: SourceConfig, place: str, why: str, *, is_lasting: bool) -> SourceFile:
    """A row of a table of captions that cannot be read, as a rejected file."""
    digest = hashlib.blake2b(why.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
    return make_source_file(source, place, digest, Metadata()).rejected("unreachable", why, is_lasting=is_lasting)


def _local_path(folder: Path, inside: str) -> Path:
    return folder / os.fsdecode(inside.encode("utf-8", "surrogateescape"))


def _find_folder(source: SourceConfig) -> tuple[Path, Pattern | None]:
    """The folder that is walked, and the pattern of the files in it; None for all.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = Path(source.path)
    if folder.is_dir():
        return folder, None
    base, pattern = split_pattern(source.path)
    if pattern and Path(base or ".").is_dir():
        return Path(base or "."), compile_pattern(pattern)
    raise ConfigError(
        f"ingest.sources: source '{source.name}': {folder} is no folder; expected a folder of images; "
        "create it, or correct 'path' in params.yaml or the trigger form"
    )
