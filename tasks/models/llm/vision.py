"""Images through a vision tower, once a call: prepared ahead in a thread, seen in fixed passes when they are first
needed.

For the class of SmolVLM (Idefics3), whose `get_image_features` gives the rows that image tokens stand for. The passes
depend on the call alone (images in order of appearance, of one shape), never on who needs them when: equal calls give
equal bytes. Preparing the next passes' images (Pillow and numpy, which let go of Python's lock) goes on while the model
writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

KEPT_BYTES = 256 << 20  # prepared images kept between calls, bytes
# pixels in one pass of the vision tower, bytes: 436 images of 96 px, or one of 17 tiles of 512 px
PASS_BYTES = 48 << 20
AHEAD = 2  # passes whose images are prepared before they are needed, a count
FORMS = 4096  # kinds of images whose form is remembered, a count

PIXELS = ("pixel_values", "pixel_attention_mask")
Inputs = dict[str, Any]  # by name of PIXELS, torch.Tensor with one image in front
Kind = tuple[tuple[int, int], str]  # size and mode: images of one kind are prepared alike


@dataclass(frozen=True)
class Form:
    """What all prepared images of a kind have in common: the prompt text that stands for one, its pixels' shape (1,
    tiles, 3, height, width), bytes.
    """

    text: str
    shape: tuple[int, ...]
    size_bytes: int


class Vision:
    """A model's eyes: its processor, its tower, and the images that are prepared already."""

    def __init__(self, processor: Any, model: Any, device: str, batch: int) -> None:
        """`batch`: images in one pass of the tower at most, a count."""
        self.processor, self.model, self.device, self.batch = processor, model, device, batch
        self._kept: dict[int, tuple[Image, Inputs]] = {}
        self._kept_bytes = 0
        self._forms: dict[Kind, Form] = {}

    def form(self, image: Image) -> Form:
        """The form of the image's kind; the first one of a kind is prepared to learn it, and kept."""
        kind = _kind(image)
        if kind not in self._forms:
            made = self.processor(
                text=[self.processor.image_token], images=[[image]], add_special_tokens=False, return_tensors="pt"
            )
            inputs = {k: made[k] for k in PIXELS if k in made}
            if len(self._forms) >= FORMS:
                self._forms.clear()
            text = self.processor.tokenizer.decode(made["input_ids"][0], skip_special_tokens=False)
            self._forms[kind] = Form(text, tuple(inputs["pixel_values"].shape), sum(x.nbytes for x in inputs.values()))
            self.keep(image, inputs)
        return self._forms[kind]

    def prepare(self, images: Sequence[Image]) -> list[Inputs]:
        """The processor's work, one call for all images of a kind: the same pixels as one by one, in less than half the
        time.
        """
        kinds: dict[Kind, list[Image]] = {}
        for image in images:
            kinds.setdefault(_kind(image), []).append(image)
        found: dict[int, Inputs] = {}
        for same in kinds.values():
            made = self.processor(images=[[image] for image in same], return_tensors="pt")
            # Clones: a slice would keep its whole batch in memory.
            found |= {
                id(image): {k: made[k][n : n + 1].clone() for k in PIXELS if k in made} for n, image in enumerate(same)
            }
        return [found[id(image)] for image in images]

    def kept(self, image: Image) -> Inputs | None:
        """What was prepared of this very image before."""
        found = self._kept.get(id(image))
        return found[1] if found is not None and found[0] is image else None

    def keep(self, image: Image, inputs: Inputs) -> None:
        """Keep it while there is room: the same image often comes again."""
        size = sum(x.nbytes for x in inputs.values())
        if self._kept_bytes + size > KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
        if size <= KEPT_BYTES and self.kept(image) is None:
            self._kept[id(image)] = (image, inputs)  # holding the image keeps its id from being given to another
            self._kept_bytes += size

    def see(self, images: Sequence[Inputs]) -> list[torch.Tensor]:
        """One pass of the tower over images of one shape: for each the rows that stand for it, (tokens, width)."""
        import torch

        joined = {k: torch.cat([p[k] for p in images]).to(self.device) for k in images[0]}
        return list(self.model.get_image_features(**joined, return_dict=True).pooler_output)


def _kind(image: Image) -> Kind:
    return image.size, image.mode


class Looking:
    """One call's look at its images; a context manager, for it holds the thread that prepares them."""

    def __init__(self, vision: Vision, images: Iterable[Image]) -> None:
        """`images`: all images of the call, in order of appearance; the same one may come several times."""
        self.vision = vision
        distinct = {id(i): i for i in images}
        forms = {n: vision.form(i) for n, i in distinct.items()}
        self.texts = {n: form.text for n, form in forms.items()}
        self._ready: dict[int, Inputs] = {
            n: inputs for n, i in distinct.items() if (inputs := vision.kept(i)) is not None
        }
        self._passes = list(passes(list(distinct.values()), list(forms.values()), vision.batch))
        self._pass_of = {id(i): n for n, part in enumerate(self._passes) for i in part}
        self._left = list(range(len(self._passes)))  # passes not yet made, in the order in which they will be needed
        self._coming: dict[int, Future[list[Inputs]]] = {}
        self._rows: dict[int, torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare-images")

    def __enter__(self) -> Looking:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def expect(self, images: Iterable[Image]) -> None:
        """Say in which order the images will be needed; the thread prepares them in that order."""
        first = dict.fromkeys(self._pass_of[id(i)] for i in images)
        self._left = [*first, *(n for n in range(len(self._passes)) if n not in first)]
        self._prepare_ahead()

    def _missing(self, n: int) -> list[Image]:
        return [i for i in self._passes[n] if id(i) not in self._ready]

    def _prepare_ahead(self) -> None:
        for n in self._left[:AHEAD]:
            if n not in self._coming:
                self._coming[n] = self._thread.submit(self.vision.prepare, self._missing(n))

    def rows(self, image: Image) -> torch.Tensor:
        """The rows that stand for an image, (tokens, width); makes the pass that it is in, once."""
        if id(image) not in self._rows:
            n = self._pass_of[id(image)]
            part, missing = self._passes[n], self._missing(n)
            self._left.remove(n)
            self._left.insert(0, n)
            self._prepare_ahead()
            self._ready |= dict(zip(map(id, missing), self._coming.pop(n).result(), strict=True))
            self._left.remove(n)
            self._prepare_ahead()  # of the next passes, while this one and what it is for are computed
            images = [self._ready.pop(id(i)) for i in part]
            self._rows |= dict(zip(map(id, part), self.vision.see(images), strict=True))
            for i, inputs in zip(part, images, strict=True):
                self.vision.keep(i, inputs)
        return self._rows[id(image)]


def passes(images: Sequence[Image], forms: Sequence[Form], batch: int) -> Iterable[list[Image]]:
    """Images cut into passes, in their order: of one shape, `batch` at most, PASS_BYTES at most."""
    part: list[Image] = []
    shape: tuple[int, ...] = ()
    for image, form in zip(images, forms, strict=True):
        if part and (form.shape != shape or form.size_bytes * (len(part) + 1) > PASS_BYTES or len(part) >= batch):
            yield part
            part = []
        part.append(image)
        shape = form.shape
    if part:
        yield part
