"""Evaluation while training: composed retrieval on a split that is not trained on; the best model, early stopping.

The split is taken from the training triplets (`train.validation.share`), as whole groups that share images. The split
of `train.held_out_share` is never looked at here: the evaluation stage scores on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tasks.config.train_options import ValidationConfig
from tasks.store.atomic import atomic_write
from tasks.train.batches import Example

METRIC = "mean_reciprocal_rank"  # which evaluation is the best one


def retrieval_scores(queries: torch.Tensor, gallery: torch.Tensor, targets: Sequence[int]) -> dict[str, float]:
    """recall_at_1 and mean_reciprocal_rank, 0 to 1; a target that ties with another image is ranked behind it.

    Args:
        queries: (n, d) unit rows.
        gallery: (m, d) unit rows.
        targets: n rows of the gallery.
    """
    similarity = queries @ gallery.T
    of_target = similarity.gather(1, torch.tensor(targets, device=similarity.device)[:, None])
    ranks = (similarity >= of_target).sum(1).double()  # the target itself counts once
    return {"recall_at_1": float((ranks == 1).double().mean()), METRIC: float((1 / ranks).mean())}


class Validation:
    """Scores a model in training, and keeps the weights of its best evaluation.

    Attributes:
        history: one {"step", metric: value} an evaluation.
    """

    def __init__(self, config: ValidationConfig, examples: Sequence[Example], folder: Path | None = None) -> None:
        """Nothing is evaluated yet.

        Args:
            config: of the section `train.validation`.
            examples: at least one, with query images.
            folder: where the best weights are kept; in memory where None.
        """
        self.config, self.examples, self._folder = config, examples, folder
        images = (i for e in examples for i in (e.query, e.target, *e.negatives))
        self.image_ids = list(dict.fromkeys(str(i) for i in images))
        row = {image_id: n for n, image_id in enumerate(self.image_ids)}
        self._targets = [row[str(e.target)] for e in examples]
        self.history: list[dict[str, float]] = []
        self._best: dict[str, torch.Tensor] = {}

    def resume(self, history: list[dict[str, float]]) -> None:
        """Continue after the evaluations of an earlier try."""
        self.history = history

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation, the first among equals; None before the first one."""
        if not self.history:
            return None
        return int(max(self.history, key=lambda point: (point[METRIC], -point["step"]))["step"])

    @property
    def is_stale(self) -> bool:
        """Whether the last `patience` evaluations were none of them the best."""
        later = [point for point in self.history if point["step"] > (self.best_step or 0)]
        return self.config.patience is not None and len(later) >= self.config.patience

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Whether to evaluate after a step, counted from 1 over all phases."""
        return is_last or step % self.config.every_steps == 0

    def score(self, step: int, queries: torch.Tensor, gallery: torch.Tensor) -> dict[str, float]:
        """Add an evaluation to the history.

        Args:
            step: after which it is.
            queries: (n, d) unit rows of the examples.
            gallery: (m, d) unit rows of `image_ids`.
        """
        scores = {name: round(value, 6) for name, value in retrieval_scores(queries, gallery, self._targets).items()}
        self.history.append({"step": step, **scores})
        return scores

    def keep(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Keep the weights of the best evaluation."""
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
        if self._folder is None:
            self._best = copies
            return
        from safetensors.torch import save_file

        with atomic_write(self._path(step)) as temporary:
            save_file(copies, temporary)

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The weights of the best evaluation."""
        if self._folder is None:
            return self._best
        from safetensors.torch import load_file

        return load_file(self._path(self.best_step or 0))

    def forget(self, *, all_steps: bool = False) -> None:
        """Remove the weights of all but the best evaluation, or of that too."""
        if self._folder is not None:
            for path in self._folder.glob("best-*.safetensors"):
                if all_steps or path != self._path(self.best_step or 0):
                    path.unlink()

    def _path(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"best-{step:09d}.safetensors"
