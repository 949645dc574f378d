"""Write image shards: tar files of at most `ingest.shard_images` images.

Headers carry no time and no user, so that the same images give the same bytes. A shard is written under a temporary
name and renamed when it is complete.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

from tasks.store import Store
from tasks.store.atomic import move_into_place, temporary_sibling
from tasks.store.shards import SHARDS, shard_path


class ShardWriter:
    """Writes WebDataset tars `<batch>-<nnnnn>.tar`: <image_id>.jpg and <image_id>.json for each image."""

    def __init__(self, store: Store, batch: str, shard_images: int) -> None:
        self.store, self.batch, self.shard_images = store, batch, shard_images
        self._number, self._count = 0, 0
        self._tar: tarfile.TarFile | None = None
        self._temporary = Path()

    def _name(self) -> str:
        return f"{self.batch}-{self._number:05d}.tar"

    def _path(self) -> Path:
        return self.store.folder("data", SHARDS, self._name())

    def add(self, image_id: str, content: bytes, metadata: dict[str, str]) -> tuple[str, int]:
        """Append an image and its JSON metadata; returns the shard's name and the offset of the image, bytes."""
        if self._count == self.shard_images:
            self.close()
        if self._tar is None:
            self._path().parent.mkdir(parents=True, exist_ok=True)
            self._temporary = temporary_sibling(self._path(), is_sole_writer=True)
            self._tar = tarfile.open(self._temporary, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close()
        offset = self._add_member(f"{image_id}.jpg", content)
        self._add_member(f"{image_id}.json", json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode())
        self._count += 1
        return self._name(), offset

    def _add_member(self, name: str, content: bytes) -> int:
        assert self._tar is not None
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644
        self._tar.addfile(entry, io.BytesIO(content))
        return int(self._tar.offset) - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def read(self, shard: str, offset: int, size_bytes: int) -> bytes | None:
        """An image of this batch or an earlier one, also of the shard that is being written; less where that is cut,
        None where it is gone.
        """
        is_open = self._tar is not None and shard == self._name()
        try:
            if is_open:
                self._tar.fileobj.flush()  # type: ignore[union-attr]
            with open(self._temporary if is_open else shard_path(self.store.root, shard), "rb") as f:
                return os.pread(f.fileno(), size_bytes, offset)
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Finish the current shard, if any: flush it to the disk, then rename it."""
        if self._tar is None:
            return
        self._tar.close()
        move_into_place(self._temporary, self._path())
        self._tar, self._count, self._number = None, 0, self._number + 1
