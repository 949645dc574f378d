"""The house's rule: a file imports only from floors below its own (docs: README, Layout)."""

import ast
import subprocess
import sys
from pathlib import Path

from tasks.__main__ import STAGES

PURE = {"errors", "config", "records", "store", "slug", "batch"}


def imports_of(path: Path) -> set[str]:
    """All modules that a file imports, at any depth of the code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def test_tasks_never_import_airflow(project: Path):
    guilty = {
        str(p): m for p in (project / "tasks").rglob("*.py") for m in imports_of(p) if m.split(".")[0] == "airflow"
    }
    assert guilty == {}


def test_stages_do_not_import_stages(project: Path):
    stages = {f"tasks.{s}" for s in [*STAGES, "open_run"]}
    for stage in stages:
        path = project / (stage.replace(".", "/") + ".py")
        if not path.exists():
            path = path.with_suffix("") / "__init__.py"
        assert imports_of(path) & (stages - {stage}) == set(), f"{stage} imports another stage"


def test_the_ground_floor_imports_nothing_above(project: Path):
    for name in PURE:
        mine = {m for m in imports_of(project / "tasks" / f"{name}.py") if m.startswith("tasks.")}
        assert {m.split(".")[1] for m in mine} <= PURE, f"tasks/{name}.py imports {mine}"


def test_config_loads_neither_numpy_nor_torch():
    code = "import tasks.config, sys; print([m for m in ('numpy', 'torch', 'pyarrow') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_dags_and_plugins_import_no_stage_and_no_model(project: Path):
    """The seam: a stage is a command, never an import."""
    forbidden = set(STAGES) | {"open_run", "models", "sample", "demo"}
    for folder in ("dags", "plugins"):
        for path in (project / folder).rglob("*.py"):
            mine = {m.split(".")[1] for m in imports_of(path) if m.startswith("tasks.")}
            assert mine & forbidden == set(), f"{path.relative_to(project)} imports tasks.{mine & forbidden}"


def test_what_dags_and_plugins_import_is_light(project: Path):
    """DAG files parse in milliseconds: neither numpy nor torch behind them."""
    wanted = set()
    for folder in ("dags", "plugins"):
        for path in (project / folder).rglob("*.py"):
            wanted |= {".".join(m.split(".")[:2]) for m in imports_of(path) if m.startswith("tasks.")}
    code = f"import importlib, sys; [importlib.import_module(m) for m in {sorted(wanted)}]; print([m for m in ('numpy', 'torch', 'dvc') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
