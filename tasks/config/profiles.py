"""Profiles: named sets of parameters, one file each in tasks/profiles, laid over the defaults of params.yaml.

A profile file has the sections and keys of params.yaml, as many as it changes, and may have one key of its own:

    uncalibrated_windows: [semantic, pattern]     encoders whose `mine.windows` here are guesses, not calibrated

It never reaches the resolved parameters; opening a run with such windows warns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tasks.config.section import MINER_ROLES
from tasks.errors import ConfigError

FOLDER = "tasks/profiles"  # below the folder of params.yaml
SUFFIX = ".yaml"
UNCALIBRATED = "uncalibrated_windows"
SHIPPED = Path(__file__).resolve().parents[2]  # the folder of this code's own params.yaml and profiles

log = logging.getLogger(__name__)


def parse_mapping(text: str | bytes, where: str) -> dict[str, Any]:
    """YAML text as a mapping; an empty text is an empty mapping.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({error})") from error
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected a mapping of sections to parameters, found {type(raw).__name__}")
    return raw


def is_profile(path: str) -> bool:
    """Whether a path, relative to the folder of params.yaml, is a profile's file."""
    return str(PurePosixPath(path).parent) == FOLDER and path.endswith(SUFFIX)


def profile_texts(folder: Path) -> dict[str, str]:
    """Path -> text of all files in tasks/profiles of a folder."""
    return {str(p): p.read_text(encoding="utf-8") for p in sorted((folder / FOLDER).glob(f"*{SUFFIX}"))}


def parse_raw(content: str | bytes, texts: Mapping[str, str | bytes], where: str) -> dict[str, Any]:
    """params.yaml as a mapping, with all profiles below key `profiles`.

    Until the next release params.yaml may hold profiles itself, below `profiles`, as it did before they had files: such
    a profile replaces the file of the same name, with a warning.

    Args:
        content: params.yaml.
        texts: path -> text of each profile's file; this code's own profiles where there are none.
        where: params.yaml's path, for messages.
    Raises:
        ConfigError: a file that is no mapping, or unknown encoders in `uncalibrated_windows`.
    """
    raw = parse_mapping(content, where)
    texts = texts or profile_texts(SHIPPED)
    profiles = {PurePosixPath(path).stem: parse_mapping(text, path) for path, text in texts.items()}
    if inline := raw.get("profiles"):
        log.warning(
            "%s: key 'profiles' is deprecated and will be refused by the next release; move each of %s to a file "
            "%s/<name>%s",
            where,
            sorted(inline),
            FOLDER,
            SUFFIX,
        )
        profiles |= {name: profile or {} for name, profile in inline.items()}
    for name, profile in profiles.items():
        roles = profile.get(UNCALIBRATED, [])
        if not isinstance(roles, list) or not set(roles) <= set(MINER_ROLES):
            raise ConfigError(
                f"profile '{name}': '{UNCALIBRATED}' is {roles!r}; expected a list of encoders, among "
                f"{list(MINER_ROLES)}"
            )
    return {**raw, "profiles": profiles}


def uncalibrated_windows(
    raw: Mapping[str, Any], profile: str | None, changes: Mapping[str, Any] | None = None
) -> list[str]:
    """Encoders whose window comes from the profile, which says that nobody calibrated it.

    Args:
        raw: of `read_raw`.
        profile: name of the profile in use.
        changes: the run's own values, laid over the profile; a window that they give is not the profile's.
    """
    roles = ((raw.get("profiles") or {}).get(profile) or {}).get(UNCALIBRATED, [])
    given = ((changes or {}).get("mine") or {}).get("windows") or {}
    return [role for role in roles if role not in given]
