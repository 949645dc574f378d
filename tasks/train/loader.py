"""The image loader of a training: random access into the tar shards, decoding by threads, each image once per batch.

A batch names an image many times (query here, target there, negative of a third), and it is read, decoded and
preprocessed once: one pread of its shard at the offset in the images table. The plans are drawn in the training's own
order and the threads only decode, so their number changes no weight. `python -m benchmarks.loader` measures it against
webdataset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.models.decoding import decode
from tasks.store import Store
from tasks.train.batches import BatchPlan

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES_PER_CALL = 8  # of the processor: the arrays that it makes on the way stay in the CPU's cache
CACHE_BYTES = 1_000_000_000  # preprocessed images are kept in memory up to this size
FORMATS = ("JPEG", "PNG", "WEBP")  # of the files of further datasets
BLANK_PX = (64, 64)
WARNED_IMAGES = 20  # of those that cannot be read; one that comes again is not named again
PAIR_MARK = "|"  # between the ids of two images of the version that are shown as one
log = logging.getLogger(__name__)


def side_by_side(images: Sequence[Image]) -> Image:
    """Images in one square image, RGB: from left to right at the height of the lowest, black above and below."""
    from PIL import Image

    height = min(image.height for image in images)
    scaled = [i.convert("RGB").resize((max(1, round(i.width * height / i.height)), height)) for i in images]
    side = max(height, sum(i.width for i in scaled))
    out = Image.new("RGB", (side, side))
    left = 0
    for image in scaled:
        out.paste(image, (left, (side - height) // 2))
        left += image.width
    return out


def plan_images(plan: BatchPlan) -> list[Any]:
    """All images of a plan."""
    return plan.images


def prefetch(
    plans: Iterator[BatchPlan],
    load_images: Callable[[list[Any]], Any],
    workers: int,
    choose: Callable[[BatchPlan], list[Any]] = plan_images,
) -> Iterator[tuple[BatchPlan, Any]]:
    """Each plan with its images; with workers, those of the next plan are loaded meanwhile.

    Args:
        plans: drawn in this thread, in their order.
        load_images: image ids -> preprocessed images.
        workers: 0 for no thread.
        choose: the images of a plan that this process needs.
    """
    if not workers:
        yield from ((plan, load_images(choose(plan))) for plan in plans)
        return
    with ThreadPoolExecutor(1, "prefetch") as pool:
        current = None
        for plan in plans:
            following = (plan, pool.submit(load_images, choose(plan)))
            if current is not None:
                yield current[0], current[1].result()
            current = following
        if current is not None:
            yield current[0], current[1].result()


@dataclass(frozen=True)
class LoadedImages:
    """Preprocessed images of some positions of a batch, and which of them could not be read.

    Attributes:
        rows: (n, 3, height, width) float32, or a list of n inputs; of the images at `positions`.
        positions: position in the batch of each row.
        broken: those of `positions` whose image could not be read; its row is of a blank image.
    """

    rows: Any
    positions: Sequence[int]
    broken: frozenset[int] = frozenset()

    def take(self, positions: Sequence[int]) -> Any:
        """The rows of these positions of the batch; the same tensor, not a copy, where that is all of them in order."""
        if isinstance(self.rows, list):
            return [self.rows[n] for n in self._indices(positions)]
        return self.rows if list(positions) == list(self.positions) else self.rows[self._indices(positions)]

    def _indices(self, positions: Sequence[int]) -> list[int]:
        index = {position: n for n, position in enumerate(self.positions)}
        return [index[p] for p in positions]


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
        self.store, self.preprocess, self.cache_bytes = store, preprocess, cache_bytes
        self.files = {} if files is None else files
        self.unreadable: set[str] = set()  # ids of images of further datasets that were blank
        self.decoded = 0  # images, a count
        self._pool = ThreadPoolExecutor(workers, "decode") if workers else None
        self._cache: dict[str, Any] = {}
        self._cached_bytes = 0

    def read(self, image_id: str) -> Image:
        """The image, decoded; of a further dataset in its own mode, which the model's preparation converts in the order
        of the released code (an MLLM resizes a palette before it is RGB).

        Raises:
            DataError: it cannot be read.
        """
        if image_id not in self.files:
            shown = [self.store.read_image(i) for i in image_id.split(PAIR_MARK)]
            return shown[0] if len(shown) == 1 else side_by_side(shown)
        from PIL import Image

        try:
            image = Image.open(self.files[image_id], formats=FORMATS)
            decode(image)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{self.files[image_id]}: not a readable image ({error}); take its records out of train.datasets"
            ) from error
        return image

    def read_or_blank(self, image_id: str) -> Image:
        """The image, or a blank one where a further dataset's cannot be read; its id is then in `unreadable`."""
        try:
            return self.read(image_id)
        except DataError as error:
            if image_id not in self.files:
                raise
            if image_id not in self.unreadable:
                self._name(error)
                self.unreadable.add(image_id)
            from PIL import Image

            return Image.new("RGB", BLANK_PX)

    def _name(self, error: DataError) -> None:
        """Log what is wrong with an image that was not met before, of the first `WARNED_IMAGES` alone."""
        if len(self.unreadable) < WARNED_IMAGES:
            log.warning("train: %s", error)
        elif len(self.unreadable) == WARNED_IMAGES:
            log.warning("train: %d images could not be read; further ones are only counted", WARNED_IMAGES)

    def load(self, image_ids: Sequence[str], *, is_strict: bool = True) -> list[Any]:
        """Read and preprocess images: (3, height, width) float32 each, or the retriever's own kind of input.

        Args:
            image_ids: each once.
            is_strict: an image that cannot be read is an error, not a blank.
        """
        read = self.read if is_strict else self.read_or_blank
        if self._pool is not None:
            return list(self._pool.map(lambda i: self.preprocess([read(i)])[0], image_ids))
        groups = [image_ids[n : n + IMAGES_PER_CALL] for n in range(0, len(image_ids), IMAGES_PER_CALL)]
        return [row for group in groups for row in self.preprocess([read(i) for i in group])]

    def load_readable(self, image_ids: Sequence[str]) -> tuple[Any, frozenset[int]]:
        """As `__call__`, with a blank in place of each image of a further dataset that cannot be read, and the
        positions of these.
        """
        rows = self(image_ids, is_strict=False)
        return rows, frozenset(n for n, image_id in enumerate(image_ids) if image_id in self.unreadable)

    def __call__(self, image_ids: Sequence[str], *, is_strict: bool = True) -> Any:
        """(n, 3, height, width) float32, or a list of n inputs where the retriever's images differ in size.

        Raises:
            DataError: an image cannot be read.
        """
        import torch

        missing = [i for i in dict.fromkeys(image_ids) if i not in self._cache]
        loaded: dict[str, Any] = {}
        if missing:
            loaded = dict(zip(missing, self.load(missing, is_strict=is_strict), strict=True))
            self.decoded += len(missing)
            size = sum(x.nbytes for x in loaded.values())
            if self._cached_bytes + size <= self.cache_bytes:
                self._cache |= loaded
                self._cached_bytes += size
        rows = [self._cache[i] if i in self._cache else loaded[i] for i in image_ids]
        return torch.stack(rows) if rows and isinstance(rows[0], torch.Tensor) else rows
