"""Opening a run: the form's values, refusals within seconds, the same worktree on a retry."""

import json
import logging
import sys
import time
from pathlib import Path

import pytest
import yaml

from tasks.__main__ import main
from tasks.config import load_params
from tasks.errors import ConfigError
from tasks.locks import exclusive
from tasks.publish.git import git
from tasks.publish.open_run import Deployment, RunRequest, make_worktree, open_run
from tests.support.killing import kill_when
from tests.support.waiting import wait_until


def refuse(deployment: Path, request: RunRequest) -> None:
    """Open a run that must be refused."""
    open_run(request, Deployment(deployment / "dataset", deployment / "refused"))


@pytest.mark.parametrize(
    "conf",
    [
        {"mien.neighbours": 5},
        {"limt": 5},
        {"mine": 5},
        {"mine.neighbors": 5},
        {"mine.neighbours": "many"},
        {"profile": "big"},
    ],
)
def test_a_wrong_key_or_value_is_refused_and_leaves_nothing(conf: dict[str, object], deployment: Path):
    with pytest.raises(ConfigError, match="known|valid|section"):
        refuse(deployment, RunRequest("r", "dataset", {"sources": str(deployment), **conf}))
    assert not (deployment / "refused").exists()


@pytest.mark.parametrize("conf", [{"dataset": "shop"}, {"open_run": {"dataset": "shop"}}, {"open_run.dataset": "shop"}])
def test_another_datasets_name_is_refused_with_the_way_to_make_one(conf: dict[str, object], deployment: Path):
    sources = {"sources": str(deployment)}
    with pytest.raises(ConfigError, match="'shop' is not the dataset of this deployment; expected 'sample-world'") as e:
        refuse(deployment, RunRequest("r", "dataset", {**sources, **conf}))
    assert "python -m tasks new-dataset shop --source FOLDER" in str(e.value) and "make ui DATASET=shop" in str(e.value)


def test_a_source_that_is_not_there_is_refused(deployment: Path):
    with pytest.raises(ConfigError, match="ingest.sources.nowhere: no such folder"):
        refuse(deployment, RunRequest("r", "dataset", {"sources": "/nowhere"}))


@pytest.mark.parametrize("key", ["blocklists", "benchmark_hashes", "takedown"])
def test_a_list_that_is_not_there_is_refused(key: str, deployment: Path):
    with pytest.raises(ConfigError, match=f"ingest.{key}.*: no such folder or file /nowhere.txt"):
        value = "/nowhere.txt" if key == "takedown" else ["/nowhere.txt"]
        refuse(deployment, RunRequest("r", "dataset", {"sources": str(deployment), f"ingest.{key}": value}))


def test_a_contradiction_is_refused_within_seconds_and_leaves_nothing(deployment: Path):
    start = time.process_time()
    conf = {"sources": str(deployment), "mine.windows": {"semantic": {"low": 0.9, "high": 0.8}}}
    with pytest.raises(ConfigError, match="'mine.windows.semantic': 'low' is 0.9 and 'high' is 0.8"):
        refuse(deployment, RunRequest("r", "dataset", conf))
    assert time.process_time() - start < 5 and not (deployment / "refused").exists()


def test_a_damaged_answer_of_a_reviewer_is_named_and_stops_neither_a_week_nor_a_takedown(deployment: Path):
    file, where = deployment / "reviews.jsonl", Deployment(deployment / "dataset", deployment / "runs")
    answer = {"at": "", "name": "ann", "version": "", "row_id": "t1", "instruction": "i", "query": "q", "target": "t"}
    lines = ["half a li", json.dumps({**answer, "answer": "wrong"}), "[1]", json.dumps({**answer, "answer": 5}), "\xff"]
    file.write_bytes("\n".join(lines).encode("latin-1"))
    for name, conf in (("week", {"sources": str(deployment)}), ("takedown", {"takedown": ["f" * 64], "dry_run": True})):
        notes = open_run(RunRequest(name, "dataset", conf), where).notes
        assert notes[1].endswith("1 verdicts of people"), "the whole line counts"
        assert [note.partition(": ")[0] for note in notes if "no review" in note] == [
            f"{file.resolve()}, line {number}" for number in (1, 3, 4, 5)
        ]
    with exclusive(file.with_suffix(".lock"), 1, "held"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.reviews.verdicts.LOCK_S", 0.01)
        notes = open_run(RunRequest("now", "dataset", {"takedown": ["f" * 64], "dry_run": True}), where).notes
        assert "verdicts of people are left to the next run" in notes[-1]
    file.unlink()


def test_windows_that_nobody_calibrated_are_warned_of(deployment: Path, caplog: pytest.LogCaptureFixture):
    where = Deployment(deployment / "dataset", deployment / "runs")
    conf = {"profile": "small", "sources": str(deployment)}
    with caplog.at_level(logging.WARNING):
        notes = open_run(RunRequest("guessed", "dataset", conf), where).notes
    assert notes[-1].startswith("profile 'small': mine.windows of semantic, pattern, caption are not calibrated")
    assert notes[-1] in caplog.text
    assert "uncalibrated" not in (Path(notes[0]) / "params.yaml").read_text()
    windows = {role: {"low": 0.5, "high": 0.9} for role in ("semantic", "pattern", "caption")}
    notes = open_run(RunRequest("calibrated", "dataset", {**conf, "mine.windows": windows}), where).notes
    assert len(notes) == 2 and notes[1].startswith("version ")


def test_training_needs_a_version(deployment: Path):
    with pytest.raises(ConfigError, match="no dataset version to train on"):
        refuse(deployment, RunRequest("m", "model"))


def test_the_run_has_its_worktree_and_a_retry_gets_the_same(
    deployment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (deployment / "images").mkdir()
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(deployment / "dataset"))
    monkeypatch.setenv("MEGAPAIRS_RUNS", str(deployment / "runs"))
    monkeypatch.setenv("MEGAPAIRS_SOURCES_ROOT", str(deployment))
    conf = json.dumps({"profile": "test", "sources": "images", "date": "2026-11-16", "select.negatives": 2})
    start = time.process_time()
    run = ["open_run", "--run-id", "manual__2026-11-16T00:00:00"]

    def open_it() -> str:
        assert main([*run, "--kind", "dataset", "--conf", conf]) == 0
        return str(json.loads(capsys.readouterr().out.splitlines()[-1])["notes"][0])

    root = Path(open_it())
    assert time.process_time() - start < 5
    params = load_params(root / "params.yaml")
    assert (params.profile, params.open_run.batch, params.select.negatives, params.caption.chunk_pairs) == (
        "test",
        "2026.11.16",
        2,
        32,
    )
    assert params.ingest.sources[0].path == str(deployment / "images")
    assert "profiles" not in yaml.safe_load((root / "params.yaml").read_text())
    assert params.embed.encoders["semantic"].model.startswith("tasks/")  # models lie in the code
    (root / "data").mkdir()
    (root / "data" / "kept").write_text("x")
    assert open_it() == str(root)
    assert (root / "data" / "kept").exists()
    assert git(deployment / "dataset", "status", "--porcelain") == ""
    assert main([*run, "--close"]) == 0
    assert not root.exists()
    assert main([*run, "--close"]) == 0  # once more does no harm


# As git's own checkout in a killed call: it goes on for two seconds and writes into the worktree.
HOOK = """#!/bin/sh
exec 2> /dev/null
[ -e "{folder}/started" ] && exit 0
touch "{folder}/started"
sleep 2
echo late > "{folder}/runs/one/late.txt"
touch "{folder}/ended"
"""


def test_a_worktree_is_made_after_the_git_of_a_killed_call_has_ended(tmp_path: Path, project: Path):
    """A SIGKILL of the stage does not end its git, which goes on to write into the worktree."""
    clone, worktree = tmp_path / "clone", tmp_path / "runs" / "one"
    clone.mkdir()
    git(clone, "init", "-q", "-b", "main")
    (clone / "code.py").write_text("x = 1\n")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "code")
    hook = clone / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK.format(folder=tmp_path))
    hook.chmod(0o755)
    code = (
        "from pathlib import Path; from tasks.publish.open_run import make_worktree; "
        f"make_worktree(Path({str(clone)!r}), Path({str(worktree)!r}), 'main')"
    )
    kill_when((tmp_path / "started").exists, [sys.executable, "-c", code], project)
    make_worktree(clone, worktree, "main")
    wait_until((tmp_path / "ended").exists, "the hook has ended")
    assert sorted(path.name for path in worktree.iterdir()) == [".git", "code.py"]
