"""Airflow's AWS connection as environment variables, for the one stage that reads buckets.

Stages read credentials from the environment alone. The connection MEGAPAIRS_AWS_CONNECTION (default aws_default), if it
exists, becomes the AWS_* variables of that one process. Variables that the worker's environment sets take precedence,
so that instance roles and profiles stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

DEFAULT_CONNECTION = "aws_default"


def connection_variables(connection: Any) -> dict[str, str]:
    """AWS_* variables of a connection: keys from login and password, or from its extra fields; region, profile,
    endpoint and session token from its extra fields.

    Args:
        connection: with login, password and extra_dejson.
    """
    extra = connection.extra_dejson
    endpoint = (
        (extra.get("service_config") or {}).get("s3", {}).get("endpoint_url")
        or extra.get("endpoint_url")
        or extra.get("host")
    )
    variables = {
        "AWS_ACCESS_KEY_ID": connection.login or extra.get("aws_access_key_id"),
        "AWS_SECRET_ACCESS_KEY": connection.password or extra.get("aws_secret_access_key"),
        "AWS_SESSION_TOKEN": extra.get("aws_session_token"),
        "AWS_DEFAULT_REGION": extra.get("region_name"),
        "AWS_PROFILE": extra.get("profile_name"),
        "AWS_ENDPOINT_URL_S3": endpoint,
    }
    return {name: str(value) for name, value in variables.items() if value}


def aws_variables(base: Mapping[str, str]) -> dict[str, str]:
    """The variables that the connection adds to an environment: none where the environment has credentials, or where
    there is no such connection.

    Args:
        base: the worker's environment.
    """
    if base.get("AWS_ACCESS_KEY_ID") or base.get("AWS_PROFILE"):
        return {}
    try:
        connection = Connection.get(base.get("MEGAPAIRS_AWS_CONNECTION", DEFAULT_CONNECTION))
    except AirflowNotFoundException:
        return {}
    return {name: value for name, value in connection_variables(connection).items() if not base.get(name)}
