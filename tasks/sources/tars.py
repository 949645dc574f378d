"""WebDataset tars, in a folder or a bucket: key.jpg with its caption in key.txt or key.json.

Members are read in place: nothing is extracted to disk and nothing is unpickled. Every member that is not a caption is
listed as one file: an image; or a rejected file, when it is not regular (a link, a device, a sparse file), its name
leads out of the tar or occurred before, or its suffix is that of a program or a pickle (`unsafe`), or it is of another
type (`not_a_picture`). Tars are taken in order of their names, members in order of their position; a tar may have any
number of members, in constant memory.

A member's fingerprint is its tar's (the ETag, or the sha256 of a local tar, one pass over its bytes; and the tar's
name) and its number; the last member's ends in '/end': once that is known, the whole tar is skipped. A tar in a bucket
is read once, front to back: members of at most 1 MiB are downloaded while listing, larger ones by a range request when
they are needed. Compressed tars are rejected, since their members cannot be read in place.
"""

from __future__ import annotations

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
from tasks.sources import s3
from tasks.sources.columns import TableFormat, UnreadableText, parse_metadata
from tasks.sources.files import (
    SUFFIXES,
    FileRejected,
    Metadata,
    SourceFile,
    bind_fingerprint,
    make_source_file,
)
from tasks.sources.folder import find_local_files, read_chunks
from tasks.sources.metadata import SeenKeys

log = logging.getLogger(__name__)

MAX_CAPTION_BYTES = 1 << 20
MAX_HEADER_BYTES = 4 << 20  # of a long name or a pax header, which tarfile reads as a whole
INLINE_BYTES = 1 << 20  # largest member of a remote tar that is downloaded while listing
GROUP_FILES = 64  # most files of one key that wait for its caption
CAPTION_SUFFIXES = (".txt", ".json")
UNSAFE_SUFFIXES = (".pkl", ".pickle", ".pyd", ".pyc", ".py", ".so", ".dll", ".exe", ".pt", ".pth", ".sh")


class TarReader(io.RawIOBase):
    """A tar as tarfile reads it, at most a header's bytes at once; a remote tar is read forward as one stream.

    Args:
        open_at: chunks of the tar from an offset on.
        size_bytes: of the tar.
    """

    SKIP_BYTES = 4 << 20  # a longer way forward starts a new range request

    def __init__(self, open_at: Callable[[int], Iterator[bytes]], size_bytes: int) -> None:
        self._open_at, self.size_bytes = open_at, size_bytes
        self._position = 0
        self._chunk_start, self._chunk = 0, b""  # the current chunk and its offset
        self._chunks: Iterator[bytes] | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: a way back or far forward starts a new range request."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset, as io.IOBase.seek does; nothing is read yet."""
        self._position = max(0, offset + (0, self._position, self.size_bytes)[whence])
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer at the end.

        Raises:
            tarfile.ReadError: more than a header may have, or the tar has become shorter.
        """
        if size < 0 or size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        out = bytearray()
        while len(out) < size and self._position < self.size_bytes:
            if not self._chunk_start <= self._position < self._chunk_start + len(self._chunk):
                self._load_chunk()
            first = self._position - self._chunk_start
            piece = self._chunk[first : first + size - len(out)]
            out += piece
            self._position += len(piece)
        return bytes(out)

    def _load_chunk(self) -> None:
        """Read forward (or from a new range) up to the chunk that holds the position."""
        end = self._chunk_start + len(self._chunk)
        if self._chunks is None or self._position < end or self._position - end > self.SKIP_BYTES:
            self._chunks = self._open_at(self._position)
            self._chunk_start, self._chunk, end = self._position, b"", self._position
        while self._position >= end:
            chunk = next(self._chunks, b"")
            if not chunk:
                raise tarfile.ReadError("the tar is shorter than it was")
            self._chunk_start, self._chunk = end, chunk
            end += len(chunk)


@dataclass(frozen=True)
class TarArchive:
    """A tar of a source.

    Attributes:
        name: its path inside the source.
        fingerprint: of its bytes, bound to its name.
        open_tar: a new reader over it.
        read_span: (start, stop, limit in bytes) -> bytes [start, stop).
        is_remote: whether it lies in a bucket.
    """

    name: str
    fingerprint: str
    open_tar: Callable[[], TarReader]
    read_span: Callable[[int, int, int], bytes]
    is_remote: bool


@dataclass
class MemberGroup:
    """Images of one key, waiting for its caption member; `row` holds what that states, by field of COLUMNS."""

    key: str
    files: list[SourceFile] = field(default_factory=list)
    row: dict[str, object] = field(default_factory=dict)

    def files_with_metadata(self, source: SourceConfig) -> Iterator[SourceFile]:
        """Its images with the caption."""
        metadata = parse_metadata(self.row)
        yield from (file.with_metadata(metadata, source) for file in self.files)


def unsafe_reason(member: tarfile.TarInfo) -> str | None:
    """Why a member is never read; None for a regular file with a harmless name."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return "a link, a device or another special member"
    if member.issparse():
        return "a sparse member"
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or member.name[1:2] == ":":
        return "its name leads out of the tar"
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        return "a program or a pickle"
    return None


def webdataset_key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def parse_caption(suffix: str, content: bytes, source: SourceConfig) -> dict[str, object]:
    """Fields of COLUMNS that a key.txt or key.json states; none when it is not a JSON object."""
    text = content.decode("utf-8", "replace")
    if suffix == ".txt":
        return {"caption": text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    try:
        return TableFormat(source, ("caption",), "").values(values)
    except UnreadableText:
        return {}


class TarLister:
    """Lists one tar's members as source files."""

    def __init__(self, tar: TarArchive, source: SourceConfig) -> None:
        self.tar, self.source = tar, source
        self._names = SeenKeys()
        self._group = MemberGroup("")
        self._number = -1  # of the current member, captions and rejected ones included

    def files(self) -> Iterator[SourceFile]:
        """The tar's files in their order; the last one's fingerprint ends in '/end'."""
        previous: SourceFile | None = None
        for file in self._members():
            if previous is not None:
                yield previous
            previous = file
        if previous is not None:
            yield replace(previous, fingerprint=f"{self.tar.fingerprint}/end")

    def _members(self) -> Iterator[SourceFile]:
        """The tar's files, and a rejected one at the place where the tar is damaged."""
        try:
            reader = self.tar.open_tar()
            with tarfile.open(fileobj=reader, mode="r:") as members:  # type: ignore[call-overload]
                while (member := members.next()) is not None:
                    members.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all that it has read
                    if not member.isdir():
                        self._number += 1
                        yield from self._list_member(member, reader)
            yield from self._group.files_with_metadata(self.source)
        except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
            self._number += 1
            yield from self._group.files_with_metadata(self.source)
            damage = f"the tar is damaged after {self._number} members: {error}"
            yield self._make_file(f"#{self._number}").rejected("unreachable", damage)
        except FileRejected as rejected:  # the object was replaced since it was listed
            self._number += 1
            yield from self._group.files_with_metadata(self.source)
            yield self._make_file(f"#{self._number}").rejected(
                rejected.reason, rejected.detail, is_lasting=rejected.is_lasting
            )

    def _make_file(self, name: str) -> SourceFile:
        file = make_source_file(self.source, f"{self.tar.name}/{name}", "", Metadata())
        return replace(file, fingerprint=f"{self.tar.fingerprint}/{self._number}", is_remote=self.tar.is_remote)

    def _list_member(self, member: tarfile.TarInfo, reader: TarReader) -> Iterator[SourceFile]:
        """Files that are complete with this member: it is rejected, or it ends the group of the previous key."""
        if not self._names.add(member.name):
            name = f"{member.name}#{self._number}"
            yield self._make_file(name).rejected("unsafe", "a second member of this name")
            return
        if reason := unsafe_reason(member):
            yield self._make_file(member.name).rejected("unsafe", reason)
            return
        key, suffix = webdataset_key(member.name), PurePosixPath(member.name).suffix.lower()
        if key != self._group.key or len(self._group.files) >= GROUP_FILES:
            yield from self._group.files_with_metadata(self.source)
            self._group = MemberGroup(key)
        if suffix in CAPTION_SUFFIXES:
            reader.seek(member.offset_data)
            row = parse_caption(suffix, reader.read(min(member.size, MAX_CAPTION_BYTES)), self.source)
            self._group.row.update({name: value for name, value in row.items() if value})
        elif suffix in SUFFIXES:
            self._group.files.append(self._image_file(member, reader))
        else:
            yield self._make_file(member.name).rejected("not_a_picture", f"a member of kind '{suffix}'")

    def _image_file(self, member: tarfile.TarInfo, reader: TarReader) -> SourceFile:
        file, start, size = self._make_file(member.name), member.offset_data, member.size
        if self.tar.is_remote and size <= INLINE_BYTES:
            reader.seek(start)
            return replace(file, reader=partial(_check_length, reader.read(size), size))
        return replace(file, reader=partial(self.tar.read_span, start, start + size))


def _check_length(content: bytes, size: int, limit_bytes: int) -> bytes:
    """The content of a member, if it is complete; `limit_bytes` is checked by SourceFile.read."""
    if len(content) < size:
        raise FileRejected("unreachable", "the tar ends within this member")
    return content


# --- local and remote tars --------------------------------------------------------------------------------------------


def read_span(path: Path, start: int, stop: int, limit_bytes: int) -> bytes:
    """Bytes [start, stop) of a local tar.

    Raises:
        FileRejected: too_large, or not readable.
    """
    if stop - start > limit_bytes:
        raise FileRejected("too_large", f"{stop - start} bytes, at most {limit_bytes}")
    try:
        with open(path, "rb") as f:
            f.seek(start)
            content = f.read(stop - start)
    except OSError as error:
        raise FileRejected("unreachable", f"cannot be read: {error.strerror}", is_lasting=False) from error
    return _check_length(content, stop - start, limit_bytes)


def read_remote_span(location: s3.S3Location, item: s3.S3Object, start: int, stop: int, limit_bytes: int) -> bytes:
    """Bytes [start, stop) of a tar in a bucket; raises as `s3.read_object`."""
    return s3.read_object(location, item, limit_bytes, start, stop)


def _local_chunks(path: Path, offset: int) -> Iterator[bytes]:
    with open(path, "rb") as f:
        f.seek(offset)
        while chunk := f.read(64 * 1024):
            yield chunk


def _open_local(path: Path) -> TarReader:
    return TarReader(partial(_local_chunks, path), path.stat().st_size)


def _open_remote(location: s3.S3Location, item: s3.S3Object) -> TarReader:
    return TarReader(partial(s3.stream_object, location, item), item.size_bytes)


def _reject_compressed(source: SourceConfig, name: str, fingerprint: str) -> SourceFile:
    return make_source_file(source, name, fingerprint, Metadata()).rejected(
        "not_a_picture", "a packed tar, whose members cannot be read where they lie; unpack it to .tar"
    )


def find_tars(source: SourceConfig) -> Iterator[TarArchive | SourceFile]:
    """The source's tars by name; a rejected file for each compressed one.

    Raises:
        ConfigError: no tar, or a bucket without access.
        TransientError: a bucket that fails.
    """
    if source.path.startswith("s3://"):
        yield from _find_remote_tars(source)
        return
    for name, path in find_local_files(source, (".tar", *PACKED_TARS)):
        digest = hashlib.sha256()
        for chunk in read_chunks(path):
            digest.update(chunk)
        if name.endswith(PACKED_TARS):
            yield _reject_compressed(source, name, digest.hexdigest())
        else:
            fingerprint = bind_fingerprint(digest.hexdigest(), f"{source.name}:{name}")
            yield TarArchive(name, fingerprint, partial(_open_local, path), partial(read_span, path), False)


def _find_remote_tars(source: SourceConfig) -> Iterator[TarArchive | SourceFile]:
    location = s3.parse_location(source)
    for item in s3.list_objects(location):
        name = location.path_inside(item)
        if item.key.endswith(PACKED_TARS):
            yield _reject_compressed(source, name, item.etag)
        elif item.key.endswith(".tar"):
            fingerprint = bind_fingerprint(item.etag, f"{source.name}:{name}")
            open_tar, span = partial(_open_remote, location, item), partial(read_remote_span, location, item)
            yield TarArchive(name, fingerprint, open_tar, span, True)


def list_tars(source: SourceConfig, is_known: Callable[[str], bool]) -> Iterator[SourceFile]:
    """All files of all tars except those that an earlier batch has taken to their end.

    Raises:
        ConfigError: no tar.
        TransientError: a bucket that fails.
    """
    for tar in find_tars(source):
        if isinstance(tar, SourceFile):
            yield tar
        elif is_known(f"{tar.fingerprint}/end"):
            log.info("ingest: %s:%s was taken completely by an earlier batch; skipped", source.name, tar.name)
        else:
            yield from TarLister(tar, source).files()
