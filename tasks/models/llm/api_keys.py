"""API keys of model servers: from the environment alone, never from parameters, reports or caches.

MEGAPAIRS_MODEL_API_KEY is the key of all servers; MEGAPAIRS_MODEL_API_KEY_CAPTIONER, _WRITER and _JUDGE take precedence
for one role. Under Airflow the connection `megapairs_models` gives them (plugins/megapairs/model_keys.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tasks.config.urls import MODEL_API_KEY, ModelRole
from tasks.errors import ConfigError


def model_api_key(role: ModelRole, environment: Mapping[str, str] | None = None) -> str:
    """The key that is sent to a role's servers as Bearer; empty where none is set.

    Raises:
        ConfigError: it cannot be sent in a header; the key itself is not repeated.
    """
    variables = os.environ if environment is None else environment
    name = f"{MODEL_API_KEY}_{role.upper()}"
    if name not in variables:
        name = MODEL_API_KEY
    key = variables.get(name, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{name}: holds characters that no HTTP header can carry; expected the key alone, without quotes or line "
            "breaks; set it again"
        )
    return key
