"""Airflow's own AWS connection, for the stage that reads buckets: tasks/ knows the environment alone.

The connection MEGAPAIRS_AWS_CONNECTION (default aws_default), if there is one, becomes the AWS_* variables of that one
process. What the worker's environment sets itself goes first, so that instance roles and profiles stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

CONNECTION = "aws_default"


def variables_of(connection: Any) -> dict[str, str]:
    """AWS_* variables of a connection: login and password, or aws_access_key_id ... of its extra; region, endpoint,
    session token.

    Args:
        connection: with login, password and extra_dejson.
    """
    extra = connection.extra_dejson
    endpoint = (
        (extra.get("service_config") or {}).get("s3", {}).get("endpoint_url")
        or extra.get("endpoint_url")
        or extra.get("host")
    )
    found = {
        "AWS_ACCESS_KEY_ID": connection.login or extra.get("aws_access_key_id"),
        "AWS_SECRET_ACCESS_KEY": connection.password or extra.get("aws_secret_access_key"),
        "AWS_SESSION_TOKEN": extra.get("aws_session_token"),
        "AWS_DEFAULT_REGION": extra.get("region_name"),
        "AWS_PROFILE": extra.get("profile_name"),
        "AWS_ENDPOINT_URL_S3": endpoint,
    }
    return {name: str(value) for name, value in found.items() if value}


def aws_variables(base: Mapping[str, str]) -> dict[str, str]:
    """What the connection adds to this environment; nothing when it has credentials, or when there is no such
    connection.

    Args:
        base: the worker's environment.
    """
    if base.get("AWS_ACCESS_KEY_ID") or base.get("AWS_PROFILE"):
        return {}
    try:
        connection = Connection.get(base.get("MEGAPAIRS_AWS_CONNECTION", CONNECTION))
    except AirflowNotFoundException:
        return {}
    return {name: value for name, value in variables_of(connection).items() if not base.get(name)}
