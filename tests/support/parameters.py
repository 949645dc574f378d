"""Parameters for tests: those of params.yaml with a few changes, so that no test states a number it does not need."""

from pathlib import Path
from typing import Any, TypeVar

from tasks.config import Params, Section, load_params, overlay, parse_params, read_raw, resolve

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
S = TypeVar("S", bound=Section)


def raw_params(profile: str | None = "test", **changes: Any) -> dict[str, Any]:
    """The resolved mapping of a profile, with sections of `changes` laid over it, as open_run would write it."""
    return resolve(read_raw(PARAMS), profile, changes)


def params_with(profile: str | None = "test", **changes: Any) -> Params:
    """Checked parameters of a profile with changes by section: `params_with(mine={"neighbours": 3})`."""
    return parse_params(raw_params(profile, **changes))


def section_with(section: type[S], **values: Any) -> S:
    """One section, of the defaults of params.yaml with changes: `section_with(SelectConfig, negatives=2)`."""
    sections = (getattr(load_params(PARAMS), name) for name in Params.model_fields)
    default = next(value for value in sections if isinstance(value, section))
    return section.model_validate(overlay(default.model_dump(by_alias=True), values))
