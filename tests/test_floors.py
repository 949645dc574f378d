"""What the import contracts of `make lint` cannot say: light imports, short files and stages, docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GROUND = {
    "__init__",
    "__main__",
    "commands",
    "devices",
    "errors",
    "locks",
    "meter",
    "names",
    "parts",
    "progress",
    "reasons",
    "records",
    "usage",
}
STAGES = (
    "ingest",
    "embed",
    "mine",
    "select",
    "caption",
    "judge",
    "validate",
    "publish",
    "train",
    "evaluate",
    "promote",
)
MAX_FILE_LINES, MAX_RUN_LINES = 400, 40
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def source_files(*folders: str) -> list[Path]:
    """The Python files below these folders, the sample world aside."""
    return [
        p for folder in folders for p in sorted(Path(folder).rglob("*.py")) if Path("tasks/sample") not in p.parents
    ]


def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> set[str]:
    """Modules that a file imports, at any depth of its code."""
    modules = set()
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            modules |= {package} | {f"{package}.{alias.name}" for alias in node.names}
    return modules


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods with their dotted names, but for a protocol's bare signatures."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_") and ast.unparse(node.body) != "...":
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def loaded_after(modules: list[str], heavy: tuple[str, ...]) -> list[str]:
    """Which of the heavy modules a fresh interpreter has loaded after importing these."""
    code = f"import {', '.join(['sys', *modules])}; print(*[m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ended.stdout.split()


def test_importing_the_configuration_loads_neither_numpy_nor_torch():
    assert loaded_after(["tasks.config"], ("numpy", "torch", "pyarrow")) == []


def test_dags_and_plugins_parse_without_numpy_torch_or_dvc():
    """Airflow parses DAG files every few seconds, in every worker."""
    imported = {m for path in source_files("dags", "plugins") for m in imported_modules(path)}
    modules = sorted(
        {m for m in imported if m.startswith("tasks.") and Path(*m.split(".")).with_suffix(".py").exists()}
    )
    assert modules
    assert loaded_after(modules, ("numpy", "torch", "dvc", "pyarrow")) == []


def test_only_the_ground_floor_lies_directly_in_tasks():
    assert {path.stem for path in Path("tasks").glob("*.py")} == GROUND


def test_no_file_is_longer_than_the_limit():
    lengths = {
        str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in source_files("tasks", "plugins")
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_run_is_read_without_scrolling(stage: str):
    lengths = {
        f"{path}: {name}": node.end_lineno - node.lineno + 1
        for path in source_files(f"tasks/{stage}")
        for name, node in public_definitions(syntax_tree(path).body)
        if name == "run" and node.end_lineno is not None
    }
    assert lengths, "a stage has a function run()"
    assert {name: lines for name, lines in lengths.items() if lines > MAX_RUN_LINES} == {}


def test_what_is_public_has_a_docstring():
    missing = [
        f"{path}:{node.lineno} {name}"
        for path in source_files("tasks", "plugins")
        for name, node in public_definitions(syntax_tree(path).body)
        if ast.get_docstring(node) is None
    ]
    assert missing == []


def test_no_test_module_imports_another():
    """What several tests share lies in tests/support or in a conftest."""
    importing = {str(p): [m for m in imported_modules(p) if ".test_" in m] for p in source_files("tests")}
    assert {path: modules for path, modules in importing.items() if modules} == {}
