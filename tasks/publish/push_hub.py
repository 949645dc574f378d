"""Push a version to the Hugging Face Hub: card, tables, images and what describes them, under the version's tag.

    python -m tasks push-hub OWNER/NAME [--root CLONE] [--private] [--endpoint URL]

Run it in a clone after `dvc pull`. The clone is verified first: only what is as published is pushed. The token comes
from HF_TOKEN or from `hf auth login`, never from the command line. A file that the Hub's newest version has and this
one lacks is deleted there, so that what was withdrawn leaves the Hub's newest version too; its history is the Hub's
own (delete the repository, or squash its history, to remove it). Pushed are README.md, croissant.json, CHANGELOG-
DATA.md, version.json, manifest.json, reports/gallery.html and data/ without embeddings, neighbours and quarantine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, CredentialsError, DataError, TasksError, UnreachableError
from tasks.publish.verify import check_survey

FILES = ["README.md", "croissant.json", "CHANGELOG-DATA.md", "version.json", "manifest.json", "reports/gallery.html"]
TABLES = ("triplets", "images", "shards", "export", "pairs", "captioned", "captions", "dropped", "withdrawn")
NEEDED = ("data/triplets", "data/images", "data/shards")


def patterns() -> list[str]:
    """What is pushed, as patterns of paths."""
    tables = [f"data/{table}/*.{kind}" for table in TABLES for kind in ("parquet", "tar")]
    return [*FILES, *tables, "data/dropped/*/*.parquet", "data/rows/*/*.parquet"]


def require_clone(root: Path) -> str:
    """The name of a clone's version.

    Raises:
        DataError: it is not as published, or lacks a table that is pushed.
        ConfigError: no clone.
    """
    not_pulled = set(check_survey(root).not_pulled)
    if missing := [path for path in NEEDED if path in not_pulled]:
        raise DataError(f"{root}: {', '.join(missing)} are not pulled; run `python -m tasks pull` first")
    return str(json.loads((root / "version.json").read_text())["version"])


def explain(error: Exception, repository: str, endpoint: str) -> TasksError | None:
    """An error of the Hub as one of ours, None for others."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return CredentialsError(f"{endpoint}: no token; set HF_TOKEN, or run `hf auth login`")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            return CredentialsError(
                f"{endpoint}: refuses to write {repository} ({status}); expected a token with write access to it in "
                "HF_TOKEN"
            )
        return UnreachableError(f"{endpoint}: answers {status} for {repository}; try again later")
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):  # of httpx, whose name has changed
        return UnreachableError(f"{endpoint}: cannot be reached ({error}); look at the network, then again")
    return None


def push(root: Path, repository: str, *, endpoint: str | None = None, is_private: bool = False) -> dict[str, Any]:
    """Push a clone; {"repository", "version", "url"}.

    Raises:
        DataError, ConfigError: as of `require_clone`.
        CredentialsError, UnreachableError: the Hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi

    version, api = require_clone(root), HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, repo_type="dataset", private=is_private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=root,
            allow_patterns=patterns(),
            delete_patterns=["data/**"],
            commit_message=f"Version {version}",
        )
        api.create_tag(repository, tag=version, repo_type="dataset", exist_ok=True)
    except Exception as error:
        if known := explain(error, repository, str(api.endpoint)):
            raise known from error
        raise
    return {"repository": repository, "version": version, "url": str(commit.commit_url)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks push-hub`."""
    parser.add_argument("repository", metavar="OWNER/NAME", help="the dataset on the Hub; made where it is missing")
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull` (default: the current folder)")
    parser.add_argument("--endpoint", help="another Hub (default: HF_ENDPOINT, else https://huggingface.co)")
    parser.add_argument("--private", action="store_true", help="make the repository private, where it is made")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Push the clone.

    Raises:
        ConfigError: a name that is not OWNER/NAME; as of `push`.
    """
    if args.repository.count("/") != 1:
        raise ConfigError(f"push-hub: {args.repository!r} is no dataset's name; expected OWNER/NAME")
    result = push(args.root.resolve(), args.repository, endpoint=args.endpoint, is_private=args.private)
    print(f"{result['repository']}: version {result['version']}, {result['url']}")
    return result
