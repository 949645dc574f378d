"""Models and scenes that the tests of the engines share."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.local_captioner import LocalCaptioner
from tasks.sample.scenes import draw, family
from tests.support.served_model import FakeServer, fake_server

JUDGE = str(Path("tasks/sample/checkpoints/judge").resolve())


@pytest.fixture(scope="module")
def small_batches() -> LocalCaptioner:
    """The sample judge with a batch of 2 and replies of 8 tokens."""
    model = load_captioner(LlmConfig(JUDGE, device="cpu", max_new_tokens=8, batch=2))
    assert isinstance(model, LocalCaptioner)
    return model


@pytest.fixture
def mixed_images() -> list[Image.Image]:
    """Four scenes of one shape, and two images of others."""
    scenes = [Image.fromarray(draw(scene)) for scene in family(random.Random(3), "corpus", 4)]
    return [*scenes, Image.new("RGB", (200, 96), "red"), Image.new("L", (64, 64), 90)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    """A fake OpenAI-compatible server, not yet started."""
    with fake_server(tmp_path / "paid") as started:
        yield started
