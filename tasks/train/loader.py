"""The image loader of a training: random access into the tar shards, decoding by threads, each image once per batch.

A batch names an image many times (query here, target there, negative of a third), and it is read, decoded and
preprocessed once: one pread of its shard at the offset in the images table. The plans are drawn in the training's own
order and the threads only decode, so their number changes no weight. `python -m benchmarks.loader` measures it against
webdataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.store import Store
from tasks.train.batches import BatchPlan

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES_PER_CALL = 8  # of the processor: the arrays that it makes on the way stay in the CPU's cache
CACHE_BYTES = 1_000_000_000  # preprocessed images are kept in memory up to this size


def prefetch(
    plans: Iterator[BatchPlan], load_images: Callable[[list[str]], Any], workers: int
) -> Iterator[tuple[BatchPlan, Any]]:
    """Each plan with its images; with workers, those of the next plan are loaded meanwhile.

    Args:
        plans: drawn in this thread, in their order.
        load_images: image ids -> preprocessed images.
        workers: 0 for no thread.
    """
    if not workers:
        yield from ((plan, load_images(plan.images)) for plan in plans)
        return
    with ThreadPoolExecutor(1, "prefetch") as pool:
        current = None
        for plan in plans:
            following = (plan, pool.submit(load_images, plan.images))
            if current is not None:
                yield current[0], current[1].result()
            current = following
        if current is not None:
            yield current[0], current[1].result()


class ImageLoader:
    """Loads preprocessed images by id: each decoded once per call, and kept in memory while they fit."""

    def __init__(
        self,
        store: Store,
        preprocess: Callable[[Sequence[Image]], Any],
        *,
        workers: int = 0,
        files: Mapping[str, Path] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Nothing is read yet.

        Args:
            store: of the version's images.
            preprocess: images -> the model's inputs, as `Retriever.preprocess`.
            workers: decoding threads (Pillow releases the interpreter's lock), a count; 0 for none.
            files: image id -> file, of further datasets.
            cache_bytes: size of the preprocessed images that are kept.
        """
        self.store, self.preprocess, self.files, self.cache_bytes = store, preprocess, files or {}, cache_bytes
        self._pool = ThreadPoolExecutor(workers, "decode") if workers else None
        self._cache: dict[str, Any] = {}
        self._cached_bytes = 0

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

    def load(self, image_ids: Sequence[str]) -> list[Any]:
        """Read and preprocess images: (3, height, width) float32 each, or the retriever's own kind of input."""
        if self._pool is not None:
            return list(self._pool.map(lambda i: self.preprocess([self.read(i)])[0], image_ids))
        groups = [image_ids[n : n + IMAGES_PER_CALL] for n in range(0, len(image_ids), IMAGES_PER_CALL)]
        return [row for group in groups for row in self.preprocess([self.read(i) for i in group])]

    def __call__(self, image_ids: list[str]) -> Any:
        """(n, 3, height, width) float32, or a list of n inputs where the retriever's images differ in size."""
        import torch

        missing = [i for i in dict.fromkeys(image_ids) if i not in self._cache]
        loaded: dict[str, Any] = {}
        if missing:
            loaded = dict(zip(missing, self.load(missing), strict=True))
            size = sum(x.nbytes for x in loaded.values())
            if self._cached_bytes + size <= self.cache_bytes:
                self._cache |= loaded
                self._cached_bytes += size
        rows = [self._cache[i] if i in self._cache else loaded[i] for i in image_ids]
        return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else rows
