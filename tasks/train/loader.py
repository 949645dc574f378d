"""The loader of a training: images by random access from the tar shards, decoded by workers, each once a batch.

A batch names an image many times (query here, target there, negative of a third) and it is read, decoded and prepared
once: one pread of its shard by the offset in the images table. The plans are drawn in the training's own order, the
workers only make pixels, so the number of workers changes no weight. `python -m benchmarks.loader` measures it against
webdataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tasks.errors import DataError
from tasks.store import Store

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from tasks.models.retrievers.base import Retriever

GROUP = 8  # images in one call of the processor: what it makes on the way stays in the processor's cache
CACHE_BYTES = 1_000_000_000  # pixels of all images are kept in memory up to this size


class Shows(Protocol):
    """A step's plan, as far as the loader reads it."""

    @property
    def shown(self) -> list[Any]: ...


P = TypeVar("P", bound=Shows)


def ahead(
    steps: Iterator[P], pixels: Callable[[list[str]], torch.Tensor], workers: int
) -> Iterator[tuple[P, torch.Tensor]]:
    """Each plan with its pixels; with workers the next one's are made meanwhile. The plans are drawn here, in their
    order.
    """
    if not workers:
        yield from ((plan, pixels(plan.shown)) for plan in steps)
        return
    with ThreadPoolExecutor(1, "pixels") as pool:
        waiting = None
        for plan in steps:
            coming = (plan, pool.submit(pixels, plan.shown))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


class Pixels:
    """Images as the processor makes them: each decoded once per call, and kept in memory while they fit into
    `CACHE_BYTES`.
    """

    def __init__(
        self,
        store: Store,
        retriever: Retriever,
        *,
        workers: int = 0,
        files: Mapping[str, Path] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Nothing is read yet.

        Args:
            store: of the version's images.
            retriever: its processor is used.
            workers: threads that decode (Pillow lets others run meanwhile), a count; in turn for 0.
            files: images of other datasets, id -> file.
            cache_bytes: of pixels kept.
        """
        self.store, self.retriever, self.files, self.cache_bytes = store, retriever, files or {}, cache_bytes
        self._pool = ThreadPoolExecutor(workers, "decode") if workers else None
        self._kept: dict[str, Any] = {}
        self._bytes = 0

    def read(self, image_id: str) -> Image:
        """The image, RGB.

        Raises:
            DataError: it cannot be read.
        """
        if image_id not in self.files:
            return self.store.read_image(image_id)
        from PIL import Image, UnidentifiedImageError

        try:
            return Image.open(self.files[image_id], formats=("JPEG", "PNG", "WEBP")).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(
                f"{self.files[image_id]}: not a readable image ({error}); take its records out of train.datasets"
            ) from error

    def made(self, image_ids: Sequence[str]) -> list[Any]:
        """(3, height, width) float32 of each, or what else the retriever makes of an image."""
        if self._pool is None:
            parts = [image_ids[n : n + GROUP] for n in range(0, len(image_ids), GROUP)]
            return [row for part in parts for row in self.retriever.preprocess([self.read(i) for i in part])]
        return list(self._pool.map(lambda i: self.retriever.preprocess([self.read(i)])[0], image_ids))

    def __call__(self, image_ids: list[str]) -> Any:
        """(n, 3, height, width) float32; a list of n images of a retriever that takes them in unequal sizes."""
        import torch

        missing = [i for i in image_ids if i not in self._kept]
        fresh: dict[str, Any] = {}
        if missing:
            fresh = dict(zip(missing, self.made(missing), strict=True))
            size = sum(x.nbytes for x in fresh.values())
            if self._bytes + size <= self.cache_bytes:
                self._kept |= fresh
                self._bytes += size
        rows = [self._kept[i] if i in self._kept else fresh[i] for i in image_ids]
        return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else rows
