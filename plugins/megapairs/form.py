"""The trigger form: typed Airflow Params made from params.yaml and the descriptions in tasks/config.py.

A field left empty means "as in params.yaml and the chosen profile"; only what a person fills in travels to open_run.
The form shows the values worth changing for one run; the REST API may set any other by its section, for example
{"limit": 60, "caption": {"batch_pairs": 8}}. An unknown name is refused by open_run within seconds.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param

from megapairs.wiring import PROJECT
from tasks.config import Params, overlay, read_raw

# Form name -> place in params.yaml.
DATASET_FORM: dict[str, str] = {
    "sources": "ingest.sources",
    "limit": "open_run.limit",
    "dry_run": "open_run.dry_run",
    "date": "open_run.date",
    "neighbours": "mine.neighbours",
    "window_semantic": "mine.windows.semantic",
    "window_pattern": "mine.windows.pattern",
    "window_caption": "mine.windows.caption",
    "pairs_per_query": "select.pairs_per_query",
    "pairs_per_batch": "select.pairs_per_batch",
    "negatives": "select.negatives",
    "instructions_min": "caption.instructions_min",
    "judge_threshold": "judge.threshold",
}
MODEL_FORM: dict[str, str] = {
    "base_model": "train.base_model",
    "steps": "train.steps",
    "batch_triplets": "train.batch_triplets",
    "learning_rate": "train.learning_rate",
    "benchmark": "evaluate.benchmark",
    "min_gain": "promote.min_gain",
    "dry_run": "open_run.dry_run",
    "date": "open_run.date",
}
# Sections of params.yaml that stand folded in the form, under a heading; all else stands open at the top.
HEADINGS = {
    "mine": "Mining",
    "select": "Mining",
    "caption": "Instructions and judge",
    "judge": "Instructions and judge",
    "train": "Training",
    "evaluate": "Evaluation and promotion",
    "promote": "Evaluation and promotion",
}
PLACES = {**DATASET_FORM, **MODEL_FORM}
KEPT = (
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


def inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The JSON schema with every $ref replaced by what it names."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            named = inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
            return {**named, **{k: v for k, v in schema.items() if k != "$ref"}}
        return {k: inlined(v, definitions) for k, v in schema.items()}
    return [inlined(x, definitions) for x in schema] if isinstance(schema, list) else schema


@functools.cache
def full_schema() -> dict[str, Any]:
    """JSON schema of the whole of params.yaml, references inlined."""
    full = Params.model_json_schema(by_alias=True)
    inlined_schema: dict[str, Any] = inlined({k: v for k, v in full.items() if k != "$defs"}, full["$defs"])
    return inlined_schema


def schema_at(place: str) -> dict[str, Any]:
    """JSON schema of a dotted place in params.yaml, with its description; `nullable` parts are folded into `type`.

    Raises:
        KeyError: no such parameter.
    """
    schema = full_schema()
    for name in place.split("."):
        more = schema.get("additionalProperties")  # a mapping by encoder; False where unknown keys are refused
        schema = schema["properties"][name] if name in schema.get("properties", {}) or not more else more
    kinds = [s for s in schema.get("anyOf", []) if s.get("type") != "null"]
    return {**schema, **(kinds[0] if kinds else {})}


def value_at(raw: Mapping[str, Any], place: str) -> Any:
    """The default that params.yaml gives a dotted place (None when it gives none)."""
    value: Any = raw
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def param_of(name: str, place: str, raw: Mapping[str, Any]) -> Param:
    """One field of the form: empty by default, with the parameter's sentence, type, limits and present value."""
    schema, value = schema_at(place), value_at(raw, place)
    sentence = (
        schema.get("description")
        or f"Cosine window of the encoder '{place.rpartition('.')[2]}': pairs with low <= similarity < high."
    )
    heading = {"section": HEADINGS[place.split(".")[0]]} if place.split(".")[0] in HEADINGS else {}
    shown = "empty" if value in (None, "", [], {}) else value
    if isinstance(value, list):
        shown = ", ".join(str(v.get("name", v)) if isinstance(v, dict) else str(v) for v in value) or "empty"
    if schema["type"] == "boolean":  # a checkbox cannot be left empty
        return Param(bool(value), type="boolean", title=name, description=sentence, **heading)
    return Param(
        None,
        type=["null", schema["type"]],
        title=name,
        description=f"{sentence} Empty: as in params.yaml ({place}: {shown}) and the profile.",
        **heading,
        **{k: v for k, v in schema.items() if k in KEPT},
    )


def profile_param(raw: Mapping[str, Any]) -> Param:
    """The choice of profile; it also serves scheduled runs."""
    chosen = os.environ.get("MEGAPAIRS_DEFAULT_PROFILE") or raw.get("profile", "demo")
    return Param(
        chosen,
        type="string",
        enum=sorted(raw.get("profiles", {})),
        title="profile",
        description="Named set of values in params.yaml, laid over its defaults before the fields below.",
    )


def dataset_params() -> dict[str, Param]:
    """The trigger form of dataset_refresh."""
    raw = read_raw(PROJECT / "params.yaml")
    return {"profile": profile_param(raw), **{name: param_of(name, place, raw) for name, place in DATASET_FORM.items()}}


def model_params() -> dict[str, Param]:
    """The trigger form of bge_vl_finetune."""
    raw = read_raw(PROJECT / "params.yaml")
    version = Param(
        None,
        type=["null", "string"],
        pattern=r"^dataset/\d{4}\.\d{2}\.\d{2}(\.\d+)?$",
        title="dataset_version",
        description="Tag of the version to train on, dataset/YYYY.MM.DD[.n]. Empty: the event's, else the newest.",
    )
    return {
        "profile": profile_param(raw),
        "dataset_version": version,
        **{name: param_of(name, place, raw) for name, place in MODEL_FORM.items()},
    }


def changes_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run changes, in the form of params.yaml: {"profile": ..., "<section>": {...}}.

    Args:
        given: the form's values by form name, or any section of params.yaml by its own name, or a dotted place.
    Returns:
        The non-empty values at their places. Unknown names are kept as they are, for open_run to refuse.
    """
    changes: dict[str, Any] = {}
    for name, value in given.items():
        is_empty = value is None or value is False or value in ("", [], {})
        if name == "dataset_version" or (is_empty and name in (*PLACES, "profile")):
            continue
        place = PLACES.get(name, name)
        nested: Any = value
        for key in reversed(place.split(".")):
            nested = {key: nested}
        changes = overlay(changes, nested)
    return changes
