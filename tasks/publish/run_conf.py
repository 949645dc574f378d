"""Read the trigger form's values (conf), check them, and make the paths in them absolute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tasks.config import OpenRunConfig, Params, expand_sources, model_type_contradictions, overlay
from tasks.config.form_names import FIELD_KEYS, did_you_mean
from tasks.errors import ConfigError
from tasks.models.hub import known_model_type
from tasks.models.retrievers.onnx_export import require_onnx
from tasks.models.retrievers.published.bge_vl_prompts import FAMILIES

Kind = Literal["dataset", "model"]
PLAIN_NAMES = tuple(sorted(OpenRunConfig.model_fields))  # the form names parameters of section open_run without it


def nested_change(dotted: str, value: Any) -> dict[str, Any]:
    """'mine.neighbours', 5 -> {"mine": {"neighbours": 5}}."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def change_from_entry(key: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of the form as a change to params.yaml; {} for an empty value.

    Raises:
        ConfigError: a name that is neither a section, a dotted parameter nor one of the plain names.
    """
    sections = sorted(set(raw) - {"profiles", "profile"})
    if key == "sources":
        known = (raw.get("ingest") or {}).get("sources") or []
        return nested_change("ingest.sources", expand_sources(value, known)) if value else {}
    if key in PLAIN_NAMES:
        return {} if value is None else {"open_run": {key: value}}
    if "." in key:
        return {} if value is None else nested_change(key, value)
    if key in FIELD_KEYS:
        return {} if value in (None, "") else nested_change(FIELD_KEYS[key], value)
    if key not in sections:
        plain = ["profile", "sources", *PLAIN_NAMES]
        form, meant = sorted(set(FIELD_KEYS) - set(plain)), did_you_mean(key, [*plain, *FIELD_KEYS, *sections])
        raise ConfigError(
            f"conf: unknown key '{key}'; known: {plain}, the form's {form}, sections {sections}, or dotted names such "
            f"as 'mine.neighbours'{meant}"
        )
    if not isinstance(value, dict):
        raise ConfigError(
            f"conf: '{key}' is a section; expected a mapping or a dotted name such as '{key}.<parameter>', "
            f"found {value!r}"
        )
    return {key: value}


def changes_from_conf(conf: Mapping[str, Any], raw: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The profile that the form names (None: params.yaml's own), and its values as changes to params.yaml.

    Args:
        conf: the form's values.
        raw: params.yaml.
    Raises:
        ConfigError: as of `change_from_entry`.
    """
    changes: dict[str, Any] = {}
    for key, value in conf.items():
        if key != "profile":
            changes = overlay(changes, change_from_entry(key, value, raw))
    return conf.get("profile") or None, changes


def gate_follows_threshold(
    conf: Mapping[str, Any], changes: dict[str, Any], own: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Let the triplets' gate follow the form's field judge_threshold, where it is lower than the gate's own number.

    The form has no field for the gate, and without this the run would be refused as one that contradicts itself.

    Args:
        conf: the form's values.
        changes: of `changes_from_conf`.
        own: the parameters without the run's own values, resolved.
    Returns:
        The changes, and a sentence that says so; nothing where the run states the gate's number itself.
    """
    stated = ((changes.get("validate") or {}).get("triplets") or {}).get("yes_min")
    known = own["validate"]["triplets"]["yes_min"]
    value = conf.get("judge_threshold")
    try:
        threshold = float("nan" if value in (None, "") else value)
    except (TypeError, ValueError):
        return changes, []  # the check of the parameters names it
    if stated is not None or not threshold < known:
        return changes, []
    sentence = (
        f"validate.triplets.yes_min: {threshold:g} in this run, not {known:g}; it follows the form's judge_threshold"
    )
    return overlay(changes, {"validate": {"triplets": {"yes_min": threshold}}}), [sentence]


def absolute_path(path: str, root: Path) -> str:
    """A path below `root` when relative; URLs (s3://) stay."""
    return path if "://" in path else str((root / path).resolve())


def with_absolute_paths(raw: dict[str, Any], root: Path) -> dict[str, Any]:
    """Resolved parameters with the paths of sources, image lists, benchmark and truth absolute.

    Values of a wrong type stay as they are; the check of the parameters names them.

    Args:
        raw: resolved parameters.
        root: where relative paths start.
    """
    ingest: dict[str, Any] = {}
    if isinstance(sources := raw["ingest"].get("sources"), list):
        ingest["sources"] = [
            {**s, "path": absolute_path(s["path"], root)}
            if isinstance(s, dict) and isinstance(s.get("path"), str)
            else s
            for s in sources
        ]
    for name in ("blocklists", "benchmark_hashes"):
        if isinstance(paths := raw["ingest"].get(name), list):
            ingest[name] = [absolute_path(path, root) if isinstance(path, str) else path for path in paths]
    if isinstance(takedown := raw["ingest"].get("takedown"), str):
        ingest["takedown"] = absolute_path(takedown, root)
    evaluate: dict[str, Any] = {}
    for name in ("benchmark", "truth"):
        value = raw["evaluate"].get(name)
        if value and isinstance(value, str):
            evaluate[name] = absolute_path(value, root)
    if isinstance(benchmarks := raw["evaluate"].get("benchmark"), list):
        evaluate["benchmark"] = [
            {**b, "path": absolute_path(b["path"], root)}
            if isinstance(b, dict) and isinstance(b.get("path"), str)
            else b
            for b in benchmarks
        ]
    return overlay(raw, {"ingest": ingest, "evaluate": evaluate})


def require_model_type(params: Params) -> None:
    """Check that recipe and promotion suit the type of the base model, where its config.json can be read here.

    Raises:
        ConfigError: they do not: training, hours later, would say so.
    """
    kind = known_model_type(params.train.base_model, params.train.revision)
    if kind is None:
        return
    found = [*model_type_contradictions(params.train, params.promote, is_joint=kind in FAMILIES)]
    if found:
        raise ConfigError("; ".join(found))


def require_paths(params: Params, kind: Kind) -> None:
    """Check before any work starts that every file, folder and optional package of the run is there.

    Raises:
        ConfigError: one is not, there is no source, two sources have one name, or a recipe that does not suit the base
            model's type.
    """
    paths: dict[str, str] = {}
    if kind == "model" and params.promote.onnx:
        require_onnx()
    if kind == "model":
        require_model_type(params)
    if kind == "dataset":
        paths = {f"ingest.sources.{source.name}": source.path for source in params.ingest.sources}
        for key in ("blocklists", "benchmark_hashes"):
            paths |= {f"ingest.{key}[{n}]": path for n, path in enumerate(getattr(params.ingest, key))}
        if params.ingest.takedown:
            paths["ingest.takedown"] = params.ingest.takedown
    else:
        benchmark = params.evaluate.benchmark or ()
        if isinstance(benchmark, str):
            paths["evaluate.benchmark"] = benchmark
        else:
            paths |= {f"evaluate.benchmark.{b.name}": b.path for b in benchmark}
        for dataset in params.train.datasets:
            if dataset.format == "rows":
                continue  # of the version itself
            if dataset.split is None:  # with a split it may be a name for `datasets.load_dataset`
                paths |= {f"train.datasets.{dataset.name}.path": dataset.path}
            paths |= {f"train.datasets.{dataset.name}.images": dataset.images}
        if params.evaluate.truth:
            paths["evaluate.truth"] = params.evaluate.truth
    for name, path in paths.items():
        if "://" not in path and not Path(path).exists():
            raise ConfigError(f"{name}: no such folder or file {path}; give an absolute path that the workers see")
    if kind == "dataset" and not (params.ingest.sources or params.open_run.takedown or params.renew.is_on):
        raise ConfigError("ingest.sources: no source; name at least one folder with images")
    names = [source.name for source in params.ingest.sources]
    if len(set(names)) != len(names):
        raise ConfigError(f"ingest.sources: names must differ, found {names}")
