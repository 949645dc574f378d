"""The factory's graph as dvc.yaml states it: stages in order, their commands, inputs and outputs. Needs YAML only."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Node(NamedTuple):
    """One stage of dvc.yaml, foreach expanded."""

    name: str  # as DVC names it: embed@semantic
    cmd: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]


def _paths(entries: list[Any]) -> list[str]:
    return [next(iter(e)) if isinstance(e, dict) else e for e in entries]


def _lookup(params: dict[str, Any], dotted: str) -> Any:
    value: Any = params
    for key in dotted.split("."):
        value = value[key]
    return value


def graph(root: Path | str = ".") -> list[Node]:
    """All stages below `root`, in dvc.yaml's order, foreach expanded with params.yaml as DVC does it."""
    root = Path(root)
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((root / "params.yaml").read_text())
    nodes = []
    for name, entry in stages.items():
        if "foreach" in entry:
            items = _lookup(params, re.fullmatch(r"\$\{(.+)\}", entry["foreach"])[1])  # type: ignore[index]
            expanded = [(f"{name}@{key}", entry["do"], str(key)) for key in items]
        else:
            expanded = [(name, entry, "")]
        for full, stage, key in expanded:
            fill = lambda text, key=key: text.replace("${key}", key)  # noqa: E731
            deps = tuple(fill(d) for d in _paths(stage.get("deps", [])))
            outs = tuple(fill(o) for o in _paths(stage.get("outs", []) + stage.get("metrics", [])))
            nodes.append(Node(full, fill(stage["cmd"]), deps, outs))
    return nodes


def without_unlocked_outputs(graph_yaml: bytes, lock: bytes) -> bytes:
    """dvc.yaml without those outputs that a stage of dvc.lock has not made; as it is where there is none.

    A model may be published on a version that is older than an output: `dvc pull` of that commit would fail.

    Args:
        graph_yaml: content of dvc.yaml.
        lock: content of dvc.lock.
    """
    entries = yaml.safe_load(graph_yaml)
    made: dict[str, set[str]] = {}
    for name, stage in (yaml.safe_load(lock)["stages"] or {}).items():
        made.setdefault(name.partition("@")[0], set()).update(out["path"] for out in stage.get("outs", ()))
    missing = False
    for name, entry in entries["stages"].items():
        if name not in made or "foreach" in entry:
            continue
        outs = [
            out
            for out, path in zip(entry.get("outs", []), _paths(entry.get("outs", [])), strict=True)
            if path in made[name]
        ]
        missing |= len(outs) < len(entry.get("outs", []))
        entry["outs"] = outs
    return yaml.safe_dump(entries, sort_keys=False).encode() if missing else graph_yaml


def make_output_folders(root: Path, stages: Collection[str]) -> None:
    """Make every folder that dvc.yaml names as an output of these stages: one that wrote no row has made none.

    DVC takes a missing output for a failure of the stage, and says nothing of the rows.

    Args:
        root: the run's worktree.
        stages: names as in dvc.yaml; of a foreach stage with or without its item.
    """
    for node in graph(root):
        if node.name in stages or node.name.partition("@")[0] in stages:
            for out in node.outs:
                if not Path(out).suffix:
                    (root / out).mkdir(parents=True, exist_ok=True)
