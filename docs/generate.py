"""Write the generated pages of docs/reference; `make docs` runs it first.

    python docs/generate.py [--out FOLDER]

parameters.md, from tasks/config, params.yaml and the profiles: one heading per section of params.yaml, one entry
per key: the sentence that describes it, its type and limits, its value in params.yaml and in the profiles that set it
otherwise. commands.md: the manual of every command of
`python -m tasks`, as its --help prints it. Neither is committed: they cannot fall behind the code.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

PROJECT_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_ROOT))

from tasks.__main__ import COMMANDS  # noqa: E402 - the checkout is no installed package
from tasks.__main__ import main as run_tasks  # noqa: E402
from tasks.config import Params  # noqa: E402

REFERENCE = PROJECT_ROOT / "docs" / "reference"
MISSING = object()
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "pattern": "matches"}
INTRODUCTION = """# Parameters

<!-- Written by docs/generate.py; do not edit. -->

Every parameter of the factory: {count} of them, in the order of `params.yaml`, which holds the defaults.
A profile (`tasks/profiles/`) is laid over the defaults, then the values of the trigger form; `tasks/config/` checks
the result. An unknown key or a wrong value stops a run within seconds. Each entry states what the parameter means, its
type and limits, its value in `params.yaml` (or, where that file does not set it, the default of the code), and the
profiles that set another value. The profiles are {profiles}. A profile file may have one key more,
`uncalibrated_windows`: encoders whose window there is a guess, of which `open_run` warns.
"""
COMMANDS_INTRODUCTION = """# Commands

<!-- Written by docs/generate.py; do not edit. -->

Every command is `python -m tasks <command>`, in the order in which the factory works.
Exit codes: 65 wrong data, 78 a wrong parameter, 75 try again, 99 nothing to do.
With `--json` standard output holds one JSON object and nothing else.
"""


@dataclass(frozen=True)
class Parameter:
    """One leaf of params.yaml: dotted key, type in words, its value in params.yaml, values of profiles, description."""

    key: str
    type_text: str
    value: Any
    profile_values: dict[str, Any]
    description: str


def type_name(annotation: Any) -> str:
    """A type annotation in words: `int | None` -> 'int or null', a Literal -> its values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin is tuple:
        members = [argument for argument in arguments if argument is not Ellipsis]
        return (
            f"list of {type_name(members[0])}"
            if len(members) == 1
            else f"list of {len(members)} {type_name(members[0])}"
        )
    if origin is dict:
        return f"mapping to {type_name(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping (its keys follow)"
    names = {str: "text", bool: "true or false", int: "whole number", float: "number"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def limits(field: FieldInfo) -> str:
    """The field's numeric limits and pattern, in words."""
    found = []
    for constraint in field.metadata:
        for name, words in LIMITS.items():
            if (limit := getattr(constraint, name, None)) is not None:
                found.append(f"{words} `{limit}`")
    return ", ".join(found)


def member_model(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The section inside an annotation, and how its key goes on: '' for one, '.<name>' in a mapping, '[]' in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        model, suffix = member_model(arguments[1])
        return model, ".<name>" + suffix
    for argument in arguments:
        model, suffix = member_model(argument)
        if model:
            return model, ("[]" if origin is tuple else "") + suffix
    return None, ""


def value_at(values: Any, key: str) -> Any:
    """What a mapping holds at a dotted key, or MISSING."""
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return MISSING
        values = values[name]
    return values


def read_profiles() -> dict[str, dict[str, Any]]:
    """{profile: its values}."""
    return {
        path.stem: yaml.safe_load(path.read_text()) or {} for path in sorted(PROJECT_ROOT.glob("tasks/profiles/*.yaml"))
    }


def section_parameters(model: type[BaseModel], prefix: str, defaults: Any, profiles: Any) -> Iterator[Parameter]:
    """Every parameter of a section and of the sections inside it, in the order of the code."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner, suffix = member_model(field.annotation)
        value = value_at(defaults, key)
        of_profiles = {p: found for p, values in profiles.items() if (found := value_at(values, key)) is not MISSING}
        description = field.description or (inner.__doc__ or "").strip().split("\n")[0] if inner else field.description
        if value is MISSING and not field.is_required():
            description = f"{description} Default: {shown(field.get_default(call_default_factory=True))}."
        words = ", ".join(x for x in (type_name(field.annotation), limits(field)) if x)
        if inner is not field.annotation or inner is None:
            yield Parameter(key, words, value, of_profiles, str(description))
        if inner is not None:
            yield from section_parameters(inner, f"{key}{suffix}.", defaults, profiles)


def shown(value: Any) -> str:
    """A value as inline code."""
    if value is MISSING:
        return "not set"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, (tuple, set)):
        value = list(value)
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text}`"


def definition(parameter: Parameter) -> str:
    """One entry of the page: a definition list of MyST."""
    facts = [f"*Type:* {parameter.type_text}"]
    if parameter.value is not MISSING:
        facts.append(f"*params.yaml:* {shown(parameter.value)}")
    facts += [f"*{profile}:* {shown(value)}" for profile, value in parameter.profile_values.items()]
    return f"\n`{parameter.key}`\n: {parameter.description}\n\n  {' · '.join(facts)}\n"


def parameters_page() -> str:
    """The page of parameters, Markdown."""
    defaults, profiles = yaml.safe_load((PROJECT_ROOT / "params.yaml").read_text()), read_profiles()
    parts, count = [], 0
    for name, field in Params.model_fields.items():
        section = field.alias or name
        model, _ = member_model(field.annotation)
        rows = list(section_parameters(model, f"{section}.", defaults, profiles)) if model else []
        if not rows:
            value = defaults.get(section, MISSING)
            rows = [Parameter(section, type_name(field.annotation), value, {}, str(field.description))]
        count += len(rows)
        parts.append(f"\n## {section}\n")
        parts += [definition(row) for row in rows]
    names = ", ".join(f"`{name}`" for name in profiles)
    return INTRODUCTION.format(count=count, profiles=names) + "".join(parts)


def commands_page() -> str:
    """The page of commands, Markdown: each command's --help, by the groups of `python -m tasks --help`."""
    os.environ["COLUMNS"] = "110"
    parts, group = [COMMANDS_INTRODUCTION], ""
    for name, command in COMMANDS.items():
        if command.group != group:
            group = command.group
            parts.append(f"\n## {group}\n")
        manual = io.StringIO()
        with contextlib.redirect_stdout(manual), contextlib.suppress(SystemExit):
            run_tasks([name, "--help"])
        parts.append(f"\n### {name}\n\n{command.summary.capitalize()}.\n\n```text\n{manual.getvalue().strip()}\n```\n")
    return "".join(parts)


def main() -> None:
    """Write both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REFERENCE, help="where the pages go (default: docs/reference)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    (out / "parameters.md").write_text(parameters_page(), encoding="utf-8")
    (out / "commands.md").write_text(commands_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
