"""Checks of what a run reads and writes: clone, origin, DVC remote, runs' folder, disk, model servers."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable
from pathlib import Path

from tasks.config import Params
from tasks.config.urls import ModelRole
from tasks.doctor.check import Check
from tasks.errors import TasksError, TransientError
from tasks.locks import exclusive
from tasks.models.llm.api_keys import model_api_key
from tasks.publish.dvc_repo import dvc_repo
from tasks.publish.git import git
from tasks.publish.published import version_at

SERVER_TIMEOUT_S = 10.0
IMAGE_BYTES = 100 << 10  # of a stored image at 512 px, where no version says better
TABLES_FACTOR = 2  # a run needs room for its files twice: in the worktree and in the cache
LEAST_BYTES = 2 << 30


def check_origin(clone: Path) -> Check:
    """The deployment's clone is there, and its origin takes a push."""
    if not (clone / ".git").exists():
        step = "set MEGAPAIRS_DATASET to the deployment's clone; `python -m tasks deploy` makes one"
        return Check("origin", "fail", f"{clone} is no clone", step)
    try:
        url = git(clone, "remote", "get-url", "origin")
        git(clone, "push", "--dry-run", "-q", "origin", "HEAD:refs/heads/megapairs-doctor")
    except TransientError as error:
        step = "look at the address, the keys and the rights of `git push origin` in the clone"
        return Check("origin", "fail", str(error).splitlines()[-1], step, may_pass=True)
    folder = Path(url.removeprefix("file://"))
    if folder.is_absolute() and not os.access(folder / "objects", os.W_OK):
        return Check("origin", "fail", f"{url} cannot be written", f"give this user write access to {folder}")
    return Check("origin", "ok", f"{url} takes a push")


def check_remote(clone: Path) -> Check:
    """A small object can be written to the DVC remote and removed again."""
    from botocore.exceptions import BotoCoreError

    try:
        with dvc_repo(clone) as repo:
            odb = repo.cloud.get_remote_odb()
            place, fs = str(odb.path), odb.fs
            probe = fs.join(place, f"megapairs-doctor-{uuid.uuid4().hex}")
            fs.makedirs(place, exist_ok=True)
            with fs.open(probe, "wb") as f:
                f.write(b"probe")
            fs.remove(probe)
    except (TasksError, OSError, ValueError, BotoCoreError) as error:
        step = "look at the address in .dvc/config, the keys (AWS_ACCESS_KEY_ID ...) and the bucket"
        return Check("remote", "fail", " ".join(str(error).split())[:300], step, may_pass=True)
    return Check("remote", "ok", f"{place} can be written")


def mount_options(folder: Path, mounts: str) -> tuple[str, str]:
    """(file system, options) of the mount that a folder lies on, from the text of /proc/mounts."""
    best = ("", "", "")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 3 and folder.is_relative_to(fields[1]) and len(fields[1]) > len(best[0]):
            best = (fields[1], fields[2], fields[3])
    return best[1], best[2]


def check_runs(runs: Path, mounts: str) -> Check:
    """The runs' folder can be written and has locks that hold on every host.

    Args:
        runs: MEGAPAIRS_RUNS.
        mounts: text of /proc/mounts; empty where there is none.
    """
    lock = runs / ".megapairs-doctor.lock"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with exclusive(lock, 5, f"{lock}: taken"):
            pass
        for file in runs.glob(f"{lock.name}*"):
            file.unlink(missing_ok=True)
    except (TasksError, OSError) as error:
        return Check("runs", "fail", f"{runs}: {error}", "give this user write access to MEGAPAIRS_RUNS")
    kind, options = mount_options(runs.resolve(), mounts)
    local_locks = {"nolock", "local_lock=all", "local_lock=flock"} & set(options.split(","))
    if kind.startswith("nfs") and local_locks and os.environ.get("MEGAPAIRS_LOCKS") != "lease":
        found = f"{runs} is {kind} with {', '.join(sorted(local_locks))}: its locks hold on one host only"
        return Check("runs", "warn", found, "set MEGAPAIRS_LOCKS=lease for all workers")
    return Check("runs", "ok", f"{runs} can be written and locked")


def week_bytes(clone: Path, limit: int | None) -> int:
    """Bytes that the files of one run need, estimated: its images, twice, and room for tables.

    Args:
        clone: the deployment's, for the size of an image in the last version.
        limit: most new images of the run; None: as many as the last version holds.
    """
    version = version_at(clone) or {}
    rows = int((version.get("rows") or {}).get("images") or 0)
    images = limit or rows
    return max(LEAST_BYTES, images * IMAGE_BYTES * TABLES_FACTOR)


def check_disk(clone: Path, runs: Path, limit: int | None) -> Check:
    """The runs' disk has room for the week."""
    place = next(p for p in (runs, *runs.parents) if p.exists())
    free, needed = shutil.disk_usage(place).free, week_bytes(clone, limit)
    found = f"{free / 1e9:.1f} GB free on {place}, {needed / 1e9:.1f} GB estimated for the run"
    step = "free space (`python -m tasks runs --prune`), move MEGAPAIRS_RUNS, or set a lower `limit`"
    if free < needed:
        return Check("disk", "fail", found, step)
    return Check("disk", "warn" if free < 2 * needed else "ok", found, step if free < 2 * needed else "")


def served_models(url: str, key: str | None = None) -> list[str]:
    """Names of the models that an OpenAI-compatible server serves.

    Raises:
        OSError: it does not answer.
        ValueError: its answer is no list of models.
    """
    request = urllib.request.Request(
        f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {}
    )
    with urllib.request.urlopen(request, timeout=SERVER_TIMEOUT_S) as answer:
        content = json.load(answer)
    try:
        return [str(model["id"]) for model in content["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError("no list of models") from error


ROLES: dict[str, ModelRole] = {"caption.model": "captioner", "caption.writer": "writer", "judge.model": "judge"}


def model_servers(params: Params) -> list[tuple[str, str, str]]:
    """(role, address, model) of every server that a run asks, each address of a list by itself."""
    asked = []
    if params.caption.engine == "openai":
        asked += [("caption.model", params.caption.url, params.caption.model)]
        asked += [("caption.writer", params.caption.writer_url, params.caption.writer)]
    if params.judge.engine == "openai":
        asked += [("judge.model", params.judge.url, params.judge.model)]
    return [(role, url.strip(), model) for role, urls, model in asked for url in urls.split(",") if url.strip()]


def check_servers(servers: Iterable[tuple[str, str, str]]) -> list[Check]:
    """Every model server answers and serves the model that the parameters name."""
    checks = []
    for role, url, model in servers:
        name = f"model server {url}"
        try:
            served = served_models(url, model_api_key(ROLES[role]))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                step = "set MEGAPAIRS_MODEL_API_KEY, or the connection megapairs_models"
                checks.append(Check(name, "fail", f"refuses the key ({error.code})", step))
                continue
            checks.append(Check(name, "fail", f"answers {error.code}", "look at its log", may_pass=True))
        except (OSError, ValueError) as error:
            step = f"start it with {model}; vLLM's start takes minutes"
            checks.append(Check(name, "fail", f"does not answer ({error})", step, may_pass=True))
        else:
            if model in served:
                checks.append(Check(name, "ok", f"serves {model} ({role})"))
            else:
                step = f"start it with {model}, or change {role}"
                checks.append(Check(name, "fail", f"serves {', '.join(served) or 'nothing'}, not {model}", step))
    return checks
