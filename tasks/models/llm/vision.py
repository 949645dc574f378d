"""Image features from a vision tower, computed once a call; a thread prepares images ahead.

For the architecture of SmolVLM (Idefics3), whose `get_image_features` gives the rows that image tokens stand for.
Images go through the tower in fixed passes that depend on the call alone (images in order of appearance, of one shape),
never on the order in which features are needed: equal calls give equal bytes. The thread prepares the images of the
next passes (Pillow and numpy, which release the GIL) while the model writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

CACHE_BYTES = 256 << 20  # prepared images kept between calls, bytes
# pixels in one pass of the vision tower, bytes: 436 images of 96 px, or one of 17 tiles of 512 px
PASS_BYTES = 48 << 20
PREFETCH_PASSES = 2  # passes whose images are prepared ahead, a count
CACHED_LAYOUTS = 4096  # kinds of images whose layout is cached, a count

PIXELS = ("pixel_values", "pixel_attention_mask")
Inputs = dict[str, Any]  # by name of PIXELS, torch.Tensor with one image in front
Kind = tuple[tuple[int, int], str]  # size and mode: images of one kind are prepared alike


@dataclass(frozen=True)
class ImageLayout:
    """What all prepared images of a kind have in common.

    Attributes:
        text: the part of a prompt that stands for one image.
        shape: of its pixels, (1, tiles, 3, height, width).
        size_bytes: of its inputs.
    """

    text: str
    shape: tuple[int, ...]
    size_bytes: int


class VisionTower:
    """A model's processor and vision tower, with a cache of prepared images."""

    def __init__(self, processor: Any, model: Any, device: str, batch: int) -> None:
        """`batch`: most images in one pass of the tower, a count."""
        self.processor, self.model, self.device, self.batch = processor, model, device, batch
        self._cache: dict[int, tuple[Image, Inputs]] = {}
        self._cache_bytes = 0
        self._layouts: dict[Kind, ImageLayout] = {}

    def layout(self, image: Image) -> ImageLayout:
        """The layout of the image's kind; the first image of a kind is prepared to measure it, and cached."""
        kind = _kind(image)
        if kind not in self._layouts:
            prepared = self.processor(
                text=[self.processor.image_token], images=[[image]], add_special_tokens=False, return_tensors="pt"
            )
            inputs = {k: prepared[k] for k in PIXELS if k in prepared}
            if len(self._layouts) >= CACHED_LAYOUTS:
                self._layouts.clear()
            text = self.processor.tokenizer.decode(prepared["input_ids"][0], skip_special_tokens=False)
            size_bytes = sum(x.nbytes for x in inputs.values())
            self._layouts[kind] = ImageLayout(text, tuple(inputs["pixel_values"].shape), size_bytes)
            self.cache(image, inputs)
        return self._layouts[kind]

    def prepare(self, images: Sequence[Image]) -> list[Inputs]:
        """The processor's inputs, one call for all images of a kind.

        The pixels are those of one call per image, in less than half the time.
        """
        kinds: dict[Kind, list[Image]] = {}
        for image in images:
            kinds.setdefault(_kind(image), []).append(image)
        inputs: dict[int, Inputs] = {}
        for same in kinds.values():
            prepared = self.processor(images=[[image] for image in same], return_tensors="pt")
            names = [name for name in PIXELS if name in prepared]
            for n, image in enumerate(same):
                # clones: a slice would keep its whole batch in memory
                inputs[id(image)] = {name: prepared[name][n : n + 1].clone() for name in names}
        return [inputs[id(image)] for image in images]

    def cached(self, image: Image) -> Inputs | None:
        """The cached inputs of this very image object, or None."""
        entry = self._cache.get(id(image))
        return entry[1] if entry is not None and entry[0] is image else None

    def cache(self, image: Image, inputs: Inputs) -> None:
        """Cache an image's inputs; a full cache is emptied first."""
        size = sum(x.nbytes for x in inputs.values())
        if self._cache_bytes + size > CACHE_BYTES:
            self._cache.clear()
            self._cache_bytes = 0
        if size <= CACHE_BYTES and self.cached(image) is None:
            self._cache[id(image)] = (image, inputs)  # a reference to the image keeps its id from being reused
            self._cache_bytes += size

    def encode(self, inputs: Sequence[Inputs]) -> list[torch.Tensor]:
        """One pass of the tower over images of one shape: the feature rows of each, (tokens, width)."""
        import torch

        joined = {name: torch.cat([i[name] for i in inputs]).to(self.device) for name in inputs[0]}
        return list(self.model.get_image_features(**joined, return_dict=True).pooler_output)


def _kind(image: Image) -> Kind:
    return image.size, image.mode


class ImageFeatures:
    """The image features of one call; a context manager, because it owns the preparing thread.

    Attributes:
        texts: id(image) -> the part of a prompt that stands for it.
    """

    def __init__(self, tower: VisionTower, images: Iterable[Image]) -> None:
        """`images`: all images of the call, in order of appearance; one may appear several times."""
        self.tower = tower
        distinct = {id(image): image for image in images}
        layouts = {key: tower.layout(image) for key, image in distinct.items()}
        self.texts = {key: layout.text for key, layout in layouts.items()}
        cached = {key: tower.cached(image) for key, image in distinct.items()}
        self._ready: dict[int, Inputs] = {key: inputs for key, inputs in cached.items() if inputs is not None}
        self._passes = list(split_passes(list(distinct.values()), list(layouts.values()), tower.batch))
        self._pass_of = {id(image): n for n, images_of_pass in enumerate(self._passes) for image in images_of_pass}
        self._pending = list(range(len(self._passes)))  # passes not yet made, in the order in which they are needed
        self._prepared: dict[int, Future[list[Inputs]]] = {}
        self._rows: dict[int, torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare-images")

    def __enter__(self) -> ImageFeatures:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def prefetch(self, images: Iterable[Image]) -> None:
        """Say in which order the images will be needed; the thread prepares them in that order."""
        first = dict.fromkeys(self._pass_of[id(image)] for image in images)
        self._pending = [*first, *(n for n in range(len(self._passes)) if n not in first)]
        self._prepare_next()

    def rows(self, image: Image) -> torch.Tensor:
        """The feature rows of an image, (tokens, width); the first image of a pass makes the pass."""
        if id(image) not in self._rows:
            self._make_pass(self._pass_of[id(image)])
        return self._rows[id(image)]

    def _make_pass(self, number: int) -> None:
        images, missing = self._passes[number], self._missing(number)
        self._pending.remove(number)
        self._pending.insert(0, number)
        self._prepare_next()
        self._ready |= dict(zip(map(id, missing), self._prepared.pop(number).result(), strict=True))
        self._pending.remove(number)
        self._prepare_next()  # the next passes are prepared while this one is computed
        inputs = [self._ready.pop(id(image)) for image in images]
        self._rows |= dict(zip(map(id, images), self.tower.encode(inputs), strict=True))
        for image, image_inputs in zip(images, inputs, strict=True):
            self.tower.cache(image, image_inputs)

    def _missing(self, number: int) -> list[Image]:
        return [image for image in self._passes[number] if id(image) not in self._ready]

    def _prepare_next(self) -> None:
        for number in self._pending[:PREFETCH_PASSES]:
            if number not in self._prepared:
                self._prepared[number] = self._thread.submit(self.tower.prepare, self._missing(number))


def split_passes(images: Sequence[Image], layouts: Sequence[ImageLayout], batch: int) -> Iterator[list[Image]]:
    """Images cut into passes, in their order: of one shape, at most `batch` images and PASS_BYTES."""
    images_of_pass: list[Image] = []
    shape: tuple[int, ...] = ()
    for image, layout in zip(images, layouts, strict=True):
        size_bytes = layout.size_bytes * (len(images_of_pass) + 1)
        is_full = layout.shape != shape or size_bytes > PASS_BYTES or len(images_of_pass) >= batch
        if images_of_pass and is_full:
            yield images_of_pass
            images_of_pass = []
        images_of_pass.append(image)
        shape = layout.shape
    if images_of_pass:
        yield images_of_pass
