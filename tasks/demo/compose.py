"""Read docker-compose.yaml as Docker Compose does: a service's command and environment with its variables filled in.

The local twin (`tasks.demo.production_local`) runs what stands in that file, on this machine's own ports and folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import ConfigError

# ${NAME}, ${NAME:-default}, ${NAME-default}, ${NAME:?message}; $$ is a dollar sign.
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<how>:-|-|:\?|\?)(?P<value>[^{}]*))?\}")


@dataclass(frozen=True)
class ComposeService:
    """A service of the file.

    Attributes:
        command: arguments of the image's entrypoint.
        environment: its variables.
        healthcheck: the command of its health check without the leading CMD; empty where it has none.
        profiles: profiles that it belongs to; empty: always started.
        is_restarted: whether it is started again when it ends by itself.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    healthcheck: tuple[str, ...]
    profiles: tuple[str, ...]
    is_restarted: bool


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """The text with its variables filled in.

    Args:
        text: a value of the file.
        variables: what `.env` says.

    Raises:
        ConfigError: a variable that must be set is not.
    """

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, how, value = match["name"], match["how"] or "", match["value"] or ""
        given = variables.get(name)
        is_missing = given is None or (how.startswith(":") and given == "")
        if is_missing and how.endswith("?"):
            raise ConfigError(f"docker-compose.yaml: variable {name} is not set; expected a value; {value}")
        return value if is_missing and how.endswith("-") else given or ""

    return VARIABLE.sub(fill, text)


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of an `.env` file: NAME=value lines, without comments."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def read_compose(path: Path, variables: Mapping[str, str]) -> dict[str, ComposeService]:
    """Every service of the file by its name, with its variables filled in.

    Args:
        path: docker-compose.yaml.
        variables: what `.env` says.

    Raises:
        ConfigError: a variable that must be set is not.
    """
    services: dict[str, ComposeService] = {}
    for name, service in yaml.safe_load(path.read_text(encoding="utf-8"))["services"].items():
        environment: dict[str, Any] = service.get("environment") or {}
        test = [str(word) for word in (service.get("healthcheck") or {}).get("test") or []]
        services[name] = ComposeService(
            command=tuple(interpolate(str(word), variables) for word in service["command"]),
            environment={key: interpolate(str(value), variables) for key, value in environment.items()},
            healthcheck=tuple(interpolate(word, variables) for word in test[1:]),
            profiles=tuple(service.get("profiles") or ()),
            is_restarted=service.get("restart") in ("unless-stopped", "always"),
        )
    return services


def dockerfile_environment(path: Path) -> dict[str, str]:
    """The variables that the image sets: those of its ENV lines; build arguments are empty."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    words = [word for line in re.findall(r"^ENV (.*)$", text, re.M) for word in line.split()]
    return dict(interpolate(word, {}).split("=", 1) for word in words)
