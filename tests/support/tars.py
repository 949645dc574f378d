"""Tar files for tests."""

import io
import tarfile
from collections.abc import Sequence

Member = tuple[str, bytes]  # name, content


def make_tar(members: Sequence[Member | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with these members in this order; a TarInfo is added as it is, without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                tar.addfile(entry, io.BytesIO(member[1]))
    return out.getvalue()
