"""Any stage, killed by SIGKILL in its middle and run again: the same bytes as without the kill.

The second weekly batch in profile `test`, real in every part: a deployment with its origin and remote and a version
before it, the shipped checkpoints, the command lines of dvc.yaml. The week runs once undisturbed, with a snapshot
before every stage. Then each stage starts from that state, is killed with its whole process group at a chosen moment
(tests/support/stage_server.py), runs again to its end, and what is there then is compared with the undisturbed week.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.config import ENCODER_ROLES
from tasks.names import slug
from tasks.publish.deployment import configure_deployment
from tasks.publish.git import git
from tasks.publish.graph import graph
from tasks.publish.published import DATA_STAGES
from tasks.sample.world import make_world

pytestmark = pytest.mark.factory

WEEKS = ("2026-11-16", "2026-11-23")
CONF: dict[str, Any] = {
    "profile": "test",
    "ingest": {"shard_images": 20},
    "recaption": {"batch_images": 1},
    "embed": {"batch_images": 8},
    "mine": {"windows": {e: {"low": -1.0, "high": 1.0} for e in ENCODER_ROLES}},
    "select": {"pairs_per_batch": 9},
    "caption": {"chunk_pairs": 4},
    # how good the models are is no matter here
    "judge": {"chunk_pairs": 4, "threshold": 0.0, "negative_threshold": 1.0, "labelled": None},
    "validate": {
        "images": {"duplicate_share_max": 1.0, "unreadable_share_max": 1.0, "caption_share_min": 0.0},
        "pairs": {"cosine_drop_max": 2.0},
        "triplets": {"yes_min": 0.0},
    },
    "version": {"further_rows": ["caption_to_image"]},
    "train": {
        "steps": 5,
        "batch_triplets": 4,
        "warmup_steps": 1,
        "held_out_share": 0.3,
        "datasets": [
            {
                "name": "captions",
                "format": "rows",
                "path": "caption_to_image",
                "weight": 0,
                "contrast": False,
                "keep_base": 30,
                "held_beside": 16,
                "held_spliced": 0.5,
            }
        ],
    },
}
PUBLISHING = ("open_run", "version", "promote")  # these change origin, remote, cache or clone too
HOOK = """#!/bin/sh
[ "$1" = prepared ] || exit 0
kill -s KILL -- "-$STAGE_GROUP"
"""


class Moment(NamedTuple):
    """When a stage dies: right before one of its events of a kind whose label contains `needle`; `share` 0 is the
    first, 1 the last.

    Kind `hook`: in the middle of a git command that changes refs, by the hook `needle` of origin (of the clone for
    open_run).
    """

    kind: str
    needle: str = ""
    share: float = 0.0


REPORT = Moment("rename", ".run/reports")  # all is written but the stage's report
END = Moment("end")  # all is written; as when a person clears the finished task in Airflow
MOMENTS: dict[str, tuple[Moment, ...]] = {
    "open_run": (
        Moment("process", "worktree add"),
        Moment("write", "params.yaml"),
        Moment("hook", "reference-transaction"),
        Moment("link", "cache/files", 0.5),
        Moment("rename", "opened.json"),
    ),
    "ingest": (
        Moment("image", share=0.2),
        Moment("rename", ".tar", 1.0),
        Moment("rename", "data/images/.2026.11.23.parquet"),
        REPORT,
    ),
    "validate images": (Moment("write", "data_docs", 0.5), Moment("rename", "quarantine"), END),
    "validate pairs": (Moment("remove", "data_docs", 1.0), Moment("rename", "reports/validation")),
    "validate triplets": (Moment("write", "data_docs", 0.5),),
    "recaption": (Moment("pass", share=0.7), Moment("rename", "data/captions"), REPORT),
    "embed semantic": (
        Moment("pass", share=0.5),
        Moment("rename", "data/embeddings/semantic/.2026.11.23-00000.parquet"),
        REPORT,
    ),
    "embed pattern": (Moment("pass", share=1.0), Moment("rename", "data/embeddings/pattern", 1.0)),
    "embed caption": (Moment("pass"), Moment("rename", "data/dropped", 1.0)),
    "mine semantic": (Moment("rename", "data/neighbours"), REPORT),
    "mine pattern": (Moment("rename", "data/neighbours"),),
    "mine caption": (Moment("rename", "data/neighbours"),),
    "select": (Moment("rename", "data/dropped"), Moment("rename", "data/pairs"), REPORT),
    "caption": (Moment("pass", share=0.5), Moment("rename", "data/captioned", 0.5), REPORT),
    "judge": (Moment("pass", share=0.5), Moment("rename", "data/triplets", 0.5), REPORT),
    "version": (
        Moment("rename", "data/export"),
        Moment("write", "dvc.lock", 1.0),
        Moment("rename", "cache/files", 0.5),
        Moment("rename", "remote/files", 0.5),
        Moment("process", "mktag"),
        Moment("hook", "reference-transaction"),
        Moment("rename", "manifest.json"),
        END,
    ),
    "train": (
        Moment("step", share=0.5),
        Moment("write", "models/.candidate", 1.0),
        Moment("rename", "models/.candidate"),
        Moment("rename", "reports/.training"),
    ),
    "evaluate": (Moment("pass", share=0.5), Moment("rename", "reports/.evaluation")),
    "promote": (
        Moment("remove", "promoted", 0.5),
        Moment("rename", "models/.promoted"),
        Moment("rename", "remote/files", 0.5),
        Moment("hook", "reference-transaction"),
        END,
    ),
}


class Ended(NamedTuple):
    """How a stage ended."""

    code: int
    events: dict[str, list[str]]
    output: str


class Before(NamedTuple):
    """The state before a stage, and what the undisturbed stage made of it."""

    words: list[str]
    cwd: Path
    worktree: Path
    snapshot: Path
    events: dict[str, list[str]]
    after: dict[str, str]


class Factory:
    """A deployment in one folder; its stages run in a server that forks."""

    def __init__(self, root: Path, server: subprocess.Popen[str]) -> None:
        self.root, self.snapshots = root / "factory", root / "snapshots"
        self.origin, self.dataset, self.remote = self.root / "origin.git", self.root / "dataset", self.root / "remote"
        self.before: dict[str, Before] = {}
        self._server = server

    def run(self, words: list[str], cwd: Path, kill: Moment | None = None, nth: int = 0) -> Ended:
        env = {"MEGAPAIRS_DATASET": str(self.dataset), "MEGAPAIRS_RUNS": str(self.root / "runs")}
        request = {"words": words, "cwd": str(cwd), "env": env, "kill": [kill.kind, kill.needle, nth] if kill else None}
        assert self._server.stdin and self._server.stdout
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return Ended(**json.loads(self._server.stdout.readline()))

    def finish(self, words: list[str], cwd: Path) -> Ended:
        ended = self.run(words, cwd)
        assert ended.code == 0, f"{words}: {ended.output}"
        return ended

    def observe(self, name: str, words: list[str], cwd: Path, worktree: Path) -> None:
        """Run a stage undisturbed; remember the state before it, its events and its product."""
        snapshot = self.snapshots / name.replace(" ", "-")
        place = self.place(name, worktree)
        shutil.copytree(place, snapshot, symlinks=True)
        events = self.finish(words, cwd).events
        self.before[name] = Before(words, cwd, worktree, snapshot, events, self.product(name, worktree))

    def place(self, name: str, worktree: Path) -> Path:
        """What a stage may change: its worktree, or the whole deployment."""
        return self.root if name in PUBLISHING else worktree

    def restore(self, name: str) -> Before:
        before = self.before[name]
        place = self.place(name, before.worktree)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(before.snapshot, place, symlinks=True)
        return before

    def product(self, name: str, worktree: Path) -> dict[str, str]:
        """Every file of the run by its sha256; where the stage publishes, what is published too, by git's own hashes
        and DVC's.
        """
        hashes = {}
        for top in (
            "data",
            "models",
            "reports",
            ".run/reports",
            "dvc.lock",
            "version.json",
            "manifest.json",
            "params.yaml",
        ):
            path = worktree / top
            for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
                relative = file.relative_to(worktree).as_posix()
                # what the dead one was writing aside; GX's pages, which show the time
                if ".tmp" in relative or "data_docs" in relative:
                    continue
                content = (
                    untimed(file)
                    if top == ".run/reports"
                    else without_clock(file)
                    if file.name == "metrics.jsonl"
                    else file.read_bytes()
                )
                hashes[relative] = hashlib.sha256(content).hexdigest()
        if name in PUBLISHING:
            for line in git(self.origin, "for-each-ref", "--format=%(objecttype) %(refname)").splitlines():
                hashes[line] = git(self.origin, "log", "-1", "--format=%T %s", line.partition(" ")[2])
            hashes["versions"] = git(self.origin, "rev-list", "--count", "dataset")
            # DVC writes an object aside too
            for file in sorted(p for p in self.remote.rglob("*") if p.is_file() and p.suffix != ".tmp"):
                hashes[file.relative_to(self.root).as_posix()] = hashlib.md5(file.read_bytes()).hexdigest()
        return hashes


def untimed(report: Path) -> bytes:
    """A StageReport without what differs from try to try: its seconds, the rows that it wrote itself, its notes."""
    content = {k: v for k, v in json.loads(report.read_text()).items() if k not in ("seconds", "written", "notes")}
    return json.dumps(content).encode()


def without_clock(metrics: Path) -> bytes:
    """The lines of a training's metrics without the time at which they were written (MLflow's form asks for it) and the
    speed.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return json.dumps([(x["key"], x["value"], x["step"]) for x in lines if x["key"] != "steps_per_s"]).encode()


def code_of(project: Path, root: Path) -> Path:
    """The code as it lies here, in a repository of its own; the checkpoints by a link."""
    root.mkdir()
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(project / name, root / name)
    for name in ("tasks", "expectations"):
        shutil.copytree(project / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    (root / "tasks/sample/checkpoints").symlink_to(project / "tasks/sample/checkpoints")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "code")
    return root


def win(evaluation: Path, score: float) -> None:
    """Let the candidate win: five steps make no better model, and promote is to publish it."""
    content = json.loads(evaluation.read_text())
    for model, half in ((m, h) for m in content["metrics"] for h in content["metrics"][m]):
        content["metrics"][model][half]["map_at_5"] = score if (model, half) == ("finetuned", "composed") else 0.1
    evaluation.write_text(json.dumps(content))


def live_two_weeks(factory: Factory, project: Path, root: Path) -> None:
    """Two weeks, undisturbed; a snapshot is taken before every stage of the second one."""
    code, source = code_of(project, root / "code"), root / "source"
    configure_deployment(factory.origin, factory.dataset, str(factory.remote), factory.root / "cache", checkout=code)
    nodes = [(node.name.partition("@")[0], node.cmd.removeprefix("python -m tasks ")) for node in graph(project)]
    chains = {
        "dataset": [*(line for name, line in nodes if name in DATA_STAGES), "version"],
        "model": [*(line for name, line in nodes if name not in DATA_STAGES), "promote"],
    }
    for number, date in enumerate(WEEKS):
        make_world(source, seed=5, images=40 if number else 60, offset=60 * number, truth=root / "truth.jsonl")
        for kind, chain in chains.items():
            run_id = ["open_run", "--run-id", f"{kind}-{date}"]
            opening = [*run_id, "--kind", kind, "--conf", json.dumps({**CONF, "date": date, "sources": str(source)})]
            worktree = factory.root / "runs" / slug(run_id[-1])
            if number and kind == "dataset":
                factory.observe("open_run", opening, factory.dataset, worktree)
            else:
                factory.finish(opening, factory.dataset)
            for line in chain:
                if line == "promote":
                    win(worktree / "reports" / "evaluation.json", 0.5)
                if number:
                    factory.observe(line, line.split(), worktree, worktree)
                else:
                    factory.finish(line.split(), worktree)
            factory.finish([*run_id, "--close"], factory.dataset)


def serve(project: Path, cwd: Path) -> subprocess.Popen[str]:
    """The server of stages. Threads that wait sleep: a test shares its cores."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | {
        "OMP_WAIT_POLICY": "PASSIVE"
    }
    command = [sys.executable, str(project / "tests" / "support" / "stage_server.py")]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Factory]:
    """The two weeks, and the server in which stages of the second one are killed."""
    root = tmp_path_factory.mktemp("killed")
    with serve(project, root) as server:
        factory = Factory(root, server)
        live_two_weeks(factory, project, root)
        yield factory


def test_every_stage_is_killed(factory: Factory):
    assert set(factory.before) == set(MOMENTS)


@pytest.mark.parametrize(
    ("name", "moment"), [pytest.param(n, m, id=f"{n}-{'-'.join(map(str, m))}") for n, ms in MOMENTS.items() for m in ms]
)
def test_killed_and_run_again_the_product_is_the_same(name: str, moment: Moment, factory: Factory):
    before = factory.restore(name)
    assert factory.product(name, before.worktree) != before.after
    hook = (factory.dataset / ".git" if name == "open_run" else factory.origin) / "hooks" / moment.needle
    nth = 0
    if moment.kind == "hook":
        hook.write_text(HOOK)
        hook.chmod(0o755)
    else:
        labels = [label for label in before.events[moment.kind] if moment.needle in label]
        assert labels, before.events[moment.kind]
        nth = round(moment.share * (len(labels) - 1))
    killed = factory.run(before.words, before.cwd, moment, nth)
    assert killed.code == -signal.SIGKILL, killed.output
    if moment.kind == "hook":
        hook.unlink()
    factory.finish(before.words, before.cwd)
    after = factory.product(name, before.worktree)
    changed = {path for path in after | before.after if after.get(path) != before.after.get(path)}
    assert changed == set()
