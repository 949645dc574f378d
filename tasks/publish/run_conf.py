"""Read and check the values of the trigger form, before they are laid over the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tasks.config import OpenRunConfig, Params, overlay, sources_of
from tasks.errors import ConfigError

Kind = Literal["dataset", "model"]
PLAIN = tuple(sorted(OpenRunConfig.model_fields))


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """'mine.neighbours', 5 -> {"mine": {"neighbours": 5}}."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def changes_of(conf: Mapping[str, Any], raw: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The profile that the form names, and its values as changes to params.yaml.

    Raises:
        ConfigError: a name that is neither a section, a dotted parameter nor one of the plain names.
    """
    profile = conf.get("profile") or None
    changes: dict[str, Any] = {}
    sections = sorted(set(raw) - {"profiles", "profile"})
    for key, value in conf.items():
        if key == "profile":
            continue
        if key == "sources":
            change = (
                nested("ingest.sources", sources_of(value, (raw.get("ingest") or {}).get("sources") or []))
                if value
                else {}
            )
        elif key in PLAIN:
            change = {} if value is None else {"open_run": {key: value}}
        elif "." in key:
            change = {} if value is None else nested(key, value)
        elif key in sections:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"conf: '{key}' is a section; expected a mapping or a dotted name such as '{key}.<parameter>', found {value!r}"
                )
            change = {key: value}
        else:
            known = f"{['profile', 'sources', *PLAIN]}, sections {sections}"
            raise ConfigError(f"conf: unknown key '{key}'; known: {known}, or dotted names such as 'mine.neighbours'")
        changes = overlay(changes, change)
    return profile, changes


def absolute(path: str, root: Path) -> str:
    """A path below `root` when relative; URLs (s3://) stay."""
    return path if "://" in path else str((root / path).resolve())


def located(raw: dict[str, Any], root: Path) -> dict[str, Any]:
    """Resolved parameters with the paths of sources, lists, benchmark and truth absolute, relative ones below `root`."""
    ingest: dict[str, Any] = {
        "sources": [{**s, "path": absolute(s["path"], root)} for s in raw["ingest"].get("sources") or []]
    }
    for name in ("blocklists", "benchmark_hashes"):
        if isinstance(lists := raw["ingest"].get(name), list):
            ingest[name] = [absolute(path, root) if isinstance(path, str) else path for path in lists]
    if isinstance(takedown := raw["ingest"].get("takedown"), str):
        ingest["takedown"] = absolute(takedown, root)
    places = {k: raw["evaluate"].get(k) for k in ("benchmark", "truth")}
    evaluate: dict[str, Any] = {
        k: absolute(place, root) for k, place in places.items() if place and isinstance(place, str)
    }
    if isinstance(named := places["benchmark"], list):
        evaluate["benchmark"] = [
            {**b, "path": absolute(b["path"], root)} if isinstance(b, dict) and isinstance(b.get("path"), str) else b
            for b in named
        ]
    return overlay(raw, {"ingest": ingest, "evaluate": evaluate})


def check_places(params: Params, kind: Kind) -> None:
    """Refuse folders that are not there before any work starts."""
    wanted = {f"ingest.sources.{s.name}": s.path for s in params.ingest.sources} if kind == "dataset" else {}
    benchmark = params.evaluate.benchmark or ()
    named = (
        {"benchmark": benchmark} if isinstance(benchmark, str) else {f"benchmark.{b.name}": b.path for b in benchmark}
    )
    for name, path in {**named, "truth": params.evaluate.truth}.items():
        if path and kind == "model":
            wanted[f"evaluate.{name}"] = path
    for name, path in wanted.items():
        if "://" not in path and not Path(path).exists():
            raise ConfigError(f"{name}: no such folder or file {path}; give an absolute path that the workers see")
    if kind == "dataset" and not params.ingest.sources:
        raise ConfigError("ingest.sources: no source; name at least one folder with images")
    names = [s.name for s in params.ingest.sources]
    if len(set(names)) != len(names):
        raise ConfigError(f"ingest.sources: names must differ, found {names}")
