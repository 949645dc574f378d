"""What pages quote is there: files, commands, make targets, parameters, decisions, error texts."""

import ast
import builtins
import functools
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tasks.__main__ import COMMANDS
from tasks.config import Params

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"]
    + [p for p in (PROJECT / "docs").rglob("*.md") if p.parent.name != "reference"]
)
DESCRIBES_OLD_SPELLINGS = "0052-one-command-line.md"
EXAMPLES = {"tasks/profiles/mine.yaml", "docs/decisions/NNNN-title.md"}  # files that a reader makes
GONE = {"0054-one-package-for-parameters.md": {"tasks/config.py"}}  # files whose end a decision tells
FOLDERS = ("tasks", "docs", "tests", "plugins", "dags", "benchmarks", "expectations")
UNMAPPED = {"tasks/config/", "tasks/old_names/"}  # not between in and out
LIBRARY = {
    "ndarray",
    "partial",
    "replace",
    "Image",
    "Path",
    "Sequence",
    "Iterator",
}  # of numpy, Pillow, the standard library
ERRORS = {
    "ValueError",
    "ConfigError",
    "DataError",
    "TransientError",
    "NothingToDo",
    "AirflowFailException",
    "DemoFailed",
}


def page_name(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def inline_code(text: str) -> list[str]:
    """Inline code of a page, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def quoted_paths(text: str) -> list[str]:
    """Paths of the repository that a page quotes, in code or in prose; those with a placeholder are left out."""
    paths = re.findall(rf"(?<![\w/.~$-])((?:{'|'.join(FOLDERS)})/[\w./<>*{{}},-]*)", text)
    return [path.rstrip(".,-") for path in paths if not re.search(r"[<>*{}]", path)]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_quoted_files_exist(page: Path):
    text = page.read_text()
    excused = EXAMPLES | GONE.get(page.name, set())
    missing = [p for p in quoted_paths(text) if not (PROJECT / p).exists() and p not in excused]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_quoted_commands_are_known(page: Path):
    text = page.read_text()
    commands = set(re.findall(r"python -m tasks ([a-z_]+)", text))
    assert commands <= set(COMMANDS), sorted(commands - set(COMMANDS))
    modules = set(re.findall(r"python -m ((?:tasks|benchmarks)\.[a-z_.]+[a-z])", text))
    if page.name != DESCRIBES_OLD_SPELLINGS:
        missing = [m for m in modules if not (PROJECT / (m.replace(".", "/") + ".py")).exists()]
        assert missing == []
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M))
    quoted = {m for code in inline_code(text) for m in re.findall(r"^make ([a-z][a-z-]*)$", code)}
    assert quoted <= targets, sorted(quoted - targets)


@pytest.mark.parametrize("page", [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"], ids=page_name)
def test_links_of_the_front_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert len(links) > 5
    missing = [link for link in links if "://" not in link and not (PROJECT / link).exists()]
    assert missing == []


def test_the_walk_through_the_code_names_what_is_there():
    page = (PROJECT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(tasks/\S+\.py)` \| `(\w+)` \|", page, re.M)
    assert len(rows) >= 8
    missing = []
    for path, name in rows:
        definitions = ast.walk(ast.parse((PROJECT / path).read_text()))
        if not any(isinstance(d, ast.FunctionDef | ast.ClassDef) and d.name == name for d in definitions):
            missing.append((path, name))
    assert missing == []


def test_the_map_names_files_of_their_folders():
    page = (PROJECT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(tasks/\w+/)` \|.*\|(.*)\|$", page, re.M)
    assert {row[0] for row in rows} == {
        f"tasks/{p.parent.name}/" for p in (PROJECT / "tasks").glob("[a-z]*/__init__.py")
    } - UNMAPPED
    missing = []
    for folder, names in rows:
        known = {path.name for path in (PROJECT / folder).rglob("*.py")}
        missing += [folder + name for name in re.findall(r"`(\w+\.py)`", names) if name not in known]
    assert missing == []


@functools.cache
def defined_names() -> set[str]:
    """Every function, class and top-level constant of the code."""
    names: set[str] = set()
    for path in (PROJECT / "tasks").rglob("*.py"):
        tree = ast.parse(path.read_text())
        names |= {d.name for d in ast.walk(tree) if isinstance(d, ast.FunctionDef | ast.ClassDef)}
        names |= {t.id for d in tree.body if isinstance(d, ast.Assign) for t in d.targets if isinstance(t, ast.Name)}
    return names


@pytest.mark.parametrize("page", sorted((PROJECT / "docs" / "how-to").glob("*.md")), ids=page_name)
def test_code_sketches_use_what_the_code_defines(page: Path):
    known = defined_names() | LIBRARY | set(vars(builtins)) | set(typing.__all__)
    unknown = set()
    for sketch in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
        for node in ast.walk(ast.parse(sketch)):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            if isinstance(node, ast.Name) and node.id[0].isupper():
                name = node.id
            if name and "my" not in name.lower() and name not in known:
                unknown.add(name)
    assert unknown == set()


def test_the_readme_is_short():
    text = (PROJECT / "README.md").read_text()
    assert len(text.split()) <= 1500
    prose = re.sub(r"^```.*?^```|^\|.*$|^#.*$|^- .*$", "", text, flags=re.M | re.S)
    prose = re.sub(r"!\[[^]]*\]\([^)]*\)", "", prose)
    sentences = re.split(r"(?<=[.:])\s+", re.sub(r"\]\([^)]*\)", "]", prose))
    long = [s for s in sentences if len(s.split()) >= 25]
    assert long == []


def test_every_decision_is_listed_by_topic():
    folder = PROJECT / "docs" / "decisions"
    index = (folder / "index.md").read_text()
    missing = [path.name for path in sorted(folder.glob("0*.md")) if f"]({path.name})" not in index]
    assert missing == []


# --- the parameters' reference ----------------------------------------------------------------------------------------


def leaf_keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the leaves of params.yaml; a list is a leaf."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """The section and every section that its fields mention."""
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            pending = [field.annotation]
            while pending:
                annotation = pending.pop()
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    models(annotation, seen)
                pending += getattr(annotation, "__args__", ())
    return seen


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated pages."""
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, PROJECT / "docs" / "generate.py", "--out", folder], check=True)
    return folder


def test_every_parameter_is_in_the_reference(reference: Path):
    page = (reference / "parameters.md").read_text()
    entries = dict(re.findall(r"^`([^`]+)`\n: (.+)$", page, re.M))
    for key in leaf_keys(yaml.safe_load((PROJECT / "params.yaml").read_text())):
        parents = [key.rsplit(".", n)[0] for n in range(key.count(".") + 1)]
        assert any(parent in entries for parent in parents), key
        assert key.rsplit(".", 1)[-1] in page, key
    for model in models(Params, set()):
        for name, field in model.model_fields.items():
            if field.description:
                assert any(text.startswith(field.description) for text in entries.values()), f"{model.__name__}.{name}"
    assert all(description.strip() not in ("", "None") for description in entries.values())


def test_every_command_is_in_the_reference(reference: Path):
    page = (reference / "commands.md").read_text()
    assert re.findall(r"^### (\S+)$", page, re.M) == list(COMMANDS)
    assert page.count("usage: python -m tasks ") == len(COMMANDS)


# --- troubleshooting --------------------------------------------------------------------------------------------------


def text_of(node: ast.expr) -> str:
    """The text of a string expression, '…' where a value stands."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "…"


def error_texts() -> list[str]:
    """Every string of the modules that raise errors; '…' where a value stands."""
    texts = []
    for folder in ("tasks", "plugins"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            if names & ERRORS:
                texts += [
                    text_of(node)
                    for node in ast.walk(tree)
                    if isinstance(node, (ast.JoinedStr, ast.Constant, ast.BinOp))
                ]
    return [text for text in texts if isinstance(text, str) and text.strip("… ")]


def occurs(quoted: str, texts: list[str]) -> bool:
    """Whether one error text of the code holds the quoted one; '…' in the quoted text stands for anything."""
    parts = [part for part in quoted.split("…") if part]
    for text in texts:
        position = 0
        for part in parts:
            position = text.find(part, position) + len(part)
            if position < len(part):
                break
        else:
            return True
    return False


def test_quoted_error_texts_are_those_of_the_code():
    page = (PROJECT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", page, re.M)
    assert len(quoted) >= 30
    texts = error_texts()
    unknown = [text for text in quoted if not occurs(re.sub(r"^\w+(?:Error|Failed): ", "", text), texts)]
    assert unknown == []
