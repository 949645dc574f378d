"""A model soup: the mean of the weights of trainings that differ by their seed alone.

Source: Wortsman et al., arXiv:2203.05482 (uniform soup). Each finished training's weights are kept in .run/train until
the mean is saved, so that a killed run trains only the seeds that are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.store.atomic import atomic_write


def mean_weights(models: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of state dicts with the same names, summed in float64; what is no float is the first one's.

    Args:
        models: at least one; one is held at a time.
    """
    sums: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    count = 0
    for weights in models:
        count += 1
        first = first or dict(weights)
        for name, value in weights.items():
            if value.is_floating_point():
                sums[name] = sums.get(name, torch.zeros_like(value, dtype=torch.float64)) + value.double()
    return {name: (sums[name] / count).to(value.dtype) if name in sums else value for name, value in first.items()}


class SeedWeights:
    """The weights of the seeds that are trained, as files; a killed run finds those of an earlier try."""

    def __init__(self, folder: Path) -> None:
        """None is found yet.

        Args:
            folder: of the files.
        """
        self._folder, self._files = folder, list[Path]()

    def find(self, seed: int, identity: str) -> str | None:
        """What was noted with a seed's weights; None where it is not trained.

        Args:
            seed: of the training; called once for each, in order.
            identity: of the training; weights of another one are not found.
        """
        from safetensors import safe_open

        file = self._file(seed, identity)
        self._files.append(file)
        if not file.is_file():
            return None
        with safe_open(file, "pt") as content:
            return str(content.metadata()["note"])

    def keep(self, seed: int, identity: str, model: Any, note: str) -> None:
        """Keep a trained model's weights, and a note."""
        from safetensors.torch import save_file

        weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
        with atomic_write(self._file(seed, identity)) as temporary:
            save_file(weights, temporary, {"note": note})

    def mean(self) -> dict[str, torch.Tensor]:
        """The mean over all seeds that were asked for."""
        from safetensors.torch import load_file

        return mean_weights(load_file(file) for file in self._files)

    def _file(self, seed: int, identity: str) -> Path:
        return self._folder / f"seed-{seed}-{identity[:16]}.safetensors"
