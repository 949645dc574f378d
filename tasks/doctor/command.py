"""Look at a deployment before a run does: is everything there that the week will need?

    python -m tasks doctor [--kind model] [--json]

Looks at the deployment's clone and its origin, the DVC remote, the runs' folder and its locks, the disk (an estimate
from `limit`), the model servers and what they serve, Airflow's pools and their slots, a live worker on each queue, and
the mail server. Each check prints ok, warn or fail with the next step; one that fails gives exit code 75 when trying
again may help, else 78. Run it with Airflow's environment (`docker compose exec scheduler python -m tasks doctor`);
without, pools, queues and mail are left out. The first task of every run looks at the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import parse_params, resolve
from tasks.doctor.airflow import check_mail, check_pools, check_queues
from tasks.doctor.check import Check
from tasks.doctor.places import check_disk, check_origin, check_remote, check_runs, check_servers, model_servers
from tasks.errors import ConfigError, TasksError, TransientError
from tasks.publish.git import resolve_ref
from tasks.publish.open_run import Deployment, read_deployed_params
from tasks.publish.run_conf import changes_from_conf, with_absolute_paths

log = logging.getLogger(__name__)
PROJECT = Path(__file__).resolve().parents[2]
FACTS_LIMIT_S = 120.0


def airflow_facts() -> dict[str, Any] | None:
    """What Airflow's own environment says (plugins/megapairs/facts.py, in a process of its own); None without one."""
    if not any(name.startswith("AIRFLOW_") for name in os.environ):
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "plugins")])}
    command = [sys.executable, "-m", "megapairs.facts"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=FACTS_LIMIT_S, check=False
        )
        facts = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return {"problem": "Airflow's facts could not be gathered"}
    return facts if isinstance(facts, dict) else None


def deployment_checks(conf: Mapping[str, Any], kind: str) -> list[Check]:
    """The checks that need no Airflow.

    Args:
        kind: dataset or model; a training asks no model server.
        conf: the trigger form's values of the run that is to come.
    """
    deployment = Deployment.from_environment()
    mounts = Path("/proc/mounts")
    checks = [check_origin(deployment.clone)]
    if checks[0].found.endswith("is no clone"):
        return checks
    checks.append(check_remote(deployment.clone))
    checks.append(check_runs(deployment.runs, mounts.read_text() if mounts.exists() else ""))
    try:
        code = resolve_ref(deployment.clone, deployment.deployed) or "HEAD"
        deployed = read_deployed_params(deployment.clone, code)
        profile, changes = changes_from_conf(dict(conf), deployed)
        profile = profile or os.environ.get("MEGAPAIRS_DEFAULT_PROFILE") or deployed.get("profile")
        raw = with_absolute_paths(resolve(deployed, profile, changes), deployment.sources_root or Path.cwd())
        params = parse_params(raw, where=f"params.yaml at {deployment.deployed}")
    except TasksError as error:
        # open_run is their judge: it refuses them within seconds, too
        return [*checks, Check("parameters", "warn", str(error), "mend params.yaml, or the value of the form")]
    checks.append(check_disk(deployment.clone, deployment.runs, params.open_run.limit))
    return [*checks, *check_servers(model_servers(params) if kind == "dataset" else [])]


def airflow_checks(facts: Mapping[str, Any] | None) -> list[Check]:
    """The checks of pools, queues and mail.

    Args:
        facts: as `megapairs.facts` gathers them; None where there is no Airflow.
    """
    if facts is None:
        step = "run it with Airflow's environment, for example in the scheduler's container"
        return [Check("airflow", "warn", "no Airflow here: pools, queues and mail were not looked at", step)]
    if facts.get("problem"):
        return [Check("airflow", "warn", str(facts["problem"]), "look at `airflow info`")]
    wanted = facts["wanted"]
    return [
        *check_pools(facts.get("pools"), wanted),
        *check_queues(facts.get("queues"), facts.get("pools"), wanted),
        check_mail(facts.get("smtp"), os.environ.get("MEGAPAIRS_MAIL_TO", facts.get("mail_to") or "")),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks doctor`."""
    parser.add_argument("--conf", default="{}", help="the trigger form's values of the run that is to come, JSON")
    parser.add_argument("--kind", choices=["dataset", "model"], default="dataset", help="what the run is to make")
    parser.add_argument("--airflow", help="Airflow's facts, JSON (the DAG's first task passes them)")


def run_command(args: argparse.Namespace) -> Mapping[str, Any]:
    """Look at everything and print each check.

    Raises:
        ConfigError: a check failed, and trying again cannot help; --conf or --airflow is no JSON object.
        TransientError: a check failed, and trying again may help.
    """
    try:
        conf = json.loads(args.conf)
        facts = json.loads(args.airflow) if args.airflow else airflow_facts()
    except json.JSONDecodeError as error:
        raise ConfigError(f"--conf or --airflow: not JSON ({error})") from error
    checks = [*deployment_checks(conf, args.kind), *airflow_checks(facts)]
    for check in checks:
        print(check.line())
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        text = "; ".join(f"{c.name}: {c.found} -> {c.next_step}" for c in failed)
        kind = TransientError if all(check.may_pass for check in failed) else ConfigError
        raise kind(f"doctor: {len(failed)} of {len(checks)} checks failed: {text}")
    return {"stage": "doctor", "checks": [check.to_json() for check in checks]}
