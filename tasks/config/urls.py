"""Addresses of model servers as parameters state them (one URL, several separated by commas, or a list), and the names
of the variables that hold their keys.
"""

from __future__ import annotations

from typing import Any, Literal, get_args
from urllib.parse import urlsplit

# Environment variable of the key of all model servers; with _CAPTIONER, _WRITER or _JUDGE, of one role's.
MODEL_API_KEY = "MEGAPAIRS_MODEL_API_KEY"
ModelRole = Literal["captioner", "writer", "judge"]
MODEL_ROLES: tuple[ModelRole, ...] = get_args(ModelRole)


def join_urls(value: Any) -> Any:
    """A list of URLs as the text that `split_urls` reads; anything else unchanged."""
    if isinstance(value, list | tuple) and all(isinstance(url, str) for url in value):
        return ",".join(url.strip() for url in value)
    return value


def split_urls(text: str) -> list[str]:
    """The URLs of a parameter, without blanks, empty entries and repetitions."""
    return list(dict.fromkeys(url.strip().rstrip("/") for url in text.split(",") if url.strip()))


def check_server_urls(text: str) -> str:
    """The text unchanged.

    Raises:
        ValueError: an address that is none of a model server, or that holds a password; it is not repeated.
    """
    for number, url in enumerate(split_urls(text), 1):
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(f"URL {number} cannot be read; expected http://host:port/v1") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"URL {number} (host {parts.hostname}) holds a user or a password, which would be stored with every "
                "version; remove it, and set the key as MEGAPAIRS_MODEL_API_KEY in the environment or as the password "
                "of Airflow's connection megapairs_models"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError(f"URL {number} is {url!r}; expected http://host:port/v1 or https://")
        if parts.query or parts.fragment:
            raise ValueError(
                f"URL {number} (host {parts.hostname}) has a query; expected the base address, ending in /v1"
            )
    return text
