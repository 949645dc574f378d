"""Checkpoints of a running training, from which a run that died resumes with the same weights.

    .run/train/checkpoint-<step>/   weights, optimiser and random states (as accelerate writes them), progress.json

Only the last one is kept, and none of a training that is done. A checkpoint is resumed only by a training of the same
identity (tasks/train/recipe.py).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.train.accelerator import TrainingRuntime

PROGRESS_FILE = "progress.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: optimiser steps done, over all phases, a count.
        phase: name of the phase of the last step.
        phase_step: steps of that phase that are done, a count.
        run_log: state of the run log (`RunLog.state`).
    """

    step: int
    phase: str
    phase_step: int
    run_log: dict[str, Any]


class Checkpoints:
    """Writes and finds the checkpoints of one training; without a folder it does nothing."""

    def __init__(
        self, folder: Path | None = None, *, identity: str = "", every_steps: int = 50, is_writer: bool = True
    ) -> None:
        """Find the checkpoint to resume from.

        Args:
            folder: of the checkpoints; none where None.
            identity: a checkpoint of another one (recipe, data, base weights) is not used.
            every_steps: steps between two checkpoints, a count.
            is_writer: of several processes, whether this is the one that removes old checkpoints.
        """
        self.progress: Progress | None = None
        self._folder, self._identity, self._every_steps, self._is_writer = folder, identity, every_steps, is_writer
        for path in self._paths():  # the last one of this identity wins
            file = path / PROGRESS_FILE
            content = json.loads(file.read_text()) if file.is_file() else {}
            if content.get("identity") == identity:
                self.progress, self._path = Progress(**content["progress"]), path
            else:
                log.info("train: the checkpoint in %s is of another recipe, data or base model", path)

    def restore(self, phase: str, runtime: TrainingRuntime) -> int:
        """Load the checkpoint where it is of this phase; returns how many steps of the phase are done."""
        if self.progress is None or self.progress.phase != phase:
            return 0
        runtime.load_state(self._path)
        return self.progress.phase_step

    def is_past(self, phase: str, phases: Sequence[str]) -> bool:
        """Whether the checkpoint is of a later one of the phases, so that this one is done."""
        return self.progress is not None and phases.index(self.progress.phase) > phases.index(phase)

    def save_if_due(self, progress: Progress, total_steps: int, runtime: TrainingRuntime) -> None:
        """Write a checkpoint where one is due, then remove the one before. Called by every process.

        Args:
            progress: after the step just done.
            total_steps: of the whole training: after the last one the model itself is saved.
            runtime: writes the state.
        """
        if self._folder is None or progress.step % self._every_steps or progress.step == total_steps:
            return
        path = self._folder / f"checkpoint-{progress.step:09d}"
        content = {"identity": self._identity, "progress": asdict(progress)}
        runtime.save_state(path, {PROGRESS_FILE: json.dumps(content)})
        if self._is_writer:
            for other in self._paths():
                if other != path:
                    shutil.rmtree(other)

    def clear(self) -> None:
        """Remove all checkpoints, unfinished ones too: a training that is done needs none."""
        if self._folder is not None and self._is_writer:
            for path in [*self._paths(), *self._folder.glob(".checkpoint-*.tmp")]:
                shutil.rmtree(path)

    def _paths(self) -> list[Path]:
        """Complete checkpoints, the highest step last."""
        return sorted(self._folder.glob("checkpoint-*")) if self._folder is not None else []
