"""Train one of the sample world's tiny checkpoints: `python -m tasks.sample.train <clip|dino|vlm|judge|writer>`.

Options: `--out DIR` (default `tasks/sample/checkpoints/<model>`), `--seed N` (default 0), `--minutes M` (about M
minutes of two cores instead of the default; converted to a number of steps before training starts). Work is counted in
steps, never in seconds, so that the same command with the same number of threads (`OMP_NUM_THREADS`, default 2) gives
the same weights again. vlm and judge always run as two processes of one thread. The judge starts from the describer's
weights: train `vlm` first.

    model    input -> output                                     default (minutes of two cores)
    vlm      two images -> what they share and what changed    42
    judge    two images and an instruction -> yes or no        50
    clip     images and captions in one space                   4
    dino     images alone, self-supervised                      4
    writer   description -> instruction in a given style          4

Every record of the training curve is a line of `checkpoints/curves/<model>.jsonl`; `checkpoints/REPORT.md` has the
measured results.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from tasks.sample.tokens import CHECKPOINTS

MODELS = ("clip", "dino", "vlm", "judge", "writer")
STEPS_PER_MINUTE = {"clip": 130, "dino": 100, "vlm": 60, "judge": 32, "writer": 170}  # measured on two shared x86 cores


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m tasks.sample.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument(
        "--minutes", type=float, help="about so many minutes of two cores; converted to a number of steps"
    )
    parser.add_argument("--out", type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a terminated run ends its workers
    module = importlib.import_module(f"tasks.sample.train_{options.model}")
    folder = options.out or CHECKPOINTS / options.model
    more = (
        {} if options.minutes is None else {"steps": max(1, round(options.minutes * STEPS_PER_MINUTE[options.model]))}
    )
    module.train(folder, seed=options.seed, **more)


if __name__ == "__main__":
    main()
