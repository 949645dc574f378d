"""Members of a tar, read header by header, however damaged it is.

Behind a header that is no header the next valid one is looked for, as GNU tar does; what lies between is one damage.
Behind the zero blocks that end an archive another one may follow (`cat a.tar b.tar`). A tar that ends without zero
blocks, or within a member, is damaged at its end.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512
WINDOW_BYTES = 1 << 16  # read at a time
MAX_HEADER_BYTES = 4 << 20  # of a long name or a pax header, which tarfile reads as a whole
UNSAFE_SUFFIXES = (".pkl", ".pickle", ".pyd", ".pyc", ".py", ".so", ".dll", ".exe", ".pt", ".pth", ".sh")
READ_ERRORS = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError)


@dataclass(frozen=True)
class TarMember:
    """A member that is no folder, or a place where the tar is damaged.

    Attributes:
        archive: which of the archives that lie one behind the other in the tar, from 0.
        name: its path inside the tar; '' of a damage.
        start, size_bytes: where its bytes lie.
        unsafe: why it is never read; '' for a regular file with a harmless name.
        damage: what is wrong with the tar here; '' for a member.
    """

    archive: int
    name: str = ""
    start: int = 0
    size_bytes: int = 0
    unsafe: str = ""
    damage: str = ""


class TarReader(io.RawIOBase):
    """A tar as tarfile reads it, at most a header's bytes at once.

    Args:
        read_at: (start, stop) -> these bytes of the tar, fewer at its end.
        size_bytes: of the tar.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read_at, self.size_bytes = read_at, size_bytes
        self._position = 0
        self._start, self._window = 0, b""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
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
            tarfile.ReadError: more than a header may have.
        """
        if size < 0 or size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        stop = min(self._position + size, self.size_bytes)
        if stop <= self._position:
            return b""
        if not (self._start <= self._position and stop <= self._start + len(self._window)):
            self._start = self._position
            self._window = self._read_at(self._start, min(self.size_bytes, max(stop, self._start + WINDOW_BYTES)))
        content = self._window[self._position - self._start : stop - self._start]
        self._position += len(content)
        return content


class _Headers(tarfile.TarFile):
    """A TarFile that reads no header by itself."""

    def next(self) -> None:
        """Nothing: `scan_members` asks for each header."""
        return


def unsafe_reason(member: tarfile.TarInfo) -> str:
    """Why a member is never read; '' for a regular file with a harmless name."""
    name = member.name.replace("\\", "/")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return "a link, a device or another special member"
    if member.issparse():
        return "a sparse member"
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or name[1:2] == ":":
        return "its name leads out of the tar"
    if posixpath.splitext(name.rstrip("/"))[1].lower() in UNSAFE_SUFFIXES:
        return "a program or a pickle"
    return ""


def scan_members(reader: TarReader) -> Iterator[TarMember]:
    """All members but folders in their order, and one entry for each place where the tar is damaged.

    Raises:
        FileRejected, TransientError: by the reads of a tar in a bucket.
    """
    headers = _Headers(fileobj=reader, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
    offset, archive, zero_blocks, damage = 0, 0, 0, ""
    while offset < reader.size_bytes:
        reader.seek(offset)
        block = reader.read(BLOCK_BYTES)
        if block == bytes(len(block)) and len(block) == BLOCK_BYTES:
            zero_blocks += 1
            offset += BLOCK_BYTES
            continue
        reader.seek(offset)
        headers.offset = offset  # type: ignore[attr-defined]
        try:
            member = tarfile.TarInfo.fromtarfile(headers)
            after = int(headers.offset)  # type: ignore[attr-defined]
            if after <= offset or member.size < 0:
                raise tarfile.ReadError(f"a member of {member.size} bytes")
        except READ_ERRORS as error:
            damage = damage or f"{error or 'no header'}, at byte {offset}"
            offset += BLOCK_BYTES
            continue
        if damage:
            yield TarMember(archive, damage=damage)
        archive += bool(zero_blocks)
        offset, zero_blocks, damage = after, 0, ""
        if not member.isdir():
            unsafe = unsafe_reason(member)
            yield TarMember(archive, member.name, member.offset_data, member.size, unsafe)
    if damage:
        yield TarMember(archive, damage=damage)
    elif offset > reader.size_bytes:
        yield TarMember(archive, damage="it ends within its last member")
    elif not zero_blocks and reader.size_bytes:
        yield TarMember(archive, damage="it ends without the zero blocks that end a tar; members behind may be missing")
    elif not reader.size_bytes:
        yield TarMember(archive, damage="it is empty")
