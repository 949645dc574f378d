"""Checks of Airflow's pools, queues and mail, from facts that `megapairs.facts` gathers."""

from __future__ import annotations

import smtplib
from collections.abc import Mapping
from typing import Any

from tasks.doctor.check import Check

SMTP_TIMEOUT_S = 10.0


def check_pools(pools: Mapping[str, int] | None, wanted: Mapping[str, str]) -> list[Check]:
    """Every pool that the DAGs use exists and has slots.

    Args:
        pools: name -> slots; None when they could not be read.
        wanted: pool -> the queue of its tasks.
    """
    if pools is None:
        how = "set the connection megapairs_api, or run `python -m tasks doctor` beside the scheduler"
        return [Check("pools", "warn", "could not be read", how)]
    checks = []
    for name in wanted:
        slots = pools.get(name)
        if slots:
            checks.append(Check(f"pool {name}", "ok", f"{slots} slots"))
        else:
            found = "there is none: its tasks would wait for ever" if slots is None else "it has no slot"
            checks.append(Check(f"pool {name}", "fail", found, f"airflow pools set {name} 1 'stages of the factory'"))
    return checks


def check_queues(
    queues: Mapping[str, int] | None, pools: Mapping[str, int] | None, wanted: Mapping[str, str]
) -> list[Check]:
    """Every queue has a live worker, with at least as many processes as its pools have slots.

    Args:
        queues: queue -> processes of the workers that consume it; None where the executor has no queues.
        pools: name -> slots; None when they could not be read.
        wanted: pool -> the queue of its tasks.
    """
    if queues is None:
        return []
    checks = []
    for queue in sorted({*wanted.values(), "default"}):
        processes = queues.get(queue, 0)
        slots = {name: (pools or {}).get(name, 0) for name, its_queue in wanted.items() if its_queue == queue}
        most = max(slots.values(), default=0)
        if not processes:
            step = f"start one: airflow celery worker -q {queue}"
            checks.append(Check(f"queue {queue}", "fail", "no worker consumes it", step, may_pass=True))
        elif most > processes:
            pool = max(slots, key=lambda name: slots[name])
            step = f"start a worker with -c {most}, or: airflow pools set {pool} {processes} ''"
            found = f"{processes} worker processes for {most} slots of pool {pool}: tasks wait in the queue"
            checks.append(Check(f"queue {queue}", "warn", found, step))
        else:
            checks.append(Check(f"queue {queue}", "ok", f"{processes} worker processes"))
    return checks


def check_mail(server: Mapping[str, Any] | None, receivers: str) -> Check:
    """The mail server of connection smtp_default answers.

    Args:
        server: {"host", "port", "ssl"} of the connection; None when there is none.
        receivers: MEGAPAIRS_MAIL_TO.
    """
    if not receivers.strip():
        return Check("mail", "warn", "MEGAPAIRS_MAIL_TO is empty: nobody is told", "name a receiver")
    if not server or not server.get("host"):
        return Check(
            "mail", "fail", "connection smtp_default is not set", "set AIRFLOW_CONN_SMTP_DEFAULT (.env.example)"
        )
    address = f"{server['host']}:{server.get('port') or 25}"
    kind = smtplib.SMTP_SSL if server.get("ssl") else smtplib.SMTP
    try:
        with kind(str(server["host"]), int(server.get("port") or 25), timeout=SMTP_TIMEOUT_S) as connection:
            connection.noop()
    except (OSError, smtplib.SMTPException) as error:
        step = "start it, or change connection smtp_default"
        return Check("mail", "fail", f"{address} does not answer ({error})", step, may_pass=True)
    return Check("mail", "ok", f"{address} answers")
