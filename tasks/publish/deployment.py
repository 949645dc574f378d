"""Lay a deployment out on its shared volume, once: the login, the pools' file, the S3 bucket and the repositories.

    python -m tasks deploy      in the image (docker-compose's service `init`); the checkout is mounted at /checkout

Makes what is missing and leaves the rest as it is. Environment: AIRFLOW_PASSWORD, DVC_REMOTE, MEGAPAIRS_DATASET,
AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE, and S3_ENDPOINT where the remote is not AWS's own S3. POOLS_FILE:
where to write Airflow's pools for `airflow pools import`, with FETCH_SLOTS, CPU_SLOTS and GPU_SLOTS slots. CHECKOUT:
the code to deploy, a git repository (default /checkout).
To deploy newer code later: git push <volume>/origin.git HEAD:main (or point MEGAPAIRS_DEPLOYED at another ref).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError
from tasks.publish.git import git
from tasks.publish.published import BRANCH
from tasks.publish.redaction import PUBLIC_REMOTE, public_config

INTERNAL = "internal"  # the deployment's own name of its remote, where strangers read it at another address
CHECKOUT = "/checkout"  # where docker-compose mounts the code to deploy
# Airflow's pools: name -> the variable with its slots, their count where it is not set, what the slots are for.
POOLS = {
    "fetch": ("FETCH_SLOTS", 2, "parts that download side by side"),
    "cpu": ("CPU_SLOTS", 2, "parts that use whole CPU cores side by side"),
    "gpu": ("GPU_SLOTS", 1, "stages that may use the GPUs side by side"),
}
REQUIRED = (
    "AIRFLOW_PASSWORD",
    "DVC_REMOTE",
    "MEGAPAIRS_DATASET",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE",
)


def write_password(path: Path, user: str, password: str) -> None:
    """Write the file that Airflow's simple auth manager reads, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({user: password}) + "\n")
    path.chmod(0o600)


def pools(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Airflow's pools in the form of `airflow pools import`.

    Raises:
        ConfigError: a count of slots is no positive whole number.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, (variable, default, description) in POOLS.items():
        text = environment.get(variable) or str(default)
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{variable}={text!r}: expected a count of slots, 1 or more; see .env.example")
        out[name] = {"slots": int(text), "description": description}
    return out


def bucket_name(remote: str) -> str | None:
    """'s3://bucket/prefix' -> 'bucket'; None for a folder."""
    return remote.removeprefix("s3://").partition("/")[0] if remote.startswith("s3://") else None


def make_bucket(bucket: str, endpoint: str | None) -> None:
    """Create the S3 bucket where it is missing."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    if bucket not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=bucket)


def remote_section(name: str, config: str) -> str:
    """The last section of `dvc_config`'s text, the remote, under another name."""
    return f"['remote \"{name}\"']\n" + config.partition("['remote")[2].partition("\n")[2]


def dvc_config(remote_url: str, options: Mapping[str, str]) -> str:
    """.dvc/config of a deployment: one remote, every object of it verified when it is downloaded."""
    lines = ["[core]", "    analytics = false", "    autostage = false", "    remote = versions"]
    lines += ["['remote \"versions\"']", f"    url = {remote_url}", "    verify = true"]
    return "\n".join(lines + [f"    {k} = {v}" for k, v in options.items()]) + "\n"


def write_local_config(dataset: Path, cache: Path, remote: str = "") -> None:
    """.dvc/config.local of the deployment's clone: the cache, and `remote`, the sections of a remote of its own.

    Runs get a copy of it; nobody else sees it.
    """
    core = f"[core]\n    site_cache_dir = {cache / 'site'}\n" + (f"    remote = {INTERNAL}\n" if remote else "")
    (dataset / ".dvc" / "config.local").write_text(
        f'{core}[cache]\n    dir = {cache}\n    type = "hardlink,symlink,copy"\n{remote}'
    )


def configure_deployment(
    origin: Path, dataset: Path, remote_url: str, cache: Path, *, checkout: Path = Path("."), **remote_options: str
) -> None:
    """Lay a deployment out: bare `origin` from the checkout's HEAD, the deployment's clone `dataset`, remote and cache.

    Args:
        origin: where researchers clone from; branch `main` is the deployed code, HEAD is `dataset` (the versions).
        dataset: the clone that the deployment owns; runs are its worktrees.
        remote_url: an absolute folder or s3://bucket/prefix. Committed, so that a researcher's `dvc pull` finds it;
            where MEGAPAIRS_PUBLIC_REMOTE is set, that address is, and this one stays in the clone's config.local.
        cache: the DVC cache that all worktrees share.
        checkout: the code to deploy, a git repository.
        remote_options: more options of the remote, for example ``endpointurl="http://127.0.0.1:9000"``.
    Raises:
        ConfigError: a relative remote folder (each clone would look for it elsewhere), origin exists, or
            MEGAPAIRS_PUBLIC_REMOTE is no address.
    """
    config, internal = dvc_config(remote_url, remote_options), ""
    if public := os.environ.get(PUBLIC_REMOTE):
        config, internal = public_config(config.encode(), public).decode(), remote_section(INTERNAL, config)
    is_folder = "://" not in remote_url
    if is_folder and not os.path.isabs(remote_url):
        raise ConfigError(
            f"remote {remote_url!r}: a relative folder means another folder in every clone; "
            "give an absolute one or s3://"
        )
    if origin.exists() or dataset.exists():
        raise ConfigError(f"{origin} or {dataset} exists; remove it first, or keep the deployment as it is")
    origin.parent.mkdir(parents=True, exist_ok=True)
    git(origin.parent, "init", "-q", "--bare", "-b", "main", str(origin))
    git(origin, "config", "receive.shallowUpdate", "true")
    git(checkout, "push", "-q", str(origin.resolve()), "HEAD:refs/heads/main")
    git(origin.parent, "clone", "-q", "-b", "main", str(origin.resolve()), str(dataset))
    if is_folder:
        Path(remote_url).mkdir(parents=True, exist_ok=True)
    (dataset / ".dvc").mkdir(exist_ok=True)
    (dataset / ".dvc" / "config").write_text(config)
    git(dataset, "add", "-f", ".dvc/config")
    git(dataset, "commit", "-q", "-m", "The deployment's DVC remote")
    git(dataset, "push", "-q", "origin", "main")
    git(origin, "symbolic-ref", "HEAD", f"refs/heads/{BRANCH}")
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    write_local_config(dataset, cache, internal)


def configure_missing(dataset: Path, checkout: Path, remote: str, endpoint: str | None) -> bool:
    """Lay the deployment out beside `dataset`, unless it exists; returns whether it was made."""
    if dataset.exists():
        return False
    options = {"endpointurl": endpoint} if endpoint and remote.startswith("s3://") else {}
    volume = dataset.parent
    configure_deployment(volume / "origin.git", dataset, remote, volume / "dvc-cache", checkout=checkout, **options)
    return True


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Lay out what is missing of the deployment that the environment describes; {"is_new": whether it was made}.

    Raises:
        ConfigError: a variable of the environment is missing; as of `configure_deployment`.
    """
    missing = [name for name in REQUIRED if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"deploy: environment lacks {missing}; see .env.example")
    remote, endpoint = os.environ["DVC_REMOTE"], os.environ.get("S3_ENDPOINT") or None
    passwords = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    if pools_file := os.environ.get("POOLS_FILE"):
        path = Path(pools_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(pools(os.environ), indent=2) + "\n")
    write_password(passwords, "admin", os.environ["AIRFLOW_PASSWORD"])
    if bucket := bucket_name(remote):
        make_bucket(bucket, endpoint)
    is_new = configure_missing(
        Path(os.environ["MEGAPAIRS_DATASET"]), Path(os.environ.get("CHECKOUT") or CHECKOUT), remote, endpoint
    )
    print("deployment laid out" if is_new else "deployment was there already")
    return {"is_new": is_new}
