"""Run stages in forks of one process that has imported the heavy libraries, and kill them at chosen moments.

    python tests/support/stage_server.py        one request a line on stdin, one answer a line on stdout, both JSON

    request  {"words": ["embed", "semantic"], "cwd": folder, "env": {}, "kill": null | [kind, needle, n]}
    answer   {"code": exit code, or minus the signal, "events": {kind: [label, ...]}, "output": text}

A fork is a process group of its own, runs `python -m tasks <words>` with a fresh import of `tasks` from its folder, and
records events. With `kill` its group dies by SIGKILL right before the n-th event (from 0) of that kind whose label
contains the needle. Without, the answer has all events of the run:

    kind                           when, and the event's label
    write, rename, link, remove    a change of the disk, from Python's audit hooks; the (first) path
    process                        a program is started (git); its words
    image                          a file is put into a tar; its name
    pass, step                     a model's forward pass, its class; an optimiser's step
    end                            the stage is over, but its exit code is not reported yet

STAGE_GROUP in the environment names the process group, for whoever wants to kill it from outside (a git hook).
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

LIMIT_S = 600  # a stage that hangs fails its test
CHANGES = {
    "os.rename": "rename",
    "os.link": "link",
    "os.symlink": "link",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "subprocess.Popen": "process",
}
CHECKPOINTS = Path(__file__).resolve().parents[2] / "tasks" / "sample" / "checkpoints"


class Events:
    """Records what happens, and dies at the requested event."""

    def __init__(self, kill: list[Any] | None) -> None:
        self.kind, self.needle, self.left = kill or ("", "", -1)
        self.seen: dict[str, list[str]] = defaultdict(list)
        self._lock = threading.RLock()

    def on(self, kind: str, label: object) -> None:
        with self._lock:
            self.seen[kind].append(str(label))
            if kind == self.kind and self.needle in str(label):
                if self.left == 0:
                    os.killpg(os.getpgrp(), signal.SIGKILL)
                self.left -= 1

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in CHANGES:
            self.on(CHANGES[event], " ".join(map(os.fsdecode, args[1])) if event == "subprocess.Popen" else args[0])
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike) and args[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.fsdecode(args[0])
            if not path.startswith("/dev/") and not path.endswith(".pyc") and "__pycache__" not in path:
                self.on("write", path)


def preload() -> None:
    """Import what the stages import, and start no thread: what is missing here is imported by each fork."""
    import dvc.repo
    import great_expectations
    import pandas
    import pyarrow.parquet
    import torch
    import transformers

    _ = (dvc.repo, great_expectations, pandas, pyarrow.parquet, torch)
    for path in sorted(CHECKPOINTS.glob("*/config.json")):
        for name in json.loads(path.read_text()).get("architectures", []):
            getattr(transformers, name)
    _ = (
        transformers.AutoModel,
        transformers.AutoProcessor,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForCausalLM,
    )


def watch(events: Events) -> None:
    """Record events of the libraries, by their hooks; tarfile has none."""
    import tarfile

    import torch
    import transformers
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def on_pass(module: Any, inputs: Any) -> None:
        if isinstance(module, transformers.PreTrainedModel):
            events.on("pass", type(module).__name__)

    torch.nn.modules.module.register_module_forward_pre_hook(on_pass)
    register_optimizer_step_pre_hook(lambda *_: events.on("step", ""))
    add = tarfile.TarFile.addfile

    def added(tar: tarfile.TarFile, entry: tarfile.TarInfo, content: Any = None) -> None:
        events.on("image", entry.name)
        add(tar, entry, content)

    tarfile.TarFile.addfile = added  # type: ignore[method-assign]
    sys.addaudithook(events.audit)


def stage(request: dict[str, Any], output: int, trace: Path) -> NoReturn:
    """In the fork: become `python -m tasks <words>` in its folder."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.alarm(LIMIT_S)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(request["cwd"])
        os.environ |= request["env"] | {"STAGE_GROUP": str(os.getpgrp())}
        sys.path.insert(0, request["cwd"])
        sys.argv = ["tasks", *request["words"]]
        events = Events(request["kill"])
        watch(events)
        try:
            runpy.run_module("tasks", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = int(end.code or 0)
        events.on("end", code)
        trace.write_text(json.dumps(dict(events.seen)))
    except BaseException:  # it must not return into the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve until stdin ends."""
    del sys.path[0]  # the tests' folder
    preload()
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as folder:
        trace, log = Path(folder) / "trace.json", Path(folder) / "output"
        for line in sys.stdin:
            trace.unlink(missing_ok=True)
            with open(log, "wb") as output:
                child = os.fork()
                if child == 0:
                    stage(json.loads(line), output.fileno(), trace)
                _, status = os.waitpid(child, 0)
            events = json.loads(trace.read_text()) if trace.exists() else {}
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "events": events,
                "output": log.read_text(errors="replace"),
            }
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
