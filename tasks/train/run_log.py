"""The log of a training: its loss curve and, as it runs, its metrics.

    reports/training/metrics.jsonl      one metric per line, as MLflow's log-batch takes them: key, value, step,
                                        timestamp (ms)
    reports/training/tensorboard/       the same for TensorBoard, where train.tensorboard asks for it

Both hold timestamps and are not versioned; the curve in reports/training.json holds none. In a terminal a progress bar
is shown; elsewhere every fifth point of the curve goes to the log.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError
from tasks.progress import Progress as StageProgress
from tasks.train.checkpoints import Progress

STEPS_PER_POINT = 10  # a point of the curve is the mean over so many steps
log = logging.getLogger(__name__)


class RunLog:
    """Collects the figures of each step. Without a reports folder it only keeps the curve.

    Attributes:
        curve: per `STEPS_PER_POINT` steps {"step", figure: mean}.
        total_steps: of the whole training, a count.
        is_writer: of several processes, whether this is the one that writes.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        resumed: Progress | None = None,
        reports: Path | None = None,
        tensorboard: bool = False,
        is_writer: bool = True,
        track: Callable[[Mapping[str, float], int | None], None] | None = None,
    ) -> None:
        """Open the log.

        Args:
            total_steps: of the whole training, a count.
            resumed: where an earlier run's checkpoint continues; its later metrics are removed.
            reports: folder of the metrics; none where None.
            tensorboard: also write events for TensorBoard.
            is_writer: of several processes, whether this is the one that shows progress.
            track: logs the same values elsewhere; called with step None at the end.
        Raises:
            ConfigError: TensorBoard is asked for and not installed.
        """
        self.total_steps, self.is_writer = total_steps, is_writer
        self._step = resumed.step if resumed else 0
        state = resumed.run_log if resumed else {"curve": [], "recent": []}
        self.curve: list[dict[str, float]] = state["curve"]
        self._recent: list[dict[str, float]] = state["recent"]
        self._start = resumed.step if resumed else 0
        if resumed:
            log.info("train: resumes from step %d of %d", self._start, total_steps)
        self._last_point = (time.perf_counter(), self._start)
        self._reports, self._track = reports, track
        self._writer = _tensorboard_writer(reports, self._start) if tensorboard and reports is not None else None
        if reports is not None:
            self._drop_metrics_after_start(reports / "metrics.jsonl")
        self._progress = StageProgress("train", total_steps, "steps", is_logged=is_writer)
        self._progress.skip(self._start)
        self._bar: Any = None
        if is_writer and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=self._start, unit="step", desc="train")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log."""
        return {"curve": self.curve, "recent": self._recent}

    def log_step(self, step: int, figures: Mapping[str, float], *, is_last: bool) -> None:
        """Add the figures of a step; every `STEPS_PER_POINT` steps they become a point of the curve.

        Args:
            step: its number over all phases, from 1.
            figures: the same keys throughout a phase.
            is_last: the last step of a phase; its point is made from fewer steps.
        """
        self._recent.append(dict(figures))
        self._progress.advance()
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
        self._step = step
        if len(self._recent) == STEPS_PER_POINT or is_last:
            self.end_phase()

    def log_validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Log an evaluation while training."""
        log.info("train: step %d, evaluation %s", step, ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        self._write_metrics(step, {f"validation_{key}": value for key, value in scores.items()})

    def end_phase(self) -> None:
        """Make the last steps a point of the curve, though they are fewer."""
        if not self._recent:
            return
        step = self._step
        means = {key: round(float(np.mean([r[key] for r in self._recent])), 5) for key in self._recent[0]}
        self._recent = []
        self.curve.append({"step": step, **means})
        if self._bar is None and step % (5 * STEPS_PER_POINT) == 0:
            loss, accuracy = means["loss"], means["accuracy"]
            log.info("train: step %d of %d, loss %.4f, accuracy %.3f", step, self.total_steps, loss, accuracy)
        now, (before, step_before) = time.perf_counter(), self._last_point
        self._last_point = (now, step)
        self._write_metrics(step, {**means, "steps_per_s": (step - step_before) / max(now - before, 1e-9)})

    def close(self) -> None:
        """Keep the last state of the progress; close the progress bar and the TensorBoard file."""
        self._progress.finish()
        if self._track is not None:
            self._track({}, None)
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _drop_metrics_after_start(self, path: Path) -> None:
        """Keep the metrics up to the step that the run resumes from."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if self._start and path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # a killed run may have left half a line
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= self._start))

    def _write_metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._track is not None:
            self._track(values, step)
        if self._reports is None:
            return
        timestamp_ms = int(time.time() * 1000)
        with open(self._reports / "metrics.jsonl", "a") as file:
            for key, value in values.items():
                file.write(json.dumps({"key": key, "value": value, "step": step, "timestamp": timestamp_ms}) + "\n")
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(f"train/{key}", value, step)


def _tensorboard_writer(reports: Path, start: int) -> Any:
    """A writer of TensorBoard events that hides those after the step that the run resumes from."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "'train.tensorboard' is on and TensorBoard is not installed; `pip install tensorboard`, or switch it off"
        ) from error
    return SummaryWriter(str(reports / "tensorboard"), purge_step=start + 1)  # type: ignore[no-untyped-call]
