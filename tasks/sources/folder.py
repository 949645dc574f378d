"""A folder of images, with captions.csv or captions.parquet beside them if there is one.

Order: by path inside the folder, whatever the file system's. Memory: the names of one folder at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks.config import SourceConfig
from tasks.errors import ConfigError
from tasks.sources.files import Label, Refused, SourceFile
from tasks.sources.labels import CAPTION_FILES, Labels

PIECE_BYTES = 1 << 20
URI_CHARS = 2_000


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path inside the folder, path) of everything below it but folders, in order of the former. Linked folders are not
    entered.

    A folder sorts with its slash, so that the order is that of the whole paths: 'a.png' < 'a/x.png'.
    """
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            name = os.fsencode(entry.name).decode("utf-8", "surrogateescape")
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or not (entry.is_symlink() and entry.is_dir()):
                entries.append((name + "/" * is_folder, entry.path))
    for name, path in sorted(entries):
        if name.endswith("/"):
            yield from ((name + below, deeper) for below, deeper in walk(Path(path)))
        else:
            yield name, Path(path)


def read_file(path: Path, limit_bytes: int) -> bytes:
    """A regular file's bytes.

    Raises:
        Refused: too large, or not readable.
    """
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size > limit_bytes:
                raise Refused("too_large", f"{size} bytes, at most {limit_bytes}")
            return f.read(limit_bytes + 1)
    except OSError as error:
        raise Refused("unreachable", f"cannot be read: {error.strerror}", is_lasting=False) from error


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, a piece at a time."""
    with open(path, "rb") as f:
        while piece := f.read(PIECE_BYTES):
            yield piece


def uri_text(text: str) -> str:
    """A name as one printable line: control, direction and unpaired characters by their escapes; a name too long is
    cut, with its hash.

    Two different names stay different.
    """
    shown = "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text[:URI_CHARS]
    )
    return (
        shown
        if len(text) <= URI_CHARS
        else f"{shown}...{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    )


def marked(fingerprint: str, uri: str) -> str:
    """A fingerprint that is this name's alone."""
    return f"{fingerprint}/{hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()}"


def labelled(source: SourceConfig, path_inside: str, fingerprint: str, label: Label) -> SourceFile:
    """A file of a source with the source's defaults applied; its readers are still to be set.

    Args:
        fingerprint: the mark of its bytes; its name is put to it, for the same bytes under a new name are a new file.
    """
    uri = f"{source.name}:{uri_text(path_inside)}"
    return SourceFile(
        uri,
        marked(fingerprint, uri) if fingerprint else "",
        label,
        label.license_code or source.license_code,
        label.attribution or source.attribution,
    )


def list_folder(source: SourceConfig) -> Iterator[SourceFile]:
    """All files below the source's folder but its table.

    Raises:
        ConfigError: no such folder.
        DataError: a table that cannot be read.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise ConfigError(
            f"ingest.sources: source '{source.name}': {folder} is no folder; make it, or correct 'path' in params.yaml or the trigger form"
        )
    top, labels = folder.resolve(), Labels()
    table = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    if table is not None:
        labels.add(table, source)
    for inside, path in walk(folder):
        if inside in CAPTION_FILES:
            continue
        file = labelled(source, inside, "", labels.get(inside))
        if path.is_symlink() and top not in path.resolve().parents:
            yield file.refused("not_a_picture", "a link out of the source's folder, not followed")
        elif not path.is_file():
            yield file.refused("not_a_picture", "not a regular file")
        else:
            yield replace(file, reader=partial(read_file, path), pieces=partial(pieces_of, path))
