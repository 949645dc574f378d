"""Images of extreme shapes with each kind of processor that the factory supports: taken, and the colours stay in place.

Processors of other releases read an array of one or three rows as one whose channels come first; Qwen-VL's refuse
ratios above 200. Stored images have a shorter side of at least 4 px and a ratio of at most 200, or the row is dropped.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tasks.models.encoders.preprocess import preparation_from_processor
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.local_captioner import LocalCaptioner
from tasks.models.llm.requests import Reply, Request
from tasks.models.retrievers.mllm import MllmRetriever
from tests.support.tiny_mllm import FAMILIES, save_tiny

STORED = [(512, 4), (4, 512), (800, 4), (4, 800), (512, 5), (16, 512)]  # what the rule lets through
BEYOND = [(512, 1), (1, 512), (512, 3), (3, 512), (600, 3)]  # what many processors take all the same
# the processors' own code at small sizes: a CLIP of 224 px would resize 512x1 to 114,688x224 before it crops
SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
TILES = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
QWEN3 = {"patch_size": 16, "size": {"shortest_edge": 65_536, "longest_edge": 262_144}}
QWEN2 = {"size": {"shortest_edge": 3_136, "longest_edge": 200_704}}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPImageProcessorPil(**SMALL),
    "dinov2": lambda: BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SMALL["crop_size"]),
    "siglip": lambda: SiglipImageProcessorPil(size=SMALL["crop_size"]),
    "llava_next": lambda: LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **SMALL),
    "idefics3": lambda: Idefics3ImageProcessorPil(**TILES),
    "smolvlm": lambda: SmolVLMImageProcessorPil(**TILES),
    "qwen2_vl, qwen2_5_vl": lambda: Qwen2VLImageProcessorPil(**QWEN2),
    "qwen3_vl": lambda: Qwen2VLImageProcessorPil(**QWEN3),
}


def orange(size: tuple[int, int]) -> Image.Image:
    """An image whose channels differ: much red, some green, no blue."""
    return Image.new("RGB", size, (255, 128, 0))


def channel_levels(kind: str, processor: Any, image: Image.Image) -> np.ndarray:
    """(3,) greatest value of each channel of the processor's output."""
    images = [[image]] if kind in ("idefics3", "smolvlm") else [image]
    pixels = np.asarray(processor(images=images, return_tensors="np")["pixel_values"])
    if kind.startswith("qwen"):
        return pixels.reshape(len(pixels), 3, -1).max((0, 2))
    return pixels.reshape(-1, 3, pixels.shape[-2] * pixels.shape[-1]).max((0, 2))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_processor_takes_what_is_stored_and_keeps_its_channels(kind: str):
    processor = PROCESSORS[kind]()
    expected = channel_levels(kind, processor, orange((96, 96)))
    assert expected[0] > expected[1] > expected[2]
    for size in STORED:
        assert np.allclose(channel_levels(kind, processor, orange(size)), expected, atol=0.05), size
    for size in BEYOND:
        if kind.startswith("qwen") and max(size) > 200 * min(size):
            with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
                channel_levels(kind, processor, orange(size))
        else:
            assert np.allclose(channel_levels(kind, processor, orange(size)), expected, atol=0.05), size


@pytest.mark.parametrize("kind", ["clip", "dinov2", "siglip"])
def test_our_own_preparation_gives_the_processors_pixels(kind: str):
    processor = PROCESSORS[kind]()
    preparation = preparation_from_processor(processor)
    assert preparation is not None
    for size in [*STORED, *BEYOND]:
        file = io.BytesIO()
        orange(size).save(file, "PNG")
        made = preparation.normalize([preparation.prepare(file.getvalue())], "cpu")[0].numpy()
        stock = np.asarray(processor(images=[orange(size)], return_tensors="np")["pixel_values"])[0]
        assert np.allclose(made, stock, atol=0.04), size


@pytest.mark.parametrize("family", FAMILIES)
def test_every_retriever_of_the_mllm_type_encodes_what_is_stored(family: str, tmp_path: Path):
    retriever = MllmRetriever(str(save_tiny(family, tmp_path)), device="cpu")
    rows = retriever.encode(images=[orange(size) for size in STORED[:4]])
    assert rows.shape[0] == 4 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)


class Choosy:
    """A processor that refuses ratios above 200, as Qwen-VL's does; else another one."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, images: Any = None, **kwargs: Any) -> Any:
        sizes = [image.size for group in images or [] for image in group]
        if any(max(size) > 200 * min(size) for size in sizes):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return self._processor(*args, images=images, **kwargs)


@pytest.fixture(scope="module")
def captioner(project: Path) -> LocalCaptioner:
    folder = str(project / "tasks/sample/checkpoints/judge")
    model = load_captioner(LlmConfig(folder, device="cpu", max_new_tokens=3, batch=4, question_batch=4))
    assert isinstance(model, LocalCaptioner)
    return model


@pytest.mark.parametrize("is_fast", [True, False])
def test_an_image_that_the_processor_refuses_is_a_refusal_and_the_other_requests_are_answered(
    captioner: LocalCaptioner, is_fast: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(captioner, "is_fast", is_fast)
    good, bad = [orange((96, 96)), orange((512, 4))], orange((512, 2))
    requests = [Request((good[0], image), "make it blue") for image in (good[1], bad, good[0])]
    replies = captioner.chat([requests[0], requests[2]]), captioner.yes_probability([requests[0], requests[2]])
    monkeypatch.setattr(captioner, "processor", Choosy(captioner.processor))
    monkeypatch.setattr(captioner.vision, "processor", Choosy(captioner.vision.processor))
    captioner.vision._cache.clear()
    captioner.vision._layouts.clear()
    first, refused, last = captioner.chat(requests)
    assert [first, last] == replies[0] and refused.refusal is not None
    assert (refused.refusal.reason, refused.text) == ("bad_image", "")
    assert "smaller than 200 (512x2 px)" in refused.refusal.detail
    yes = captioner.yes_probability(requests)
    assert [yes[0], yes[2]] == replies[1] and yes[1] == refused.refusal
    assert captioner.chat([requests[1]]) == [Reply("", 0, 0, refusal=refused.refusal)]  # also without any other
