"""A tiny base model, a small version and a short recipe for the tests of tasks/train."""

from pathlib import Path

import pytest

from tasks.config import Params, load_params
from tasks.store import Store
from tests.support.tiny import save_narrow_clip, save_version


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with one narrow layer per tower."""
    return save_narrow_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Eight families of three images: query, target, one mined negative."""
    return save_version(tmp_path / "clone")


@pytest.fixture
def params(base_model: Path) -> Params:
    """Four locked steps and eight of both towers, on the CPU; nothing held out."""
    params = load_params("params.yaml", "test")
    recipe = {
        "base_model": str(base_model),
        "locked_steps": 4,
        "locked_batch_triplets": 4,
        "steps": 8,
        "batch_triplets": 4,
        "learning_rate": 1e-3,
        "held_out_share": 0.0,
        "device": "cpu",
        "checkpoint_steps": 3,
    }
    return params.model_copy(update={"train": params.train.model_copy(update=recipe)})


@pytest.fixture
def promoted_file(store: Store) -> Path:
    """A file of the promoted model; a training that fails must leave it as it is."""
    file = store.folder("models", "promoted", "model.safetensors")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"promoted")
    return file
