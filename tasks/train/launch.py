"""Run the training in several processes of this machine, by torchrun's launcher."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tasks.errors import ConfigError, DataError, TransientError


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate-launch) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first_process() -> bool:
    """Whether this is the process that writes the model and the reports: the only one, or rank 0."""
    return not is_launched() or int(os.environ.get("RANK", "0")) == 0


def launch_processes(processes: int, root: Path) -> None:
    """Start `python -m tasks train` in several processes, and wait for them.

    Args:
        processes: a count.
        root: the run's worktree.
    Raises:
        DataError, ConfigError, TransientError: by the exit code of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "tasks", "train", "--root", str(root))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        error_class = {e.exit_code: e for e in (DataError, ConfigError)}.get(failure.exitcode, TransientError)
        raise error_class(
            f"train: process {rank} of {processes} ended with exit code {failure.exitcode}; see its message above"
        ) from error
