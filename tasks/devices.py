"""The device that a model or a search computes on."""

from __future__ import annotations

import os

from tasks.errors import ConfigError

REQUIRE_GPU = "MEGAPAIRS_REQUIRE_GPU"  # 1 on a GPU worker: 'auto' must find a GPU there


def pick_device(device: str) -> str:
    """'auto' -> 'cuda' where a GPU is available, else 'cpu'; any other name as it is.

    Args:
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: 'cuda' was named, or 'auto' on a machine whose MEGAPAIRS_REQUIRE_GPU is 1, and torch finds no GPU,
            or fewer than the number names. A silent turn to the CPU would take days where a GPU takes hours.
    """
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        if count == 0 and os.environ.get(REQUIRE_GPU, "") in ("1", "true"):
            raise ConfigError(
                f"device: auto found no GPU (CUDA) on a worker whose {REQUIRE_GPU} is 1; expected one: check "
                "`nvidia-smi` and that the container or pod was given a GPU, or set `device: cpu` in this section of "
                "params.yaml"
            )
        return "cuda" if count else "cpu"
    if device.partition(":")[0] == "cuda" and count <= int(device.partition(":")[2] or 0):
        raise ConfigError(
            f"device: {device} is not there: torch {torch.__version__} finds {count} GPUs (CUDA); expected it: check "
            "`nvidia-smi` and that torch is a CUDA build (`make install EXTRAS=gpu`), or set `device: cpu`"
        )
    return device
