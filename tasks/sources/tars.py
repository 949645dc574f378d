"""WebDataset tars, of a folder or a bucket: key.jpg with its caption in key.txt or key.json.

Members are read where they lie: nothing is unpacked to a disk and nothing is unpickled. Every member that is no caption
is one file: an image; or refused, when it is no regular file (a link, a device, a sparse file), its name leads out of
the tar, was there before, or says that it is a program or a pickle. Tars are taken by name, members by their place; a
tar may have any number of them, in constant memory.

A member's fingerprint is its tar's (the ETag, or the sha256 of a local tar, one pass over its bytes; and the tar's
name) and its number, the last one's ends in '/end': once that was seen, the whole tar is passed over. A tar in a bucket
is read once, front to back; members of at most 1 MiB come along with the listing, larger ones are read as a range when
they are wanted.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from tasks.config import PACKED_TARS, SourceConfig
from tasks.errors import ConfigError
from tasks.sources import s3
from tasks.sources.files import SUFFIXES, Label, Refused, SourceFile
from tasks.sources.folder import labelled, marked, pieces_of, walk
from tasks.sources.labels import COLUMNS, Once, label_of

log = logging.getLogger(__name__)

MAX_CAPTION_BYTES = 1 << 20
MAX_HEADER_BYTES = 4 << 20  # of a long name or a pax header, which tarfile reads as a whole
INLINE_BYTES = 1 << 20
GROUP_FILES = 64  # most files of one key that wait for its caption
CAPTIONS = (".txt", ".json")
NEVER = (".pkl", ".pickle", ".pyd", ".pyc", ".py", ".so", ".dll", ".exe", ".pt", ".pth", ".sh")


class Source(io.RawIOBase):
    """A tar as tarfile reads it: never more than a header's bytes at once. Forward only where it comes from a bucket.

    Args:
        open_at: pieces of the tar from an offset on.
        size_bytes: of the tar.
    """

    SKIP_BYTES = 4 << 20  # a longer way is gone by a new range

    def __init__(self, open_at: Callable[[int], Iterator[bytes]], size_bytes: int) -> None:
        self._open_at, self.size_bytes = open_at, size_bytes
        self._at = 0
        self._start, self._block = 0, b""  # the piece in hand and where it begins
        self._pieces: Iterator[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self.size_bytes)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        out = bytearray()
        while len(out) < size and self._at < self.size_bytes:
            if not self._start <= self._at < self._start + len(self._block):
                self._fill()
            piece = self._block[self._at - self._start : self._at - self._start + size - len(out)]
            out += piece
            self._at += len(piece)
        return bytes(out)

    def _fill(self) -> None:
        end = self._start + len(self._block)
        if self._pieces is None or self._at < end or self._at - end > self.SKIP_BYTES:
            self._pieces, self._start, self._block, end = self._open_at(self._at), self._at, b"", self._at
        while self._at >= end:
            piece = next(self._pieces, b"")
            if not piece:
                raise tarfile.ReadError("the tar is shorter than it was")
            self._start, self._block = end, piece
            end += len(piece)


@dataclass(frozen=True)
class Tar:
    """A tar of a source."""

    name: str  # below the source
    fingerprint: str
    open_tar: Callable[[], Source]
    read_span: Callable[[int, int, int], bytes]  # (start, stop, limit) -> bytes
    is_remote: bool


@dataclass
class Group:
    """Members with one key: images that wait for their caption."""

    key: str
    files: list[SourceFile] = field(default_factory=list)
    row: dict[str, object] = field(default_factory=dict)


def why_unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is never touched; None for a regular file with a harmless name."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return "a link, a device or another special member"
    if member.issparse():
        return "a sparse member"
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or member.name[1:2] == ":":
        return "its name leads out of the tar"
    if path.suffix.lower() in NEVER:
        return "a program or a pickle"
    return None


def key_of(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the last name."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def caption_row(suffix: str, content: bytes, source: SourceConfig) -> dict[str, object]:
    """What key.txt or key.json says, by the things of COLUMNS; nothing when it is no text or no JSON object."""
    text = content.decode("utf-8", "replace")
    if suffix == ".txt":
        return {"caption": text}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    row: dict[str, object] = {}
    for thing, usual in COLUMNS.items():
        named = source.columns.get(thing)  # type: ignore[call-overload]
        row[thing] = next((found[name] for name in ([named] if named else usual) if found.get(name)), None)
    return row


def with_label(source: SourceConfig, file: SourceFile, label: Label) -> SourceFile:
    """The file under its label, with the source's defaults."""
    return replace(
        file,
        label=label,
        license_code=label.license_code or source.license_code,
        attribution=label.attribution or source.attribution,
    )


def members_of(tar: Tar, source: SourceConfig) -> Iterator[SourceFile]:
    """The tar's files in their order, but for the '/end' of the last."""
    names = Once()
    group = Group("")
    number = -1

    def file_of(name: str) -> SourceFile:
        file = labelled(source, f"{tar.name}/{name}", "", Label())
        return replace(file, fingerprint=f"{tar.fingerprint}/{number}", is_remote=tar.is_remote)

    def closed() -> Iterator[SourceFile]:
        label = label_of(group.row)
        yield from (with_label(source, f, label) for f in group.files)

    try:
        raw = tar.open_tar()
        with tarfile.open(fileobj=raw, mode="r:") as members:  # type: ignore[call-overload]
            while (member := members.next()) is not None:
                members.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                if member.isdir():
                    continue
                number += 1
                if not names.is_new(member.name):
                    yield file_of(f"{member.name}#{number}").refused("unsafe", "a second member of this name")
                    continue
                if why := why_unsafe(member):
                    yield file_of(member.name).refused("unsafe", why)
                    continue
                key, suffix = key_of(member.name), PurePosixPath(member.name).suffix.lower()
                if key != group.key or len(group.files) >= GROUP_FILES:
                    yield from closed()
                    group = Group(key)
                start, size = member.offset_data, member.size
                if suffix in CAPTIONS:
                    raw.seek(start)
                    said = caption_row(suffix, raw.read(min(size, MAX_CAPTION_BYTES)), source)
                    group.row.update({thing: value for thing, value in said.items() if value})
                elif suffix not in SUFFIXES:
                    yield file_of(member.name).refused("not_a_picture", f"a member of kind '{suffix}'")
                elif tar.is_remote and size <= INLINE_BYTES:
                    raw.seek(start)
                    group.files.append(replace(file_of(member.name), reader=partial(_inline, raw.read(size), size)))
                else:
                    group.files.append(
                        replace(file_of(member.name), reader=partial(tar.read_span, start, start + size))
                    )
        yield from closed()
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        number += 1
        yield from closed()
        yield file_of(f"#{number}").refused("unreachable", f"the tar is damaged after {number} members: {error}")
    except Refused as refused:  # another object lies there by now
        number += 1
        yield from closed()
        yield file_of(f"#{number}").refused(refused.reason, refused.detail, is_lasting=refused.is_lasting)


def _inline(content: bytes, size: int, limit_bytes: int) -> bytes:
    if len(content) < size:
        raise Refused("unreachable", "the tar ends within this member")
    return content


def tar_files(tar: Tar, source: SourceConfig) -> Iterator[SourceFile]:
    """The tar's files; the last one's fingerprint ends in '/end'."""
    waiting: SourceFile | None = None
    for file in members_of(tar, source):
        if waiting is not None:
            yield waiting
        waiting = file
    if waiting is not None:
        yield replace(waiting, fingerprint=f"{tar.fingerprint}/end")


# --- where tars lie ---------------------------------------------------------------------------------------------------


def local_paths(source: SourceConfig, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, path) of a source's local files: the path itself, what its pattern matches, or all of those suffixes below
    a folder.

    Raises:
        ConfigError: none.
    """
    path = Path(source.path)
    if path.is_dir():
        found = [(inside, deeper) for inside, deeper in walk(path) if inside.endswith(suffixes)]
    elif "*" in source.path:
        found = sorted((Path(p).name, Path(p)) for p in glob.glob(source.path))
    else:
        found = [(path.name, path)] if path.is_file() else []
    if not found and not path.is_dir():
        raise ConfigError(
            f"ingest.sources: source '{source.name}': nothing at {source.path}; put files there, or correct 'path'"
        )
    return found


def read_span(path: Path, start: int, stop: int, limit_bytes: int) -> bytes:
    """Bytes [start, stop) of a local tar.

    Raises:
        Refused: too_large, or not readable.
    """
    if stop - start > limit_bytes:
        raise Refused("too_large", f"{stop - start} bytes, at most {limit_bytes}")
    try:
        with open(path, "rb") as f:
            f.seek(start)
            content = f.read(stop - start)
    except OSError as error:
        raise Refused("unreachable", f"cannot be read: {error.strerror}", is_lasting=False) from error
    return _inline(content, stop - start, limit_bytes)


def _open_local(path: Path, offset: int) -> Iterator[bytes]:
    with open(path, "rb") as f:
        f.seek(offset)
        while piece := f.read(64 * 1024):
            yield piece


def tars_of(source: SourceConfig) -> Iterator[Tar | SourceFile]:
    """The source's tars by name; a file that is refused for one that is packed."""

    def packed(name: str, fingerprint: str) -> SourceFile:
        file = labelled(source, name, fingerprint, Label())
        return file.refused(
            "not_a_picture", "a packed tar, whose members cannot be read where they lie; unpack it to .tar"
        )

    if source.path.startswith("s3://"):
        place = s3.place_of(source)
        for found in s3.objects(place):
            if found.key.endswith(PACKED_TARS):
                yield packed(place.inside(found), found.etag)
            elif found.key.endswith(".tar"):
                yield Tar(
                    place.inside(found),
                    marked(found.etag, f"{source.name}:{place.inside(found)}"),
                    partial(_remote, place, found),
                    lambda start, stop, limit, place=place, found=found: s3.read_object(
                        place, found, limit, start, stop
                    ),  # type: ignore[misc]
                    True,
                )
        return
    for name, path in local_paths(source, (".tar", *PACKED_TARS)):
        digest = hashlib.sha256()
        for piece in pieces_of(path):
            digest.update(piece)
        if name.endswith(PACKED_TARS):
            yield packed(name, digest.hexdigest())
        else:
            yield Tar(
                name,
                marked(digest.hexdigest(), f"{source.name}:{name}"),
                partial(_local, path),
                partial(read_span, path),
                False,
            )


def _remote(place: s3.Place, found: s3.S3Object) -> Source:
    return Source(partial(s3.pieces_of, place, found), found.size_bytes)


def _local(path: Path) -> Source:
    return Source(partial(_open_local, path), path.stat().st_size)


def list_tars(source: SourceConfig, is_seen: Callable[[str], bool]) -> Iterator[SourceFile]:
    """All files of all tars but those that were seen to their end.

    Raises:
        ConfigError: no tar.
        TransientError: a bucket that fails.
    """
    for tar in tars_of(source):
        if isinstance(tar, SourceFile):
            yield tar
        elif is_seen(f"{tar.fingerprint}/end"):
            log.info("ingest: %s:%s was taken by an earlier batch", source.name, tar.name)
        else:
            yield from tar_files(tar, source)
