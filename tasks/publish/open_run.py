"""Open a run: check its parameters within seconds, then make the worktree that all its other stages work in.

    python -m tasks open_run --run-id RUN --kind dataset|model [--conf JSON] [--dataset-version dataset/YYYY.MM.DD[.n]]
    python -m tasks open_run --run-id RUN --close      (takes the worktree away again)

Run in the deployment's clone (MEGAPAIRS_DATASET, else the current folder). Lays the profile and the trigger form's
values over the deployed commit's params.yaml (MEGAPAIRS_DEPLOYED, default origin/main), takes the next free version
name, makes MEGAPAIRS_RUNS/<slug of the run id>, brings in the last version's data and writes the resolved params.yaml
there. A second call with the same run id gives the same worktree and the same name. The worktree's path is `notes[0]`
of the report.

conf, the form's values: `profile`, `sources`, the names of section open_run (`limit`, `dry_run`, `seed`, `date` ...),
and any parameter by its dotted name (`mine.neighbours`) or nested ({"mine": {"neighbours": 5}}). An empty value (null)
of a
plain or dotted name means: as the profile says. Relative source, benchmark and truth paths are taken from
MEGAPAIRS_SOURCES_ROOT (else the current folder) and stored absolute; model paths stay as they are, they lie in the
code.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.config import overlay, parse_params, resolve
from tasks.errors import ConfigError, DataError
from tasks.names import run_date, slug
from tasks.publish.dvc_repo import bring_in
from tasks.publish.git import common_dir, files_at, git, next_free, read_at, resolve_ref, tags
from tasks.publish.publish import close_run, fetch
from tasks.publish.published import REMOTE_BRANCH, version_at
from tasks.publish.run_conf import Kind, changes_of, check_places, located
from tasks.records import StageReport
from tasks.store import Store

MARKER = "opened.json"


def data_ref(clone: Path, kind: Kind, dataset_version: str | None) -> str | None:
    """The commit whose data the run starts from: the branch's tip, or for training the version asked for (default: the
    newest).
    """
    if kind == "dataset":
        return resolve_ref(clone, REMOTE_BRANCH)
    known = tags(clone, "dataset")
    if dataset_version and not dataset_version.startswith("dataset/"):
        dataset_version = f"dataset/{dataset_version}"
    tag = dataset_version or (known[-1] if known else None)
    if tag is None:
        raise ConfigError("no dataset version to train on; run dataset_refresh first")
    if tag not in known:
        raise ConfigError(f"--dataset-version: no version {tag}; known: {known[-5:]}")
    return resolve_ref(clone, f"refs/tags/{tag}")


def bring_version(worktree: Path, ref: str, tip: str | None) -> None:
    """Put a version's lock, version.json, manifest and data into the worktree, and from the branch's tip the model in
    place and the recipes' noise.

    Raises:
        DataError: what arrived is not what version.json counts.
    """
    lock = read_at(worktree, ref, "dvc.lock")
    pointers = {path: ref for path in files_at(worktree, ref) if path == "data/export.dvc"}
    if tip and read_at(worktree, tip, "models/promoted.dvc"):
        pointers["models/promoted.dvc"] = tip
    if tip:  # what `python -m tasks noise` measured
        pointers |= {
            path: tip for path in files_at(worktree, tip) if path.startswith("reports/noise-") and path.endswith(".dvc")
        }
    for path in ("version.json", "manifest.json"):
        if content := read_at(worktree, ref, path):
            (worktree / path).write_bytes(content)
    for path, commit in pointers.items():
        (worktree / path).parent.mkdir(parents=True, exist_ok=True)
        (worktree / path).write_bytes(read_at(worktree, commit, path) or b"")
    (worktree / "dvc.lock").write_bytes(lock or b"")
    bring_in(worktree)
    version = json.loads((worktree / "version.json").read_text())
    store = Store(worktree)
    for table, rows in version["rows"].items():
        found = sum(pq_rows(p) for p in store.table_files(table))
        if found != rows:
            raise DataError(
                f"{version['version']}: table {table} has {found} rows here, version.json counts {rows}; "
                "has the deployed dvc.yaml renamed a stage or an output? Deploy one that keeps it, or run `dvc pull` in the clone"
            )


def pq_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def open_run(
    clone: Path,
    runs: Path,
    run_id: str,
    kind: Kind,
    conf: Mapping[str, Any] | None = None,
    *,
    dataset_version: str | None = None,
    deployed: str = "origin/main",
    sources_root: Path | None = None,
) -> StageReport:
    """Make (or find again) the run's worktree; see the module's docstring.

    Raises:
        ConfigError: a wrong value, an unknown key, a folder or a version that is not there. Nothing is left behind.
    """
    conf = dict(conf or {})
    dataset_version = conf.pop("dataset_version", None) or dataset_version
    worktree = (runs / slug(run_id)).resolve()
    marker = worktree / ".run" / MARKER
    if marker.exists():
        opened = json.loads(marker.read_text())
        return StageReport("open_run", notes=[str(worktree), f"version {opened['batch']}, opened before"])
    fetch(clone)
    commit = resolve_ref(clone, deployed)
    if commit is None:
        raise ConfigError(f"MEGAPAIRS_DEPLOYED: {clone} has no commit {deployed!r}")
    raw = yaml.safe_load(read_at(clone, commit, "params.yaml") or b"{}")
    profile, changes = changes_of(conf, raw)
    resolved = located(resolve(raw, profile or raw.get("profile"), changes), sources_root or Path.cwd())
    params = parse_params(resolved, where=f"params.yaml at {deployed} and the trigger form")
    check_places(params, kind)
    ref = data_ref(clone, kind, dataset_version)
    date = run_date(params)
    batch = params.open_run.batch or next_free(tags(clone, kind), date)
    if f"{kind}/{batch}" in tags(clone, kind):
        raise ConfigError(f"open_run.batch: {kind}/{batch} is published already; leave it empty for the next free name")
    resolved = overlay(resolved, {"open_run": {"date": date, "batch": batch}})

    runs.mkdir(parents=True, exist_ok=True)
    if worktree.exists():  # an earlier call was killed half-way: nothing in it is finished
        shutil.rmtree(worktree)
    git(clone, "worktree", "prune")
    # twice: also one whose making was cut off
    git(clone, "worktree", "add", "-q", "--force", "--force", "--detach", str(worktree), commit)
    local = clone / ".dvc" / "config.local"
    if local.exists():
        shutil.copyfile(local, worktree / ".dvc" / "config.local")
    store = Store(worktree)
    store.write_bytes(worktree / "params.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).encode())
    parent = None
    if ref:
        bring_version(worktree, ref, resolve_ref(clone, REMOTE_BRANCH))
        parent = (version_at(clone, ref) or {}).get("version")
    store.write_bytes(
        marker,
        json.dumps({"run_id": run_id, "kind": kind, "batch": batch, "parent": parent, "deployed": commit}).encode(),
    )
    return StageReport(
        "open_run",
        notes=[
            str(worktree),
            f"version {batch}, after {parent or 'nothing'}, profile {params.profile}, code {commit[:12]}",
        ],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks open_run`."""
    parser.add_argument("--run-id", required=True, help="the run's id; the same id gives the same worktree")
    parser.add_argument("--kind", choices=["dataset", "model"], help="make a version, or train on one")
    parser.add_argument("--close", action="store_true", help="remove the run's worktree; what it published stays")
    parser.add_argument("--conf", default="{}", help="the trigger form's values, JSON")
    parser.add_argument("--dataset-version", help="tag of the version to train on; the newest when left out")


def run_command(args: argparse.Namespace) -> StageReport:
    """Open or close a run.

    Raises:
        ConfigError: a wrong argument; as of `open_run`.
    """
    try:
        conf = json.loads(args.conf or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"--conf: not JSON ({error}): {args.conf!r}") from error
    if not isinstance(conf, dict):
        raise ConfigError(f"--conf: expected a JSON object, found {args.conf!r}")
    clone = Path(os.environ.get("MEGAPAIRS_DATASET") or Path.cwd())
    runs = Path(os.environ.get("MEGAPAIRS_RUNS") or clone.resolve().parent / "runs")
    if args.close:
        close_run(runs / slug(args.run_id), clone)
        return StageReport("open_run", notes=[f"closed {runs / slug(args.run_id)}"])
    if args.kind is None:
        raise ConfigError("--kind: expected dataset or model")
    root = os.environ.get("MEGAPAIRS_SOURCES_ROOT")
    start = time.monotonic()
    report = open_run(
        common_dir(clone).parent,
        runs,
        args.run_id,
        args.kind,
        conf,
        dataset_version=args.dataset_version or None,
        deployed=os.environ.get("MEGAPAIRS_DEPLOYED", "origin/main"),
        sources_root=Path(root) if root else None,
    )
    report.seconds = round(time.monotonic() - start, 3)
    return report
