"""A week of the factory in one folder, real in every part but its paid model: what the chaos suite breaks.

A deployment with its origin and DVC remote, the sample world's images, the command lines of dvc.yaml, and an
OpenAI-compatible server that counts each reply it is paid for. Stages run in forks of tests/support/stage_server.py,
which kills them right before a chosen event.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import ENCODER_ROLES
from tasks.demo.local_airflow import PROJECT
from tasks.demo.setup import make_deployment
from tasks.names import slug
from tasks.publish.git import read_at, tags
from tasks.publish.graph import graph
from tasks.publish.published import DATA_STAGES
from tasks.sample.world import make_world
from tests.support.served_model import FakeServer, fake_server

DATE = "2026-11-23"
RUN = "chaos"
IN_FLIGHT = 4  # requests that a stage has under way at once: so many replies may be lost with it


@dataclass
class Outcome:
    """What came of a scenario.

    Attributes:
        name: of the scenario.
        is_recovered: the factory went on by itself, or after the one step that its error named.
        is_equal: what it published is what the undisturbed week published, and nothing was paid for twice.
        kills: processes killed, a count.
        seconds: the scenario's wall time.
        note: what was seen, in a few words.
    """

    name: str
    is_recovered: bool = False
    is_equal: bool = False
    kills: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Ended:
    """How a stage ended: exit code (minus the signal), its events by kind, what it printed."""

    code: int
    events: dict[str, list[str]]
    output: str


def week_conf(source: str, url: str) -> dict[str, Any]:
    """The trigger form's values: every stage has work, no gate holds, describer, writer and judge are the server's."""
    served = {"engine": "openai", "url": url, "model": "tiny", "chunk_pairs": 8, "in_flight": IN_FLIGHT}
    served["outage_s"] = 5.0  # how long a dead server is waited for
    return {
        "profile": "test",
        "date": DATE,
        "sources": source,
        "ingest": {"shard_images": 20},
        "recaption": {"batch_images": 4},
        "embed": {"batch_images": 16},
        "mine": {"windows": {e: {"low": -1.0, "high": 1.0} for e in ENCODER_ROLES}},
        "select": {"pairs_per_batch": 24},
        "caption": {**served, "writer_url": url, "writer": "tiny", "instructions_min": 1, "canaries": None},
        "judge": {**served, "labelled": None, "threshold": 0.5, "negative_threshold": 0.99, "instructions_min": 1},
        "validate": {
            "images": {"duplicate_share_max": 1.0, "unreadable_share_max": 1.0, "caption_share_min": 0.0},
            "pairs": {"cosine_drop_max": 2.0},
            "triplets": {"yes_min": 0.0, "instructions_min": 1},
        },
    }


class Week:
    """The deployment below `root`, its stages and its model server.

    Args:
        root: an empty folder.
        images: of the week, a count.
        stages: the process that forks stages.
        server: the paid model.
    """

    def __init__(self, root: Path, images: int, stages: subprocess.Popen[str], server: FakeServer) -> None:
        self.root, self.server = root, server
        self.place, self.untouched = root / "factory", root / "untouched"
        self.dataset, self.origin = self.place / "dataset", self.place / "origin.git"
        self.worktree = self.place / "runs" / slug(RUN)
        self.url = server()
        self._stages = stages
        make_world(root / "source", seed=5, images=images, truth=root / "truth.jsonl")
        make_deployment(self.place)
        shutil.copytree(self.place, self.untouched, symlinks=True)
        self.expected: dict[str, str] = {}
        self.events: dict[str, dict[str, list[str]]] = {}
        self.calls = 0

    # --- commands ----------------------------------------------------------------------------------------------------

    def opening(self, run_id: str = RUN, **changes: Any) -> list[str]:
        """The words that open a run."""
        conf = {**week_conf(str(self.root / "source"), self.url), **changes}
        return ["open_run", "--run-id", run_id, "--kind", "dataset", "--conf", json.dumps(conf)]

    def chain(self) -> list[list[str]]:
        """The words of every command of a week, in order."""
        lines = [
            n.cmd.removeprefix("python -m tasks ") for n in graph(PROJECT) if n.name.partition("@")[0] in DATA_STAGES
        ]
        return [self.opening(), *(line.split() for line in lines), ["version"]]

    def run(
        self, words: list[str], kill: tuple[str, str, int] | None = None, worktree: Path | None = None, **env: str
    ) -> Ended:
        """Run a command where it belongs; with `kill` it dies right before that event."""
        cwd = self.dataset if words[0] == "open_run" else worktree or self.worktree
        places = {
            "MEGAPAIRS_DATASET": str(self.dataset),
            "MEGAPAIRS_RUNS": str(self.place / "runs"),
            "MEGAPAIRS_CACHE": str(self.place / "replies"),
            "MEGAPAIRS_LOCK_WAIT_S": "60",
            "MEGAPAIRS_SOURCE_ROOTS": f"{self.root},s3://shop",
        }
        request = {"words": words, "cwd": str(cwd), "env": places | env, "kill": kill}
        assert self._stages.stdin and self._stages.stdout
        print(json.dumps(request), file=self._stages.stdin, flush=True)
        return Ended(**json.loads(self._stages.stdout.readline()))

    def finish(self, words: list[str], worktree: Path | None = None) -> Ended:
        """Run a command to its good end.

        Raises:
            AssertionError: it ended otherwise.
        """
        ended = self.run(words, worktree=worktree)
        assert ended.code == 0, f"{' '.join(words[:2])} ended with {ended.code}: {ended.output[-1500:]}"
        return ended

    # --- states ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The deployment as before the week; the server runs and was paid nothing."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.untouched, self.place, symlinks=True)
        self.server()
        self.server.forget()

    def live_undisturbed(self) -> None:
        """The week without chaos: what every scenario is compared with."""
        self.reset()
        for words in self.chain():
            self.events[" ".join(words[:2])] = self.finish(words).events
        self.expected = self.published()
        self.calls = len(self.server.paid())
        assert self.calls == len(set(self.server.paid())) > 20, "the week pays for replies, for each once"

    def published(self) -> dict[str, str]:
        """What researchers get: each version's fingerprint, and the checksums of its manifest."""
        out = {}
        for tag in tags(self.origin, "dataset"):
            for path in ("version.json", "manifest.json"):
                content = json.loads(read_at(self.origin, tag, path) or b"{}")
                value = content["fingerprint"] if path == "version.json" else self.data_of(content)
                out[f"{tag} {path}"] = str(value)
        return out

    @staticmethod
    def data_of(manifest: dict[str, Any]) -> str:
        """One checksum over the manifest's entries of data; pages and cards may show the time."""
        rows = manifest.get("files", manifest)
        data = {k: v for k, v in rows.items() if str(k).startswith("data/")} if isinstance(rows, dict) else rows
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def paid_again(self) -> int:
        """Replies that were paid for more than once, a count."""
        paid = self.server.paid()
        return len(paid) - len(set(paid))

    def is_as_expected(self, lost_in_flight: int = 0) -> bool:
        """Whether the same was published, for the same calls.

        Args:
            lost_in_flight: replies that may have been on their way to a killed process, a count.
        """
        is_same = bool(self.expected) and self.published() == self.expected
        return is_same and len(set(self.server.paid())) == self.calls and self.paid_again() <= lost_in_flight


@contextmanager
def living_week(root: Path, images: int) -> Iterator[Week]:
    """A week that was lived once undisturbed; its processes end with the block."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")}
    program = [sys.executable, str(PROJECT / "tests" / "support" / "stage_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(fake_server(root / "paid.log"))
        stages = stack.enter_context(
            subprocess.Popen(program, cwd=root, env=environment | {"OMP_WAIT_POLICY": "PASSIVE"}, **pipes)  # type: ignore[call-overload]
        )
        week = Week(root, images, stages, server)
        week.live_undisturbed()
        yield week
