"""The command line: one table of commands, their help, --json, exit codes, and the old spellings."""

import importlib
import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from tasks.__main__ import COMMANDS, DETACHABLE, main, manual
from tasks.publish.graph import graph

OLD_SPELLINGS = ("pull", "verify", "export", "gallery", "verdicts", "label_draft", "demo", "deploy", "calibrate")


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_the_functions_that_are_called(name: str):
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    assert callable(module.run_command if command.kind == "tool" else module.run)
    assert not (command.kind == "stage" and hasattr(module, "add_arguments")), "a stage takes an item and --part alone"


@pytest.mark.parametrize(("free", "writes"), [(1 << 20, False), (1 << 30, True)])
def test_no_bytecode_is_left_on_a_disk_that_is_nearly_full(free: int, writes: bool):
    """A file that is cut off would end every later command, room or not."""
    code = f"""
import shutil, sys
sys.dont_write_bytecode = False
usage = shutil.disk_usage
shutil.disk_usage = lambda folder: usage(folder)._replace(free={free})
import tasks
print(sys.dont_write_bytecode)
"""
    done = python("-c", code, cwd=Path.cwd())
    assert done.stdout.strip() == str(not writes), done.stderr


@pytest.mark.parametrize(
    ("set_before", "spins"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_soon_sleep_unless_the_environment_says_otherwise(set_before: dict[str, str], spins: str):
    """OpenMP's own default holds a core that other processes of the machine need."""
    code = "import os, sys, tasks; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | set_before
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [spins, "False"], done.stderr  # once torch is loaded it would be too late


def test_whatever_writes_into_a_run_ends_with_its_parent():
    stages = {name for name, command in COMMANDS.items() if command.kind == "stage"}
    assert set(COMMANDS) > DETACHABLE and not DETACHABLE & (stages | {"open_run"})


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_manual_the_options_and_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert manual(COMMANDS[name].module).splitlines()[0] in text
    assert "--json" in text
    assert f"example:\n  python -m tasks {name} {COMMANDS[name].example}".rstrip() in text


def test_the_overview_lists_every_command_under_its_group(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert f"  {name:<14}{command.summary}" in lines
        assert lines.index(command.group) < lines.index(f"  {name:<14}{command.summary}")


def test_the_groups_follow_the_flow_of_the_factory(project: Path):
    groups = [group for group, _ in groupby(command.group for command in COMMANDS.values())]
    assert len(groups) == len(set(groups)), "the commands of a group stand together"
    stages = list(dict.fromkeys(node.cmd.split()[3] for node in graph(project)))
    flow = [stage for stage in stages if stage != "validate"]  # a gate after each of three tables
    assert [name for name in COMMANDS if name in flow] == flow


def test_an_unknown_command_names_close_matches(capsys: pytest.CaptureFixture[str]):
    assert main(["judge-check"]) == 78
    assert "unknown command 'judge-check'; did you mean 'judge_check'" in capsys.readouterr().err
    assert main(["xyzzy"]) == 78
    assert "`python -m tasks --help` lists all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["mine"], "mine: expected one argument, the encoder, found None"),
        (["ingest", "photos"], "ingest: expected no argument, found 'photos'"),
        (["select", "--part", "1/2"], "select: works on the whole"),
        (["caption", "--part", "3/2"], "--part '3/2': expected i/n"),
    ],
)
def test_a_wrong_item_or_part_is_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 78
    assert text in capsys.readouterr().err


def test_json_prints_one_object_alone_and_errors_too(tmp_path: Path, project: Path):
    (tmp_path / "manifest.json").write_text("{}")
    good = python("-m", "tasks", "verify", "--root", str(tmp_path), "--json", cwd=project)
    assert json.loads(good.stdout) == {"root": str(tmp_path), "files": 0}
    assert "all 0 files are as published" in good.stderr
    (tmp_path / "manifest.json").unlink()
    bad = python("-m", "tasks", "verify", "--root", str(tmp_path), "--json", cwd=project)
    assert (bad.returncode, json.loads(bad.stdout)["error"]) == (78, "ConfigError")
    assert bad.stderr.startswith("ConfigError: ")


def test_a_child_processs_output_does_not_mix_with_the_json(project: Path):
    script = (
        "import subprocess, tasks.__main__ as cli\n"
        "with cli.stdout_on_stderr():\n"
        "    print('printed')\n"
        "    subprocess.run(['echo', 'by a child'], check=True)\n"
        "print('{}')\n"
    )
    done = python("-c", script, cwd=project)
    assert done.stdout == "{}\n" and {"printed", "by a child"} <= set(done.stderr.splitlines())


def test_the_command_line_and_verify_load_no_heavy_library(project: Path, tmp_path: Path):
    """`verify` runs where neither DVC nor pyarrow is installed, and help texts appear at once."""
    (tmp_path / "manifest.json").write_text("{}")
    script = (
        "import sys, tasks.__main__ as cli\n"
        f"cli.main(['verify', '--root', {str(tmp_path)!r}])\n"
        "cli.main(['--help'])\n"
        "print([m for m in ('numpy', 'torch', 'pyarrow', 'pydantic', 'dvc', 'PIL') if m in sys.modules])"
    )
    assert python("-c", script, cwd=project).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_an_old_spelling_says_the_new_one_and_works(name: str, project: Path):
    done = python("-m", f"tasks.{name}", "--help", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"note: `python -m tasks.{name}` is now `python -m tasks {name}`; the old spelling goes in the next release"
    ]
    assert f"python -m tasks {name}" in done.stdout


def test_an_old_spelling_passes_its_arguments_and_its_exit_code_on(project: Path, tmp_path: Path):
    done = python("-m", "tasks.verify", "--root", str(tmp_path), cwd=project)
    assert done.returncode == 78 and "manifest.json: missing" in done.stderr


def test_the_import_that_published_cards_name_works_and_warns(project: Path):
    done = python("-c", "from tasks.readers import with_images; print(with_images.__module__)", cwd=project)
    assert done.stdout == "tasks.publish.readers\n"
    assert "DeprecationWarning: tasks.readers is now tasks.publish.readers" in done.stderr


def test_running_the_old_readers_module_says_the_new_name(project: Path):
    done = python("-m", "tasks.readers", cwd=project)
    assert done.returncode == 0 and "tasks.readers is now tasks.publish.readers" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_ingest_keeps_its_environment_from_the_processes_that_decode(project: Path):
    script = (
        "import ctypes, tasks.__main__ as cli\n"
        "cli.hide_memory()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    assert python("-c", script, cwd=project).stdout.strip() == "0"
