"""The device of a model: a GPU that must be there and is not is a clear error, never a silent CPU."""

import pytest
import torch

from tasks.devices import REQUIRE_GPU, pick_device
from tasks.errors import ConfigError
from tasks.knn.torch_prefilter import TorchPrefilter


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    def set_count(count: int, required: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv(REQUIRE_GPU, raising=False)
        if required is not None:
            monkeypatch.setenv(REQUIRE_GPU, required)

    return set_count


@pytest.mark.parametrize(
    ("device", "count", "required", "expected"),
    [
        ("auto", 0, None, "cpu"),
        ("auto", 0, "0", "cpu"),
        ("auto", 0, "", "cpu"),
        ("auto", 1, "1", "cuda"),
        ("auto", 2, None, "cuda"),
        ("cpu", 0, "1", "cpu"),  # asked for: a GPU worker may do it
        ("cuda", 1, None, "cuda"),
        ("cuda:1", 2, "1", "cuda:1"),
        ("mps", 0, None, "mps"),
    ],
)
def test_the_device_of_a_name(gpus, device: str, count: int, required: str | None, expected: str):
    gpus(count, required)
    assert pick_device(device) == expected


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_named_gpu_that_is_not_there_is_refused(gpus, device: str):
    gpus(1 if device == "cuda:1" else 0)
    with pytest.raises(ConfigError, match=rf"device: {device} is not there: .* finds \d GPUs .* or set `device: cpu`"):
        pick_device(device)


def test_a_gpu_worker_without_a_gpu_refuses_auto(gpus):
    gpus(0, required="1")
    with pytest.raises(
        ConfigError, match=r"device: auto found no GPU \(CUDA\) on a worker whose MEGAPAIRS_REQUIRE_GPU"
    ):
        pick_device("auto")


def test_a_search_on_torch_is_held_to_it_too(gpus):
    import numpy as np

    gpus(0, required="1")
    rows = np.ones((2, 4), np.float16)
    with pytest.raises(ConfigError, match="found no GPU"):
        TorchPrefilter(rows, rows)
