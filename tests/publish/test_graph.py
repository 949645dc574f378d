"""dvc.yaml and the DAGs are two views of one factory: same stages, same order, same command lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.__main__ import COMMANDS
from tasks.publish.dvc_repo import dvc_repo
from tasks.publish.graph import graph, without_unlocked_outputs

AIRFLOW_ALONE = {
    "ingest_list",
    "ingest_fetch",
    "open_run",
    "version",
    "promote",
    "close_run",
    "noise",
}  # noise: once per recipe, by a person

# Reads a DAG file as Airflow does and prints its stages in topological order: [stage, [items or null]].
READ_DAG = """
import importlib, json, sys
sys.path[:0] = ["plugins", "dags"]
dag = getattr(importlib.import_module(sys.argv[1] + "_dag"), sys.argv[1])()
found = []
for task in dag.topological_sort():
    given = {**task.partial_kwargs, **task.expand_input.value} if task.is_mapped else vars(task)
    if given.get("stage") and "stage" in given:
        item = given.get("item")
        if task.task_id in ("mine_part", "evaluate_part"):
            continue  # dvc.yaml has the whole, which merges parts
        found.append([given["stage"], item if isinstance(item, list) else [item]])
print("DAG " + json.dumps(found))
"""


def commands_of_dag(name: str, project: Path, home: Path) -> list[str]:
    """The `python -m tasks ...` lines of a DAG's stages, mapped items expanded, parts left out."""
    env = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", READ_DAG, name], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line[4:] for line in done.stdout.splitlines() if line.startswith("DAG ")))
    return [
        "python -m tasks " + " ".join(x for x in (stage, item) if x)
        for stage, items in found
        if stage not in AIRFLOW_ALONE
        for item in items
    ]


@pytest.mark.airflow
def test_airflow_and_dvc_run_the_same_lines_in_the_same_order(project: Path, tmp_path: Path):
    from_dags = commands_of_dag("dataset_refresh", project, tmp_path) + commands_of_dag(
        "bge_vl_finetune", project, tmp_path
    )
    assert [node.cmd for node in graph(project)] == from_dags


def test_dvc_reads_dvc_yaml_as_graph_does(project: Path):
    with dvc_repo(project) as repo:
        seen = {
            s.name: (s.cmd, {str(Path(o.fs_path).relative_to(project)) for o in s.outs})
            for s in repo.index.stages
            if getattr(s, "name", None)
        }
    assert seen == {n.name: (n.cmd, set(n.outs)) for n in graph(project)}


def test_every_dependency_is_made_before_it_is_used(project: Path):
    made: set[str] = set()
    for node in graph(project):
        for dep in node.deps:
            is_made = any(dep == out or out.startswith(dep + "/") for out in made)
            assert is_made or (project / dep).exists(), f"{node.name} needs {dep}"
        assert not made & set(node.outs), f"{node.name}: an output of another stage"
        made |= set(node.outs)


def test_every_stage_stands_in_dvc_yaml_but_what_publishes(project: Path):
    stages = {name for name, command in COMMANDS.items() if command.kind == "stage"}
    assert {node.cmd.split()[3] for node in graph(project)} == stages - AIRFLOW_ALONE


def test_nothing_runs_past_a_gate_that_holds(project: Path):
    """The stage after a gate waits for its report, so `dvc repro` stops there as the DAG does."""
    nodes = graph(project)
    for n, node in enumerate(nodes):
        if node.cmd.startswith("python -m tasks validate"):
            report = f"reports/validation/{node.cmd.split()[-1]}.json"
            assert report in node.outs and report in nodes[n + 1].deps


def test_an_output_that_the_version_is_older_than_is_left_out_where_it_is_published():
    """Else `dvc pull` of a model that was published on that version would fail, for nothing says what the output is."""
    content = Path("dvc.yaml").read_bytes()
    stages = [stage for stage in yaml.safe_load(content)["stages"] if stage != "embed"]
    outs = {"ingest": ["data/images", "data/dropped/ingest"]}
    lock = {"stages": {s: {"outs": [{"path": p} for p in outs.get(s, [])]} for s in outs} | {"embed@semantic": {}}}
    found = yaml.safe_load(without_unlocked_outputs(content, yaml.safe_dump(lock).encode()))["stages"]
    assert [next(iter(out)) for out in found["ingest"]["outs"]] == outs["ingest"]
    assert all(found[stage] == yaml.safe_load(content)["stages"][stage] for stage in stages if stage != "ingest")
    lock["stages"]["ingest"]["outs"].append({"path": "data/shards"})
    assert without_unlocked_outputs(content, yaml.safe_dump(lock).encode()) == content
