"""The trigger form: typed Airflow Params, made from params.yaml, the profiles and the descriptions in tasks/config.

A field left empty means "as in params.yaml and the chosen profile"; only what a person fills in reaches open_run. The
form shows the values worth changing for one run; the REST API may set any other by its section, for example
{"limit": 60, "caption": {"batch_pairs": 8}}. open_run refuses an unknown name within seconds.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Param

from megapairs.wiring import PROJECT, dag_id_for, dataset_variables
from tasks.config import Params, is_profile, overlay, parse_raw, read_raw, uncalibrated_windows
from tasks.config.form_names import DATASET_FORM, FIELD_KEYS, MODEL_FORM
from tasks.errors import TasksError
from tasks.publish.git import git_bytes

# Sections whose fields are folded under a heading of the form; all other fields are at the top.
HEADINGS = {
    "mine": "Mining",
    "select": "Mining",
    "caption": "Instructions and judge",
    "judge": "Instructions and judge",
    "validate": "Gates",
    "train": "Training",
    "evaluate": "Evaluation and promotion",
    "promote": "Evaluation and promotion",
}
# What a field's description says besides: an example, or what the value does in this DAG.
EXAMPLES = {
    "sources": ' Example: [{"name": "shop", "path": "/data/shop", "license_code": "CC0-1.0", "attribution": "Shop"}]. '
    "Required: name and path (a folder, tars, tables of URLs, s3://bucket/prefix). Optional: license_code, "
    "attribution, columns, encoding, kind, endpoint_url, region, contact; docs/images-and-models.md says what each is.",
    "renew": ' Example: {"caption": {"where": "made_before=2026-11-01", "budget": 2000}}. Stages: recaption, caption, '
    "judge; docs/operations.md says what a condition may be.",
    "window_semantic": ' Example: {"low": 0.8, "high": 0.96}.',
    "window_pattern": ' Example: {"low": 0.6, "high": 0.96}.',
    "window_caption": ' Example: {"low": 0.8, "high": 0.96}.',
    "dataset": " Only the name of this deployment is taken: another dataset is a deployment of its own.",
}
FIELDS_OF_OPEN_RUN = ("judge_threshold",)  # passed on by their own name
MODEL_DRY_RUN = "Train and evaluate, but promote nothing: no model is published, the promoted one stays."
# What a text box for a number takes.
NUMBER_PATTERNS = {"integer": r"^-?[0-9]+$", "number": r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"}
# Keywords of a JSON schema that a field takes over, so that Airflow checks the value before the run starts.
SCHEMA_KEYWORDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "pattern",
    "minLength",
    "enum",
    "properties",
    "required",
    "additionalProperties",
    "items",
)


def inline_references(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with every $ref replaced by the definition that it names."""
    if isinstance(schema, list):
        return [inline_references(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inlined = {key: inline_references(value, definitions) for key, value in schema.items() if key != "$ref"}
    if "$ref" not in schema:
        return inlined
    return {**inline_references(definitions[schema["$ref"].rpartition("/")[2]], definitions), **inlined}


@functools.cache
def params_schema() -> dict[str, Any]:
    """JSON schema of all parameters, references inlined."""
    schema = Params.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs")
    inlined: dict[str, Any] = inline_references(schema, definitions)
    return inlined


def schema_at(key: str) -> dict[str, Any]:
    """JSON schema of a parameter with its description; of a parameter that may be empty, that of its value.

    Args:
        key: dotted, e.g. mine.neighbours or mine.windows.semantic.
    Raises:
        KeyError: no such parameter.
    """
    schema = params_schema()
    for name in key.split("."):
        entries = schema.get("additionalProperties")  # of a mapping by name; False where unknown keys are refused
        schema = schema["properties"][name] if name in schema.get("properties", {}) or not entries else entries
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    return {**schema, **(kinds[0] if kinds else {})}


def default_at(raw: Mapping[str, Any], key: str) -> Any:
    """The value that params.yaml gives a dotted key; None where it gives none."""
    value: Any = raw
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def default_text(value: Any, empty: str) -> str:
    """A default value as the form shows it; `empty` is what an empty one means."""
    if value in (None, "", [], {}):
        return empty or "empty"
    if isinstance(value, list):
        return ", ".join(str(entry.get("name", entry)) if isinstance(entry, dict) else str(entry) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)


def number_pattern(schema: Mapping[str, Any]) -> str:
    """What a number's text box takes, as a regular expression; open_run checks the upper limits."""
    if schema["type"] == "integer" and schema.get("minimum", 0) >= 1:
        return r"^[1-9][0-9]*$"
    pattern = NUMBER_PATTERNS[schema["type"]]
    return pattern.replace("-?", "") if schema.get("minimum", -1) >= 0 or "exclusiveMinimum" in schema else pattern


def parse_number(key: str, value: Any) -> Any:
    """The number that a text box holds; anything else as it is, for open_run to check.

    Args:
        key: dotted key of the parameter.
        value: as the form or the REST API gives it.
    """
    kind = schema_at(key)["type"]
    if not isinstance(value, str) or not re.match(NUMBER_PATTERNS.get(kind, "(?!)"), value):
        return value
    return int(value) if kind == "integer" else float(value)


def form_field(name: str, key: str, raw: Mapping[str, Any]) -> Param:
    """One field of the form: empty, with the parameter's description, type, limits and default.

    A yes/no field is a checkbox, which cannot be empty: it shows the default.

    Args:
        name: of the field.
        key: dotted key of its parameter.
        raw: params.yaml.
    """
    schema, value, section, last = schema_at(key), default_at(raw, key), key.split(".")[0], key.split(".")[-1]
    # In params.yaml an empty value has a meaning, which the description ends with; here it means: no change.
    description, _, empty = schema["description"].partition(" Empty: ")
    if key.startswith("mine.windows."):
        description = f"Window of encoder {last}: pairs with low <= cosine similarity < high are candidates."
    description += EXAMPLES.get(name, "")
    heading = {"section": HEADINGS[section]} if section in HEADINGS else {}
    if schema["type"] == "boolean":
        return Param(bool(value), type="boolean", title=name, description=description, **heading)
    kinds, limits = ["null", schema["type"]], {key: limit for key, limit in schema.items() if key in SCHEMA_KEYWORDS}
    if schema["type"] in NUMBER_PATTERNS:
        # a text box: Airflow's number box silently turns 0 into the smallest value and 1e9 into an empty field
        kinds = ["null", "string", schema["type"]]
        limits["pattern"] = number_pattern(schema)
        # with examples a field of several types is one line with a suggestion, without them a box of six lines
        limits["examples"] = [str(schema.get("minimum", 1) if value is None else value)]
    return Param(
        None,
        type=kinds,
        title=name,
        description=f"{description} Left empty: as the profile says, else {default_text(value, empty[:-1])} ({key}).",
        **heading,
        **limits,
    )


def profile_help(profiles: Sequence[str]) -> str:
    """What each profile is for: the first sentence of its file's first comment."""
    sentences = []
    for profile in profiles:
        path = PROJECT / "tasks" / "profiles" / f"{profile}.yaml"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        words = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
        if words:
            sentences.append(f"{profile}: {words.partition('. ')[0].removesuffix('.')}.")
    return " ".join(sentences)


def profile_field(raw: Mapping[str, Any]) -> Param:
    """The choice of profile; scheduled runs use its preset."""
    profiles = sorted(raw["profiles"])
    guessed = [profile for profile in profiles if uncalibrated_windows(raw, profile)]
    warning = f" Windows not calibrated: {', '.join(guessed)}." if guessed else ""
    return Param(
        os.environ.get("MEGAPAIRS_DEFAULT_PROFILE") or raw["profile"],
        type="string",
        enum=profiles,
        title="profile",
        description=f"Named set of values, applied before the fields of this form. {profile_help(profiles)}{warning}",
    )


def deployed_params(dataset: str) -> dict[str, Any]:
    """params.yaml, with its profiles, that the runs of a dataset start from: of the deployed commit, else of the code's
    folder. One git process: every task of Airflow parses its DAG file.

    Args:
        dataset: of MEGAPAIRS_DATASETS; '' for the one of MEGAPAIRS_DATASET.
    """
    variables = {**os.environ, **dataset_variables(dag_id_for("", dataset) if dataset else "")}
    clone, ref = Path(variables.get("MEGAPAIRS_DATASET") or "/"), variables.get("MEGAPAIRS_DEPLOYED", "origin/main")
    if (clone / ".git").exists():
        with contextlib.suppress(TasksError, OSError, KeyError, tarfile.TarError):
            packed = git_bytes(clone, "archive", "--format=tar", ref, "params.yaml", "tasks/profiles")
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                texts = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
                contents = {name: file.read() for name, file in texts.items() if file is not None}
            profiles = {name: text for name, text in contents.items() if is_profile(name)}
            return parse_raw(contents["params.yaml"], profiles, "params.yaml")
    return read_raw(PROJECT / "params.yaml")


def dataset_params(dataset: str = "") -> dict[str, Param]:
    """The trigger form of dataset_refresh."""
    raw = deployed_params(dataset)
    fields = {name: form_field(name, key, raw) for name, key in DATASET_FORM.items()}
    return {"profile": profile_field(raw), **fields}


def model_params(dataset: str = "") -> dict[str, Param]:
    """The trigger form of bge_vl_finetune."""
    raw = deployed_params(dataset)
    version = Param(
        None,
        type=["null", "string"],
        pattern=r"^dataset/\d{4}\.\d{2}\.\d{2}(\.\d+)?$",
        title="dataset_version",
        description="Version to train on: its tag, dataset/YYYY.MM.DD[.n]. Left empty: the version whose publication "
        "started this run, else the newest.",
    )
    fields = {name: form_field(name, key, raw) for name, key in MODEL_FORM.items()}
    fields["dry_run"] = Param(
        bool(default_at(raw, "open_run.dry_run")), type="boolean", title="dry_run", description=MODEL_DRY_RUN
    )
    return {"profile": profile_field(raw), "dataset_version": version, **fields}


def changes_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run changes, in the form of params.yaml: {"profile": ..., "<section>": {...}}.

    Args:
        values: by name of a form's field, by section of params.yaml, or by dotted key.
    Returns:
        The values at their keys, without the fields left empty. Unknown names are kept, for open_run to refuse.
    """
    changes: dict[str, Any] = {}
    for name, value in values.items():
        is_empty = value is None or value is False or value in ("", [], {})
        if name == "dataset_version" or (is_empty and name in (*FIELD_KEYS, "profile")):
            continue
        change: Any = parse_number(FIELD_KEYS[name], value) if name in FIELD_KEYS else value
        # what a field stands for besides its parameter is open_run's matter (tasks/publish/run_conf.py)
        key = name if name in FIELDS_OF_OPEN_RUN else FIELD_KEYS.get(name, name)
        for part in reversed(key.split(".")):
            change = {part: change}
        changes = overlay(changes, change)
    return changes
