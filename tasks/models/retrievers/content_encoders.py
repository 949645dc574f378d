"""Encode a benchmark's contents by image key and text, each image and text once, with what is kept on disk.

Images are read and prepared by threads, some batches ahead of the model (Pillow and torch release the interpreter's
lock). How many threads there are changes no vector.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.knn.unit_rows import unit_rows
from tasks.models.retrievers.base import Content, Role
from tasks.models.retrievers.kept_rows import EncodeOptions

if TYPE_CHECKING:
    from PIL.Image import Image

BATCHES_AHEAD = 2  # prepared images that wait for the model
ROWS_PER_BLOCK = 8192  # of a gallery that is put together at a time


def loaded_batches(
    items: Sequence[Any], load: Callable[[Any], Any], batch_size: int, workers: int
) -> Iterator[list[Any]]:
    """`load` of every item in batches, in order; threads work up to `BATCHES_AHEAD` batches ahead."""
    if workers <= 1:
        for start in range(0, len(items), batch_size):
            yield [load(item) for item in items[start : start + batch_size]]
        return
    with ThreadPoolExecutor(workers, "decode") as pool:
        ahead: deque[list[Future[Any]]] = deque()
        try:
            for start in range(0, len(items), batch_size):
                ahead.append([pool.submit(load, item) for item in items[start : start + batch_size]])
                if len(ahead) > BATCHES_AHEAD:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:  # an image that cannot be read ends it: nothing waits for the rest
            for futures in ahead:
                for future in futures:
                    future.cancel()


def encoded_batches(
    batches: Iterator[list[Any]], encode: Callable[[Any, list[Any]], np.ndarray], model: Any, options: EncodeOptions
) -> Iterator[np.ndarray]:
    """The rows of each batch, in order; with replicas each device computes its own batches, in a thread of its own.

    Args:
        batches: of loaded contents.
        encode: (model, batch) -> rows.
        model: the first device's.
        options: with the replicas.
    """
    if not options.replicas:
        for batch in batches:
            yield encode(model, batch)
            options.advance(len(batch))
        return

    def compute(replica: Any, batch: list[Any]) -> np.ndarray:
        with options.arithmetic(replica.device):
            return encode(replica, batch)

    models = [model, *options.replicas]
    pools = [ThreadPoolExecutor(1, f"encode-{n}") for n in range(len(models))]
    ahead: deque[tuple[int, Future[np.ndarray]]] = deque()
    try:
        for n, batch in enumerate(batches):
            place = n % len(models)
            ahead.append((len(batch), pools[place].submit(compute, models[place], batch)))
            while len(ahead) > 2 * len(models):
                count, rows = ahead.popleft()
                yield rows.result()
                options.advance(count)
        while ahead:
            count, rows = ahead.popleft()
            yield rows.result()
            options.advance(count)
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


class SumEncoder:
    """Encodes a benchmark's contents with a CLIP: raw features of every image and text, computed once each, are summed.

    Implements `ContentEncoder`.
    """

    def __init__(
        self,
        retriever: Any,
        read_image: Callable[[str], Image],
        batch_size: int,
        image_features: Mapping[str, np.ndarray] | None = None,
        options: EncodeOptions | None = None,
    ) -> None:
        """Nothing is encoded yet.

        Args:
            retriever: the model, a `ClipRetriever`.
            read_image: image key -> image.
            batch_size: images or texts in one pass of the model, a count.
            image_features: key -> (d,) raw features that are known already: studies with a locked image tower compute
                them once.
            options: how images are read, and where features are kept.
        """
        self._retriever, self._read_image, self._batch_size = retriever, read_image, batch_size
        self._options = options or EncodeOptions()
        self._images, self._texts = dict(image_features or {}), dict[str, np.ndarray]()

    def prepare(self, image_keys: Sequence[str], texts: Sequence[str]) -> None:
        """Compute the features that are not known yet, each once, in this order."""
        missing = [key for key in dict.fromkeys(image_keys) if key not in self._images]
        if missing:
            ids, options = [self._options.image_id(key) for key in missing], self._options
            rows = options.kept.rows(ids, lambda some: self._encode([missing[n] for n in some]), options.skip)
            self._images.update(zip(missing, rows, strict=True))
        missing = [text for text in dict.fromkeys(texts) if text and text not in self._texts]
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            self._texts.update(zip(batch, self._retriever.raw_text_features(batch), strict=True))

    def _encode(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        prepare = getattr(self._retriever, "prepare_image_fast" if self._options.is_fast else "prepare_image", None)
        name = "raw_image_features" if prepare is None else "prepared_image_features"

        def load(key: str) -> Any:
            image = self._read_image(key)
            return image if prepare is None else prepare(image)

        def encode(model: Any, batch: list[Any]) -> np.ndarray:
            rows: np.ndarray = getattr(model, name)(batch)
            return rows

        batches = loaded_batches(keys, load, self._batch_size, self._options.workers)
        return encoded_batches(batches, encode, self._retriever, self._options)

    def encode(self, contents: Sequence[Content], role: Role) -> np.ndarray:
        """(n, d) float32 unit rows; a row of zeros for a content without image and text.

        Args:
            contents: n pairs of image key (or None) and text (or "").
            role: makes no difference for a CLIP.
        """
        self.prepare([key for key, _ in contents if key is not None], [text for _, text in contents])
        zeros = np.zeros_like(next(iter((self._images or self._texts).values())))
        out = np.empty((len(contents), len(zeros)), np.float32)
        for start in range(0, len(contents), ROWS_PER_BLOCK):  # of a large gallery only a block is there twice
            block = contents[start : start + ROWS_PER_BLOCK]
            sums = [
                (zeros if key is None else self._images[key]) + (self._texts[text] if text else zeros)
                for key, text in block
            ]
            out[start : start + len(block)] = unit_rows(np.stack(sums))
        return out


class JointEncoder:
    """Encodes a benchmark's contents with an MLLM: image and text together, every content once in each role.

    Implements `ContentEncoder`.
    """

    def __init__(
        self,
        retriever: Any,
        read_image: Callable[[str], Image],
        batch_size: int,
        options: EncodeOptions | None = None,
    ) -> None:
        """Nothing is encoded yet.

        Args:
            retriever: the model, a `MllmRetriever`.
            read_image: image key -> image.
            batch_size: contents in one pass of the model, a count.
            options: how images are read, and where vectors are kept.
        """
        self._retriever, self._read_image, self._batch_size = retriever, read_image, batch_size
        self._options = options or EncodeOptions()
        self._known: dict[tuple[Role, Content], np.ndarray] = {}

    def prepare(self, image_keys: Sequence[str], texts: Sequence[str]) -> None:
        """Does nothing: the vector of an image with a text cannot be computed from either alone."""

    def encode(self, contents: Sequence[Content], role: Role) -> np.ndarray:
        """(n, d) float32 unit rows of (image key or None, text); a row of zeros for a content without either."""
        missing = [c for c in dict.fromkeys(contents) if (role, c) not in self._known and (c[0] is not None or c[1])]
        if missing:
            ids, options = [self._content_id(c, role) for c in missing], self._options
            rows = options.kept.rows(ids, lambda some: self._encode([missing[n] for n in some], role), options.skip)
            self._known.update({(role, content): row for content, row in zip(missing, rows, strict=True)})
        zeros = np.zeros(self._retriever.dimension, np.float32)
        return np.stack([self._known.get((role, c), zeros) for c in contents])

    def _content_id(self, content: Content, role: Role) -> str:
        key, text = content
        instruction = self._retriever.instruction if role == "query" else ""
        parts = (role, instruction, "" if key is None else self._options.image_id(key), text)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def _encode(self, contents: Sequence[Content], role: Role) -> Iterator[np.ndarray]:
        def load(content: Content) -> Any:
            key, text = content
            return (None if key is None else self._retriever.preprocess([self._read_image(key)])[0]), text

        def encode(model: Any, batch: list[Any]) -> np.ndarray:
            return unit_rows(model.raw_features(batch, role))

        for replica in self._options.replicas:
            replica.instruction = self._retriever.instruction
        batches = loaded_batches(contents, load, self._batch_size, self._options.workers)
        return encoded_batches(batches, encode, self._retriever, self._options)
