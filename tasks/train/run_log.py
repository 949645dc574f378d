"""The course of a training: its curve and metrics as they come, and a checkpoint from which a dead run goes on.

    .run/train/checkpoint-<step>/       weights, optimiser, random states (as accelerate writes them), course.json; gone when the run is done
    reports/training/metrics.jsonl      a metric a line, as MLflow's log-batch takes them: key, value, step, timestamp (ms)
    reports/training/tensorboard/       the same for TensorBoard, where train.tensorboard asks for it

These hold clocks and are not versioned; reports/training.json holds none. In a terminal a bar shows the way; elsewhere
every fifth point goes to the log.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError

if TYPE_CHECKING:
    from tasks.train.accelerator import Machine

LOGGED_STEPS = 10  # a point of the curve is the mean of so many steps
PLACE = "course.json"  # of a checkpoint: identity, step, phase, phase_step, curve, recent
log = logging.getLogger(__name__)


class Course:
    """Where a training is. Without folders it only keeps the curve."""

    def __init__(
        self,
        steps: int,
        *,
        checkpoint: Path | None = None,
        identity: str = "",
        checkpoint_steps: int = 50,
        reports: Path | None = None,
        tensorboard: bool = False,
        is_writer: bool = True,
    ) -> None:
        """Open it.

        Args:
            steps: of the whole training, a count.
            checkpoint: folder of the checkpoints: the last one is gone on from, a newer one takes its place; none where
                None.
            identity: a checkpoint of another one (recipe, data, base weights) is not used.
            checkpoint_steps: steps between two checkpoints, a count.
            reports: folder of the metrics; none where None.
            tensorboard: also for TensorBoard.
            is_writer: of several processes the one that writes; the others only read the checkpoint.
        Raises:
            ConfigError: TensorBoard is asked for and not installed.
        """
        self.steps, self.curve, self.recent = steps, list[dict[str, float]](), list[dict[str, float]]()
        self._folder, self._identity, self._every, self._reports = checkpoint, identity, checkpoint_steps, reports
        self._is_writer = is_writer
        self._state: dict[str, Any] | None = None
        for found in self._checkpoints():  # the last of ours wins
            state = json.loads((found / PLACE).read_text())
            if state["identity"] == identity:
                self._state, self._from, self.curve, self.recent = state, found, state["curve"], state["recent"]
            else:
                log.info("train: the checkpoint in %s is of another recipe, data or base model", found)
        if self._state is not None:
            log.info("train: goes on from step %d of %d", self._state["step"], steps)
        self.start = int(self._state["step"]) if self._state else 0
        self._since = (time.perf_counter(), self.start)
        self._board = self._tensorboard() if tensorboard and reports is not None else None
        if reports is not None:
            self._trim(reports / "metrics.jsonl")
        self._bar: Any = None
        if is_writer and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=self.start, unit="step", desc="train")

    def restore(self, phase: str, machine: Machine) -> int:
        """Steps of this phase that are done; where there are any, weights, optimiser and random state are put back to
        there.
        """
        if self._state is None or self._state["phase"] != phase:
            return 0
        machine.load_state(self._from)
        return int(self._state["phase_step"])

    def is_past(self, phase: str, phases: Sequence[str]) -> bool:
        """The checkpoint lies in a later one of the phases."""
        return self._state is not None and phases.index(self._state["phase"]) > phases.index(phase)

    def note(self, step: int, figures: Mapping[str, float], last: bool) -> None:
        """Take the figures of a step (from 1); every `LOGGED_STEPS` of them, and the last of a phase, make a point of
        the curve.
        """
        self.recent.append(dict(figures))
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
        if len(self.recent) < LOGGED_STEPS and not last:
            return
        means = {key: round(float(np.mean([r[key] for r in self.recent])), 5) for key in self.recent[0]}
        self.recent = []
        self.curve.append({"step": step, **means})
        if self._bar is None and step % (5 * LOGGED_STEPS) == 0:
            log.info(
                "train: step %d of %d, loss %.4f, accuracy %.3f", step, self.steps, means["loss"], means["accuracy"]
            )
        now, (then, before) = time.perf_counter(), self._since
        self._since = (now, step)
        self._metrics(step, {**means, "steps_per_s": (step - before) / max(now - then, 1e-9)})

    def keep(self, step: int, phase: str, phase_step: int, machine: Machine) -> None:
        """Write the checkpoint where it is due, aside and renamed; then the one before goes. Called by every process."""
        if self._folder is None or step % self._every or step == self.steps:
            return
        place = {
            "identity": self._identity,
            "step": step,
            "phase": phase,
            "phase_step": phase_step,
            "curve": self.curve,
            "recent": self.recent,
        }
        folder = self._folder / f"checkpoint-{step:09d}"
        machine.save_state(folder, {PLACE: json.dumps(place)})
        if self._is_writer:
            for other in self._checkpoints():
                if other != folder:
                    shutil.rmtree(other)

    def close(self) -> None:
        """End bar and board; a run that is done needs no checkpoint."""
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()
        if self._is_writer:
            for folder in [
                *self._checkpoints(),
                *(self._folder.glob(".checkpoint-*.tmp") if self._folder is not None else ()),
            ]:
                shutil.rmtree(folder)

    def _checkpoints(self) -> list[Path]:
        """Whole ones, the last step last."""
        return sorted(self._folder.glob("checkpoint-*")) if self._folder is not None else []

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "'train.tensorboard' is on and TensorBoard is not installed; `pip install tensorboard`, or switch it off"
            ) from error
        assert self._reports is not None
        return SummaryWriter(str(self._reports / "tensorboard"), purge_step=self.start + 1)  # type: ignore[no-untyped-call]

    def _trim(self, path: Path) -> None:
        """Keep what was logged up to the step that the run goes on from."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if self.start and path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # a killed run may have left half a line
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= self.start))

    def _metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._reports is None:
            return
        now = int(time.time() * 1000)
        with open(self._reports / "metrics.jsonl", "a") as file:
            for key, value in values.items():
                file.write(json.dumps({"key": key, "value": value, "step": step, "timestamp": now}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(f"train/{key}", value, step)
