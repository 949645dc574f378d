"""Parameters of a run that rewrites an older version (`python -m tasks purge`).

Its vectors were made, and its pairs mined, by the encoders and windows of then: neighbours in the place of those taken
down are searched with these, not with those of an encoder that took over since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.config import EncoderConfig, Window, overlay


def with_encoders_of(raw: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run's parameters with encoders and windows of the version that it rewrites.

    No encoder follows another in such a run. Roles that the version did not have stay as they are deployed.

    Args:
        raw: the resolved params.yaml of the run.
        record: version.json of the version, which names those in use when it was made; of an encoder that lay in a
            folder the name alone, and no model is loaded in such a run. None: `raw` as it is (a model is trained).
    """
    if record is None:
        return dict(raw)
    params = record.get("params") or {}
    encoders = _known(params.get("embed", {}).get("encoders"), raw["embed"]["encoders"], EncoderConfig)
    windows = _known(params.get("mine", {}).get("windows"), raw["mine"]["windows"], Window)
    changed = overlay(dict(raw), {"embed": {"next": None}})
    changed["embed"]["encoders"] = {**raw["embed"]["encoders"], **encoders}
    changed["mine"] = {**raw["mine"], "windows": {**raw["mine"]["windows"], **windows}}
    return changed


def _known(of_version: Mapping[str, Any] | None, deployed: Mapping[str, Any], section: type[Any]) -> dict[str, Any]:
    """Entries of the version for deployed roles, without fields that this code does not know."""
    entries = {role: entry for role, entry in (of_version or {}).items() if role in deployed and entry}
    return {role: {k: v for k, v in entry.items() if k in section.model_fields} for role, entry in entries.items()}
