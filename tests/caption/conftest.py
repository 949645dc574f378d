"""Fixtures of the captioning tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.config import Params
from tasks.store import Store
from tests.support.colour_pairs import colour_params, write_colour_store
from tests.support.served_model import FakeServer, fake_server


@pytest.fixture
def params() -> Params:
    return colour_params()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_colour_store(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    """A fake OpenAI-compatible server, not yet started."""
    with fake_server(tmp_path / "paid") as started:
        yield started
