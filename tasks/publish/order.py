"""Names and dates of versions follow their ancestry: none has an older name than the version that it continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.names import run_date
from tasks.publish.git import version_key


def date_after(parent: Mapping[str, Any] | None, params: Params) -> str:
    """The run's date; where none is stated, today or the date of the version that it continues, whichever is later.

    Args:
        parent: version.json of that version; None for the first one.
        params: of the run.
    Raises:
        ConfigError: a stated date before that version's: names would no longer tell what continues what.
    """
    date, last = run_date(params), str((parent or {}).get("date") or "")
    if date < last and params.open_run.date:
        raise ConfigError(
            f"open_run.date: {date} is before {last}, the date of version {(parent or {}).get('version')}, which this "
            "run would continue; give that date or a later one, or leave it empty"
        )
    return max(date, last)


def require_name_after(parent: Mapping[str, Any] | None, batch: str) -> None:
    """Raise ConfigError where a version's name does not come after the one that it continues (its version.json)."""
    if parent and version_key(batch) <= version_key(parent["version"]):
        raise ConfigError(
            f"open_run.batch: {batch} does not come after {parent['version']}, the version that it would continue; "
            "leave it empty for the next free name"
        )
