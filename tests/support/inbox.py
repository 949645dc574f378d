"""A mail server on loopback that keeps what it gets, and the Airflow connection that leads to it."""

import email
import email.policy
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

from tasks.demo.local_airflow import free_port
from tests.support.waiting import wait_until


def html_body(mail: Any) -> str:
    """The page that a mail shows."""
    return str(mail.get_body(preferencelist=("html",)).get_content())


class Inbox:
    """An aiosmtpd handler that keeps the mails."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        if folder := os.environ.get("KEEP_MAILS"):  # to look at them
            Path(folder, f"{len(self.mails)}-{time.time_ns()}.eml").write_bytes(envelope.content)
        return "250 OK"

    def wait_for_one(self, seen: int) -> Any:
        """The one mail after the first `seen`; a task's mail may come after its run has ended."""
        wait_until(lambda: len(self.mails) > seen, "a mail has come")
        (mail,) = self.mails[seen:]
        return mail


@contextmanager
def serving_inbox() -> Iterator[tuple[Inbox, str]]:
    """The inbox of a running server, and the value of AIRFLOW_CONN_SMTP_DEFAULT that sends mails there."""
    inbox, port = Inbox(), free_port()
    controller = Controller(inbox, hostname="127.0.0.1", port=port)
    controller.start()
    extra = {"disable_tls": True, "disable_ssl": True, "from_email": "factory@example.org"}
    try:
        yield inbox, json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra})
    finally:
        controller.stop()
