"""Open a run: check its parameters within seconds, then make the worktree that all its other stages work in.

    python -m tasks open_run --run-id RUN --kind dataset|model [--conf JSON] [--dataset-version dataset/YYYY.MM.DD[.n]]
    python -m tasks open_run --run-id RUN --close      (removes the worktree again)

Run it in the deployment's clone (MEGAPAIRS_DATASET, else the current folder). It lays the profile and the trigger
form's values over the deployed commit's params.yaml (MEGAPAIRS_DEPLOYED, default origin/main), takes the next free
version name, makes MEGAPAIRS_RUNS/<slug of the run id>, checks out the last version's data and writes the resolved
params.yaml there. A second call with the same run id gives the same worktree and the same name. The worktree's path is
`notes[0]` of the report.

conf, the form's values: `profile`, `sources`, the names of section open_run (`limit`, `dry_run`, `seed`, `date` ...),
and any parameter by its dotted name (`mine.neighbours`) or nested ({"mine": {"neighbours": 5}}). An empty value (null)
of a plain or dotted name means: as the profile has it. Relative paths of sources, benchmark and truth are taken from
MEGAPAIRS_SOURCES_ROOT (else the current folder) and stored absolute. Model paths stay as they are, because they lie in
the code. What a run may read and which model servers it may ask: tasks/publish/allowed.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tasks.config import (
    Params,
    is_profile,
    overlay,
    parse_params,
    parse_raw,
    resolve,
    training_run_contradictions,
    uncalibrated_windows,
)
from tasks.config.public import require_no_credentials
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown_list import Entry
from tasks.locks import exclusive
from tasks.names import slug
from tasks.publish.allowed import Allowed, require_allowed
from tasks.publish.code_versions import code_difference
from tasks.publish.dvc_repo import checkout_data
from tasks.publish.git import common_dir, files_at, git, next_free_name, read_at, resolve_ref, tags
from tasks.publish.order import date_after, require_name_after
from tasks.publish.publish import fetch
from tasks.publish.published import REMOTE_BRANCH, count_parquet_rows, version_at
from tasks.publish.rewritten import with_encoders_of
from tasks.publish.run_conf import Kind, changes_from_conf, gate_follows_threshold, require_paths, with_absolute_paths
from tasks.publish.takedown_list import add_to_list, all_entries, form_entries, with_run_list, with_source_uris
from tasks.publish.verify import tracked_outputs
from tasks.records import StageReport
from tasks.reviews.verdicts import Decided, Verdict, run_verdicts, write_verdicts
from tasks.store import Store
from tasks.store.atomic import write_bytes
from tasks.store.shards import move_old_shards

log = logging.getLogger(__name__)
MARKER = Path(".run", "opened.json")  # in the worktree; written last, so a run that has it is open
DATA_POINTERS = ("data/export.dvc", "data/rows.dvc", "data/withdrawn.dvc")  # of data that no stage of dvc.yaml makes
LOCK_TIMEOUT_S = 600.0  # a checkout of the code takes seconds


@dataclass(frozen=True)
class RunRequest:
    """A run to open.

    Attributes:
        run_id: Airflow's run id, or any text.
        kind: dataset (makes a version) or model (trains on one).
        conf: the trigger form's values.
        dataset_version: tag of the version to train on, the newest when None. For kind dataset: of the version that the
            run rewrites, leaving the branch as it is (`python -m tasks purge`); None: it continues the branch's tip.
    """

    run_id: str
    kind: Kind
    conf: Mapping[str, Any] = field(default_factory=dict)
    dataset_version: str | None = None


@dataclass(frozen=True)
class Deployment:
    """Where runs are opened.

    Attributes:
        clone: the deployment's clone; runs are its worktrees.
        runs: folder of the worktrees.
        deployed: git ref of the code that runs.
        sources_root: what relative paths of the form start from; the current folder when None.
        takedown: the deployment's takedown list; takedown.jsonl beside the clone when None.
    """

    clone: Path
    runs: Path
    deployed: str = "origin/main"
    sources_root: Path | None = None
    takedown: Path | None = None

    @property
    def takedown_list(self) -> Path:
        """The deployment's takedown list; it may not exist."""
        return self.takedown or self.clone.resolve().parent / "takedown.jsonl"

    @classmethod
    def from_environment(cls) -> Deployment:
        """As MEGAPAIRS_DATASET, _RUNS, _DEPLOYED, _SOURCES_ROOT and _TAKEDOWN say."""
        clone = Path(os.environ.get("MEGAPAIRS_DATASET") or Path.cwd())
        runs = Path(os.environ.get("MEGAPAIRS_RUNS") or clone.resolve().parent / "runs")
        root = os.environ.get("MEGAPAIRS_SOURCES_ROOT")
        deployed = os.environ.get("MEGAPAIRS_DEPLOYED", "origin/main")
        takedown = os.environ.get("MEGAPAIRS_TAKEDOWN")
        return cls(clone, runs, deployed, Path(root) if root else None, Path(takedown) if takedown else None)

    def worktree(self, run_id: str) -> Path:
        """The worktree of a run; not made here."""
        return (self.runs / slug(run_id)).resolve()


@dataclass(frozen=True)
class RunPlan:
    """A request that was checked: all that is needed to make the worktree.

    Attributes:
        raw: the resolved params.yaml of the run, with its date and batch.
        params: the same, parsed.
        code: commit of the code.
        data: commit whose data the run starts from; None for the first version.
        batch: the run's version name.
        warnings: what the run's report shall warn of.
        takedown: entries of all takedown lists.
        verdicts: what people decided about triplets.
    """

    raw: dict[str, Any]
    params: Params
    code: str
    data: str | None
    batch: str
    warnings: tuple[str, ...] = ()
    takedown: tuple[Entry, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


def find_data_commit(clone: Path, kind: Kind, dataset_version: str | None) -> str | None:
    """The commit whose data the run starts from: the branch's tip; for training the named version, or the newest.

    Raises:
        ConfigError: there is no such version, or none to train on.
    """
    if kind == "dataset" and dataset_version is None:
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


def read_deployed_params(clone: Path, commit: str) -> dict[str, Any]:
    """params.yaml of a commit as a mapping, with the profiles of that commit (or of this code where it has none).

    Raises:
        ConfigError: a file that is no mapping.
    """
    profiles = {path: read_at(clone, commit, path) or b"" for path in files_at(clone, commit) if is_profile(path)}
    return parse_raw(read_at(clone, commit, "params.yaml") or b"", profiles, where=f"params.yaml at {commit[:12]}")


def require_own_name(own: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Raise ConfigError where a run names another dataset than its deployment.

    A name alone makes no dataset: the run would add its images to the versions of this one.

    Args:
        own: the deployment's parameters, resolved without the run's own values.
        resolved: the run's.
    """
    name, found = (values.get("open_run", {}).get("dataset") for values in (own, resolved))
    if name != found:
        raise ConfigError(
            f"open_run.dataset: {found!r} is not the dataset of this deployment; expected {name!r}, or no name at all; "
            f"a dataset is a deployment of its own: `python -m tasks new-dataset {found} --source FOLDER` lays it out, "
            f"`make ui DATASET={found}` opens it"
        )


def plan_run(request: RunRequest, deployment: Deployment) -> RunPlan:
    """Resolve and check a run's parameters; nothing is made.

    Raises:
        ConfigError: a wrong value, an unknown key, parameters that contradict each other, a folder or a version that
            does not exist.
    """
    clone, conf, sources_root = deployment.clone, dict(request.conf), deployment.sources_root or Path.cwd()
    is_training = request.kind == "model"
    dataset_version = (is_training and conf.pop("dataset_version", None)) or request.dataset_version
    if (code := resolve_ref(clone, deployment.deployed)) is None:
        raise ConfigError(f"MEGAPAIRS_DEPLOYED: {clone} has no commit {deployment.deployed!r}")
    deployed_params = read_deployed_params(clone, code)
    profile, changes = changes_from_conf(conf, deployed_params)
    if (changes.get("open_run") or {}).get("takedown"):
        changes = overlay(changes, {"ingest": {"sources": []}})
    profile = profile or deployed_params.get("profile")
    own = resolve(deployed_params, profile, {})
    changes, lowered = gate_follows_threshold(conf, changes, own)
    resolved = resolve(deployed_params, profile, changes)
    require_own_name(own, resolved)
    require_no_credentials(resolved)
    raw = with_absolute_paths(resolved, sources_root)
    params = parse_params(raw, where=f"params.yaml at {deployment.deployed} and the trigger form")
    own = with_absolute_paths(own, sources_root)
    allowed = Allowed.from_environment(os.environ, clone, sources_root)
    require_paths(params, request.kind)
    require_allowed(params, allowed.also(own))
    if is_training and (contradictions := training_run_contradictions(params.train, params.evaluate)):
        raise ConfigError("; ".join(contradictions))
    data = find_data_commit(clone, request.kind, dataset_version)
    takedown = tuple(with_source_uris([] if is_training else all_entries(params, deployment.takedown_list), own))
    is_rewritten = is_training or bool(request.dataset_version)  # keeps its rows, but for takedowns
    verdicts, faults = Decided() if is_rewritten else run_verdicts(clone, is_takedown=bool(params.open_run.takedown))
    parent = version_at(clone, data) if data and request.kind == "dataset" else None
    date = date_after(parent, params)
    batch = params.open_run.batch or next_free_name(tags(clone, request.kind), date)
    if f"{request.kind}/{batch}" in tags(clone, request.kind):
        raise ConfigError(
            f"open_run.batch: {request.kind}/{batch} is published already; leave it empty for the next free name"
        )
    require_name_after(parent, batch)
    roles = [] if is_training else uncalibrated_windows(deployed_params, profile, changes)
    warnings = [
        f"profile '{profile}': mine.windows of {', '.join(roles)} are not calibrated for its encoders; "
        "`python -m tasks calibrate` proposes windows for the trigger form or the profile's file"
    ]
    warnings = [*lowered, *(warnings if roles else []), *faults]
    if difference := code_difference(clone, os.environ.get("MEGAPAIRS_AIRFLOW_COMMIT", ""), code):
        warnings.append(difference)
    raw = with_encoders_of(raw, parent) if request.dataset_version else raw
    raw = overlay(raw, {"open_run": {"date": date, "batch": batch}})
    return RunPlan(raw, params, code, data, batch, tuple(warnings), takedown, tuple(verdicts))


def make_worktree(clone: Path, worktree: Path, commit: str) -> None:
    """Make the worktree at a commit, with the clone's DVC configuration; what a killed call left is removed.

    A killed call's git lives on and writes into the worktree; it holds the lock, so that it has ended before this one.
    """
    worktree.parent.mkdir(parents=True, exist_ok=True)
    lock_file = common_dir(clone) / "worktrees.lock"
    problem = f"{lock_file}: git has been making a worktree for {LOCK_TIMEOUT_S:.0f} s; end that git, then run again"
    with exclusive(lock_file, LOCK_TIMEOUT_S, problem) as lock:
        if worktree.exists():
            shutil.rmtree(worktree)
        git(clone, "worktree", "prune")
        # forced twice: also over one whose making was cut off
        add = ["worktree", "add", "-q", "--force", "--force", "--detach", str(worktree), commit]
        git(clone, *add, keep_open=[lock])
    local = clone / ".dvc" / "config.local"
    if local.exists():
        shutil.copyfile(local, worktree / ".dvc" / "config.local")


def restore_version(worktree: Path, commit: str, tip: str | None) -> None:
    """Restore a version in the worktree: its lock, version.json, manifest and data.

    The promoted model and the recipes' seed noise (`python -m tasks noise`) come from the branch's tip.

    Args:
        commit: of the version.
        tip: of the branch.
    Raises:
        DataError: what arrived is not what version.json counts.
    """
    pointers = {path: commit for path in files_at(worktree, commit) if path in DATA_POINTERS}
    if tip:
        noise = [p for p in files_at(worktree, tip) if p.startswith("reports/noise-") and p.endswith(".dvc")]
        model = ["models/promoted.dvc"] if read_at(worktree, tip, "models/promoted.dvc") else []
        pointers |= dict.fromkeys([*model, *noise], tip)
    for path in ("version.json", "manifest.json"):
        if content := read_at(worktree, commit, path):
            (worktree / path).write_bytes(content)
    for path, source in pointers.items():
        (worktree / path).parent.mkdir(parents=True, exist_ok=True)
        (worktree / path).write_bytes(read_at(worktree, source, path) or b"")
    (worktree / "dvc.lock").write_bytes(read_at(worktree, commit, "dvc.lock") or b"")
    checkout_data(worktree, [output.path for output in tracked_outputs(worktree)])
    move_old_shards(worktree)
    require_rows(worktree)


def require_rows(worktree: Path) -> None:
    """Raise DataError when a table has another number of rows than version.json counts."""
    version = json.loads((worktree / "version.json").read_text())
    store = Store(worktree)
    for table, expected in version["rows"].items():
        rows = count_parquet_rows(store.table_files(table))
        if rows != expected:
            raise DataError(
                f"{version['version']}: table {table} has {rows} rows here, version.json counts {expected}; "
                "has the deployed dvc.yaml renamed a stage or an output? "
                "Deploy one that keeps it, or run `dvc pull` in the clone"
            )


def open_run(request: RunRequest, deployment: Deployment) -> StageReport:
    """Make (or find again) the run's worktree; see the module's docstring.

    Raises:
        ConfigError: as of `plan_run`; nothing is left behind.
        DataError: as of `restore_version`.
    """
    clone, worktree = deployment.clone, deployment.worktree(request.run_id)
    marker = worktree / MARKER
    if marker.exists():
        opened = json.loads(marker.read_text())
        return StageReport("open_run", notes=[str(worktree), f"version {opened['batch']}, opened before"])
    fetch(clone)
    plan = plan_run(request, deployment)
    for warning in plan.warnings:
        log.warning("open_run: %s", warning)
    make_worktree(clone, worktree, plan.code)
    if plan.params.open_run.takedown and not plan.params.open_run.dry_run:
        add_to_list(deployment.takedown_list, form_entries(plan.params))
    params_yaml = yaml.safe_dump(with_run_list(plan.raw, worktree, plan.takedown), sort_keys=False, allow_unicode=True)
    write_bytes(worktree / "params.yaml", params_yaml.encode())
    write_verdicts(worktree, plan.verdicts)
    parent = None
    if plan.data:
        restore_version(worktree, plan.data, resolve_ref(clone, REMOTE_BRANCH))
        parent = (version_at(clone, plan.data) or {}).get("version")
    facts = {
        "rewrites": request.dataset_version if request.kind == "dataset" else None,
        "run_id": request.run_id,
        "kind": request.kind,
        "batch": plan.batch,
        "warnings": list(plan.warnings),
    }
    write_bytes(marker, json.dumps({**facts, "parent": parent, "deployed": plan.code}).encode())
    after = f"version {plan.batch}, after {parent or 'nothing'}, profile {plan.params.profile}, code {plan.code[:12]}"
    after += f", {len(plan.verdicts)} verdicts of people" if plan.verdicts else ""
    return StageReport("open_run", notes=[str(worktree), after, *plan.warnings])


def close_run(worktree: Path, clone: Path | None = None) -> None:
    """Remove a run's worktree, if there is one; what it published lives in origin and in the DVC remote.

    Args:
        clone: the deployment's clone; the worktree tells it when None.
    """
    if worktree.exists():
        clone = clone or common_dir(worktree).parent
        git(clone, "worktree", "remove", "--force", "--force", str(worktree.resolve()))


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
    deployment = Deployment.from_environment()
    if args.close:
        folder = deployment.runs / slug(args.run_id)
        close_run(folder, deployment.clone)
        return StageReport("open_run", notes=[f"closed {folder}"])
    if args.kind is None:
        raise ConfigError("--kind: expected dataset or model")
    start = time.monotonic()
    root = common_dir(deployment.clone).parent  # the clone itself, also when started in one of its worktrees
    request = RunRequest(args.run_id, args.kind, conf, args.dataset_version or None)
    report = open_run(request, replace(deployment, clone=root))
    report.seconds = round(time.monotonic() - start, 3)
    return report
