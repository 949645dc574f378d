"""WebDataset tars, in a folder or a bucket: key.jpg with its caption in key.txt, key.caption or key.json.

Members are read in place: nothing is extracted to disk and nothing is unpickled. Every member that is not a caption is
listed as one file, whatever its name: its bytes tell whether it is an image. It is rejected when it is not regular (a
link, a device, a sparse file), its name leads out of the tar or occurred before in the archive, or its suffix is that
of a program or a pickle (`unsafe`). Where a tar is damaged, a rejected file says so (`unreachable`), and the members
behind it are read. Tars are taken in order of their names, members in order of their position; a tar may have any
number of members, in constant memory. A tar is read to its end before its first image is listed, because captions may
come behind the images (tasks/sources/sidecars.py tells which belongs to which).

A member's fingerprint is its tar's (the ETag, or the sha256 of a local tar, one pass over its bytes; and the tar's
name) and its number; the last member's ends in '/end': once that is known, the whole tar is skipped. A tar in a bucket
is downloaded once, to a temporary file that goes with its last member; one of more than half the free disk is read by
range requests. A compressed tar is unpacked to such a file (tasks/sources/packed_tars.py).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.config import PACKED_TARS, SourceConfig
from tasks.sources import s3
from tasks.sources.counts import ListingCounts
from tasks.sources.files import (
    FileRejected,
    Metadata,
    SourceFile,
    bind_fingerprint,
    is_litter,
    make_source_file,
)
from tasks.sources.folder import find_local_files, read_chunks
from tasks.sources.packed_tars import open_tar
from tasks.sources.seen import SeenKeys
from tasks.sources.sidecars import MAX_CAPTION_BYTES, Sidecars, is_caption_name
from tasks.sources.spool import Spool
from tasks.sources.tar_members import READ_ERRORS, TarMember, TarReader, scan_members

log = logging.getLogger(__name__)

LEAST_CAPTIONS = 10  # of a source's tars: when so many match no image at all, it is an error


@dataclass(frozen=True)
class TarArchive:
    """A tar of a source.

    Attributes:
        name: its path inside the source.
        fingerprint: of its bytes, bound to its name.
        size_bytes: of the tar.
        open_bytes: makes a reader of it: (start, stop) -> these bytes, fewer at its end.
    """

    name: str
    fingerprint: str
    size_bytes: int
    open_bytes: Callable[[], Callable[[int, int], bytes]]


class _Members:
    """The members of one tar, on disk: number -> member."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)  # '': a temporary file
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE members (number INTEGER PRIMARY KEY, archive INTEGER, name BLOB, start INTEGER, "
            "size_bytes INTEGER, unsafe TEXT, damage TEXT)"
        )
        self._rows.execute("BEGIN")

    def add(self, number: int, member: TarMember) -> None:
        """Add a member."""
        name = member.name.encode("utf-8", "surrogatepass")
        place = (number, member.archive, name, min(member.start, 2**62), min(member.size_bytes, 2**62))
        self._rows.execute("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", (*place, member.unsafe, member.damage))

    def all(self) -> Iterator[tuple[int, TarMember]]:
        """(number, member) in their order."""
        for number, archive, name, *rest in self._rows.execute("SELECT * FROM members ORDER BY number"):
            yield number, TarMember(archive, name.decode("utf-8", "surrogatepass"), *rest)


class TarLister:
    """Lists one tar's members as source files.

    Args:
        tar: the tar.
        source: that it belongs to.
        counts: where captions are counted.
        names: names of files that the source has listed.
    """

    def __init__(self, tar: TarArchive, source: SourceConfig, counts: ListingCounts, names: SeenKeys) -> None:
        self.tar, self.source, self.counts, self._names = tar, source, counts, names
        self._seen = SeenKeys()  # names of an archive's members
        self._members = _Members()
        self._texts = Sidecars(source, counts, f"{tar.name}/")

    def files(self) -> Iterator[SourceFile]:
        """The tar's files in their order; the last one's fingerprint ends in '/end'."""
        previous: SourceFile | None = None
        for file in self._list():
            if previous is not None:
                yield previous
            previous = file
        if previous is not None:
            yield replace(previous, fingerprint=f"{self.tar.fingerprint}/end")

    def _list(self) -> Iterator[SourceFile]:
        number = 0
        try:
            read_at, size_bytes, damage = open_tar(self.tar.open_bytes(), self.tar.size_bytes, self.tar.fingerprint)
            reader = TarReader(read_at, size_bytes)
            for member in _with_damage_of_packing(scan_members(reader), damage):
                if not self._take_text(member, reader):
                    self._members.add(number, member)
                number += 1
        except READ_ERRORS as error:
            self._members.add(number, TarMember(0, damage=str(error)))
        except FileRejected as rejected:  # the object was replaced since it was listed, or may not be read
            yield from self._list_members(None)
            yield self._make_file("#" + str(number), number).rejected(
                rejected.reason, rejected.detail, is_lasting=rejected.is_lasting
            )
            return
        yield from self._list_members(read_at)

    def _take_text(self, member: TarMember, reader: TarReader) -> bool:
        """Whether the member is a caption; then it is read."""
        if member.damage or member.unsafe or is_litter(member.name):
            return False
        if not is_caption_name(member.name):
            self._texts.add_image(member.name)
            return False
        reader.seek(member.start)
        self._texts.add_text(member.name, reader.read(min(member.size_bytes, MAX_CAPTION_BYTES)))
        return True

    def _list_members(self, read_at: Callable[[int, int], bytes] | None) -> Iterator[SourceFile]:
        """All members but captions as files; without `read_at` their bytes cannot be had."""
        for number, member in self._members.all():
            if member.damage:
                damage = f"the tar is damaged after {number} members: {member.damage}"
                yield self._make_file(f"#{number}", number).rejected("unreachable", damage)
                continue
            if not self._seen.add(f"{member.archive}/{member.name}"):
                yield self._make_file(member.name, number).rejected("unsafe", "a second member of this name")
            elif member.unsafe:
                yield self._make_file(member.name, number).rejected("unsafe", member.unsafe)
            elif is_litter(member.name):
                what = "a file that an operating system leaves, not an image"
                yield self._make_file(member.name, number).rejected("not_a_picture", what)
            elif read_at is None:
                what = "its tar cannot be read"
                yield self._make_file(member.name, number).rejected("unreachable", what, is_lasting=False)
            else:
                metadata = self._texts.find(member.name)
                reader = partial(_read_member, read_at, member.start, member.start + member.size_bytes)
                file = self._make_file(member.name, number, metadata, reader=reader)
                self.counts.count_file(file.uri, has_caption=metadata.caption is not None)
                yield file
        self._texts.count_captions()

    def _make_file(self, name: str, number: int, metadata: Metadata | None = None, **attributes: Any) -> SourceFile:
        inside = f"{self.tar.name}/{name}"
        while not self._names.add(inside):
            inside = f"{inside}#{number}"
        fingerprint = f"{self.tar.fingerprint}/{number}"
        return make_source_file(
            self.source, inside, "", metadata or Metadata(), own_fingerprint=fingerprint, **attributes
        )


def _with_damage_of_packing(members: Iterator[TarMember], damage: str) -> Iterator[TarMember]:
    """The members; what damaged a compressed tar is told together with what it did to the tar's end, as one damage."""
    last: TarMember | None = None
    for member in members:
        if last is not None:
            yield last
        last = member
    if damage and (last is None or not last.damage):
        if last is not None:
            yield last
        last = TarMember(last.archive if last else 0, damage=damage)
    elif damage and last is not None:
        last = replace(last, damage=f"{damage}; {last.damage}")
    if last is not None:
        yield last


def _read_member(read_at: Callable[[int, int], bytes], start: int, stop: int, limit_bytes: int) -> bytes:
    """A member's bytes.

    Raises:
        FileRejected: too_large, or not there.
    """
    if stop - start > limit_bytes:
        raise FileRejected("too_large", f"{stop - start} bytes, at most {limit_bytes}")
    try:
        content = read_at(start, stop)
    except OSError as error:
        raise FileRejected("unreachable", f"cannot be read: {error.strerror}", is_lasting=False) from error
    if len(content) < stop - start:
        raise FileRejected("unreachable", "the tar ends within this member")
    return content


# --- local and remote tars --------------------------------------------------------------------------------------------


def _read_local(path: Path, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, fewer at its end."""
    with open(path, "rb") as f:
        f.seek(start)
        return f.read(stop - start)


def _open_local(path: Path) -> Callable[[int, int], bytes]:
    return partial(_read_local, path)


def _read_range(location: s3.S3Location, item: s3.S3Object, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of an object, by a range request."""
    return s3.read_object(location, item, stop - start, start, stop)


@dataclass(frozen=True)
class _DownloadedTar:
    """A tar of a bucket on this machine's disk; in another process, to which its members are listed, range requests."""

    location: s3.S3Location
    item: s3.S3Object
    spool: Spool

    def __call__(self, start: int, stop: int) -> bytes:
        return self.spool.read(start, stop)

    def __reduce__(self) -> tuple[type[partial[bytes]], tuple[Any, ...]]:
        return partial, (_read_range, self.location, self.item)


def _open_remote(location: s3.S3Location, item: s3.S3Object) -> Callable[[int, int], bytes]:
    if item.size_bytes > shutil.disk_usage(tempfile.gettempdir()).free // 2:
        log.info("ingest: %s: more than half of the free disk; read by range requests", item.url)
        return partial(_read_range, location, item)
    spool = Spool()
    for chunk in s3.stream_object(location, item):
        spool.append(chunk)
    return _DownloadedTar(location, item, spool)


def find_tars(source: SourceConfig) -> Iterator[TarArchive]:
    """The source's tars by name, compressed ones too.

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
        fingerprint = bind_fingerprint(digest.hexdigest(), f"{source.name}:{name}")
        yield TarArchive(name, fingerprint, path.stat().st_size, partial(_open_local, path))


def _find_remote_tars(source: SourceConfig) -> Iterator[TarArchive]:
    location = s3.parse_location(source)
    for item in s3.list_objects(location):
        name = location.path_inside(item)
        if item.key.endswith((".tar", *PACKED_TARS)):
            fingerprint = bind_fingerprint(item.etag, f"{source.name}:{name}")
            yield TarArchive(name, fingerprint, item.size_bytes, partial(_open_remote, location, item))


def list_tars(
    source: SourceConfig, is_known: Callable[[str], bool], counts: ListingCounts | None = None
) -> Iterator[SourceFile]:
    """All files of all tars except those that an earlier batch has taken to their end.

    Args:
        source: of tars.
        is_known: whether an earlier batch has a row with this fingerprint.
        counts: where captions are counted.
    Raises:
        ConfigError: no tar.
        DataError: many captions, and none belongs to an image.
        TransientError: a bucket that fails.
    """
    counts, names = counts or ListingCounts(), SeenKeys()
    of_source = ListingCounts()
    for tar in find_tars(source):
        if is_known(f"{tar.fingerprint}/end"):
            log.info("ingest: %s:%s was taken completely by an earlier batch; skipped", source.name, tar.name)
        else:
            of_tar = ListingCounts()
            yield from TarLister(tar, source, of_tar, names).files()
            counts.add(of_tar)
            of_source.add(of_tar)
    if of_source.unmatched >= LEAST_CAPTIONS:
        of_source.refuse_no_match(f"ingest.sources: source '{source.name}'")
