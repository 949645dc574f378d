"""From params.yaml to checked parameters: defaults, then a profile, then a run's own values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tasks.config.form_names import did_you_mean
from tasks.config.params import Params
from tasks.config.profiles import UNCALIBRATED, parse_raw, profile_texts
from tasks.errors import ConfigError

# keys of earlier releases that mean something else now, and what to give instead
FOLLOWS = (
    "the number of parts follows from the pairs now: remove it, and give 'caption.part_pairs', the pairs in one part"
)
REPLACED = {"caption.parts": FOLLOWS, "judge.parts": f"judge has the parts of caption, and {FOLLOWS}"}


def overlay(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it: mappings are merged key by key, all else is replaced. Neither is changed."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section's class that a field's annotation names, also inside tuple[...], dict[...] and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    sections = (_section_in(inner) for inner in get_args(annotation))
    return next((section for section in sections if section is not None), None)


def _field_at(location: tuple[Any, ...]) -> tuple[type[BaseModel] | None, bool]:
    """The section's class at a validation error's location, and whether only fixed keys lead there.

    Numbers of list entries and names of mapping entries are no fixed keys: what they hold is no default of params.yaml.
    """
    model: type[BaseModel] | None = Params
    is_fixed = True
    for name in location:
        fields = model.model_fields if model else {}
        field = fields.get(name) or next((f for f in fields.values() if f.alias == name), None)
        if field is None:
            is_fixed = False
        else:
            model = _section_in(field.annotation)
    return model, is_fixed


def _error_line(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a sentence that names the key, what was found and what to do."""
    location = error["loc"]
    key, parent = ".".join(map(str, location)), location[:-1]
    if error["type"] == "extra_forbidden":
        if key in REPLACED:
            return f"unknown key '{key}'; {REPLACED[key]}"
        model, _ = _field_at(parent)
        known = sorted(f.alias or n for n, f in model.model_fields.items()) if model else []
        where = ".".join(map(str, parent)) or "the top level"
        return f"unknown key '{key}'; known in '{where}': {known}{did_you_mean(str(location[-1]), known)}"
    if error["type"] == "missing":
        _, is_fixed = _field_at(parent)
        remedy = "copy it from params.yaml of this release" if is_fixed else "give it, or remove the entry"
        return f"missing key '{key}'; {remedy}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"'{key}': {message}" if key and not message.startswith(f"'{key}") else message
    return f"'{key}' is {error.get('input')!r}: {message}"


def parse_params(raw: dict[str, Any], where: str = "params") -> Params:
    """Check a resolved mapping.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or value, values that contradict each other; it names the
            keys, what was found and what is expected.
    """
    try:
        return Params.model_validate({k: v for k, v in raw.items() if k != "profiles"})
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(map(_error_line, error.errors()))) from error


def resolve(raw: dict[str, Any], profile: str | None = None, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Defaults, then the named profile, then a run's own values; without the key `profiles`.

    Args:
        raw: params.yaml with its profiles, as `read_raw` returns it.
        profile: name of the profile; none is applied when empty.
        changes: the run's own values, in the form of params.yaml.
    Raises:
        ConfigError: no such profile.
    """
    profiles = raw.get("profiles") or {}
    base = {k: v for k, v in raw.items() if k != "profiles"}
    if profile:
        if profile not in profiles:
            raise ConfigError(f"params.yaml: no profile '{profile}'; known: {sorted(profiles)}")
        base = overlay(base, {k: v for k, v in profiles[profile].items() if k != UNCALIBRATED})
        base["profile"] = profile
    return overlay(base, changes or {})


def read_raw(path: Path) -> dict[str, Any]:
    """params.yaml as a mapping, with all profiles below key `profiles`.

    Profiles are the files in tasks/profiles beside params.yaml, or where that folder is missing, those of this code.

    Raises:
        ConfigError: a file that cannot be read, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); run from the project's root or a run's worktree"
        ) from error
    return parse_raw(text, profile_texts(path.parent), str(path))


def is_resolved(raw: Mapping[str, Any]) -> bool:
    """Whether params.yaml is a run's own file: `open_run` applied the profile and named the date and the batch."""
    opened = raw.get("open_run") or {}
    return bool(opened.get("date") and opened.get("batch"))


def load_params(path: Path | str = "params.yaml", profile: str | None = None) -> Params:
    """Read and check params.yaml as a stage does.

    Args:
        path: params.yaml of the project, or of a run's worktree, which is resolved already.
        profile: name of the profile to apply.
    Raises:
        ConfigError: see `parse_params`; or another profile is asked of a file that is resolved already.
    """
    path = Path(path)
    raw = read_raw(path)
    if profile and is_resolved(raw):
        if profile != raw.get("profile"):
            raise ConfigError(
                f"{path}: belongs to batch {raw['open_run']['batch']} and was made with profile "
                f"'{raw.get('profile')}'; profile '{profile}' cannot be applied to it, unset MEGAPAIRS_PROFILE"
            )
        profile = None
    return parse_params(resolve(raw, profile), where=str(path))
