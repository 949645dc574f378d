"""API keys of model servers as environment variables, for the stages that ask models and for no other.

The connection MEGAPAIRS_MODELS_CONNECTION (default megapairs_models), if it exists, becomes MEGAPAIRS_MODEL_API_KEY
(its password) and MEGAPAIRS_MODEL_API_KEY_CAPTIONER, _WRITER and _JUDGE (extra fields captioner, writer, judge).
Variables that the worker's environment sets take precedence. Each key is masked in the task's log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from tasks.config.urls import MODEL_API_KEY, MODEL_ROLES

DEFAULT_CONNECTION = "megapairs_models"
STAGES = ("recaption", "caption", "judge", "judge_check")  # commands that ask models


def key_variables(connection: Any) -> dict[str, str]:
    """Variables of a connection, those that it has.

    Args:
        connection: with password and extra_dejson.
    """
    extra = connection.extra_dejson or {}
    of_roles = {f"{MODEL_API_KEY}_{role.upper()}": extra.get(role) for role in MODEL_ROLES}
    keys = {MODEL_API_KEY: connection.password, **of_roles}
    return {name: str(key) for name, key in keys.items() if key}


def model_variables(base: Mapping[str, str]) -> dict[str, str]:
    """The variables that the connection adds to an environment; all keys are masked in logs.

    Args:
        base: the worker's environment.
    """
    try:
        added = key_variables(Connection.get(base.get("MEGAPAIRS_MODELS_CONNECTION", DEFAULT_CONNECTION)))
    except AirflowNotFoundException:
        added = {}
    added = {name: key for name, key in added.items() if not base.get(name)}
    for name, key in {**base, **added}.items():
        if name.startswith(MODEL_API_KEY) and key:
            mask_secret(key)
    return added
