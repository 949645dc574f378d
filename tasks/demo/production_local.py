"""The twin of docker-compose.yaml on this machine: PostgreSQL, Redis, CeleryExecutor, two workers, no containers.

    with ProductionLocal(Path(".run/production-local")) as stack:
        stack.start_everything()
        stack.services.kill("scheduler")        # each process has a name: see NAMES
        stack.services.start("scheduler")

Commands and environment of the Airflow services are those of docker-compose.yaml and the Dockerfile, read from the
files. Hosts become free ports of the loopback, /data and /sources become folders below `root`, secrets are drawn; all
that differs besides is CHANGES. PostgreSQL and Redis are Debian's, the S3 store is moto's server, the mail catcher
aiosmtpd's. Everything ends with the context.
"""

from __future__ import annotations

import base64
import contextlib
import mailbox
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

import httpx

from tasks.demo.airflow_settings import ONE_PERSON
from tasks.demo.compose import dockerfile_environment, read_compose, read_env_file
from tasks.demo.local_airflow import PROJECT, START_TIMEOUT_S, LocalAirflow
from tasks.demo.services import Service, Services, find_program, wait_ready
from tasks.errors import ConfigError, TransientError

AIRFLOW_SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "gpu-worker")
GIT = "git"  # origin.git by HTTP, of the same image
WORKERS = ("worker", "gpu-worker")
INFRASTRUCTURE = ("postgres", "redis", "s3", "mail")
NAMES = (*INFRASTRUCTURE, *AIRFLOW_SERVICES, GIT)
PROGRAMS = {"postgres": "postgresql", "redis-server": "redis-server"}  # program -> Debian's package
POSTGRES_FOLDERS = tuple(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))  # Debian's, newest first
LOG_FOLDER = "AIRFLOW__LOGGING__BASE_LOG_FOLDER"

# What the twin sets otherwise than docker-compose.yaml, besides addresses, folders and secrets, and why.
CHANGES: dict[str, str] = {
    # Every "host" is this machine, which needs no name that others can resolve.
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "tasks.demo.loopback.hostname",
    **ONE_PERSON,
    # Its GPU worker has no GPU.
    "MEGAPAIRS_REQUIRE_GPU": "0",
    # Nothing leaves this machine.
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback that nothing listens on now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_listening(port: int) -> bool:
    """Whether something accepts connections on a port of the loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def drawn_variables(example: Path, given: Mapping[str, str]) -> dict[str, str]:
    """What a person would write into `.env`: the example's values, every secret drawn, and `given` over them.

    Args:
        example: .env.example.
        given: values of one's own.
    """
    values = read_env_file(example)
    for name in values:
        if re.search(r"PASSWORD|SECRET|_KEY$", name):
            values[name] = secrets.token_hex(16)
    values["AIRFLOW_FERNET_KEY"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return {**values, **given}


def unprivileged_user() -> str | None:
    """The user that runs PostgreSQL when this process is root's, which PostgreSQL refuses; else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ConfigError("postgres: does not run as root, and this machine has neither user postgres nor nobody; add one")


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """The text with each key of `replacements` replaced at once; a path is replaced as a whole first component."""
    keys = sorted(replacements, key=len, reverse=True)
    pattern = "|".join(rf"(?<![\w/.-]){re.escape(k)}(?![\w-])" if k[:1] == "/" else re.escape(k) for k in keys)
    return re.sub(pattern, lambda match: replacements[match[0]], text)


def worker_node(name: str) -> str:
    """Name of a worker among Celery's; two workers of one host need two."""
    return f"{name}@127.0.0.1"


class ProductionLocal(LocalAirflow):
    """The stack. Use as a context manager; `services` addresses its processes by the names of NAMES.

    Args:
        root: folder of all that it makes; emptied of an earlier stack's files by the caller.
        changes: variables set over those of the compose file, for all Airflow processes and the stages.
        variables: values of `.env` of one's own, for example {"WORKER_SLOTS": "1"}.

    Raises:
        ConfigError: PostgreSQL or Redis is not installed.
    """

    def __init__(
        self, root: Path, changes: Mapping[str, str] | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        names = ("api", "postgres", "redis", "s3", "mail", "git", "logs", "gpu-logs", "trigger-logs")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        super().__init__(root, port=self.ports["api"])
        self.programs = {name: find_program(name, POSTGRES_FOLDERS, package) for name, package in PROGRAMS.items()}
        own = {
            "MEGAPAIRS_UI": self.url,
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.ports["mail"]),
            "MEGAPAIRS_SCHEDULE": "",
            "MEGAPAIRS_SOURCE_ROOTS": str(self.root),
            "MEGAPAIRS_DEFAULT_PROFILE": "test",
            "MEGAPAIRS_RETRY_DELAY_S": "3",
            "MEGAPAIRS_GPU_QUEUE": "gpu",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        }
        self.variables = drawn_variables(PROJECT / ".env.example", {**own, **(variables or {})})
        self.compose = read_compose(PROJECT / "docker-compose.yaml", self.variables)
        self.changes = {**CHANGES, **(changes or {})}
        self.environment = self.service_environment("init")
        self.logs = self.root / "services"
        self.services = Services(self.logs)
        self.mails = self.root / "mails"
        self._postgres_folder: Path | None = None

    # --- what the compose file says, here ------------------------------------------------------------------------

    def replacements(self) -> dict[str, str]:
        """What the compose file's addresses and folders are on this machine."""
        local = "127.0.0.1"
        return {
            "@postgres/": f"@{local}:{self.ports['postgres']}/",
            "@redis:6379": f"@{local}:{self.ports['redis']}",
            "http://api-server:8080": self.url,
            "http://127.0.0.1:8080": self.url,
            "http://127.0.0.1:8090": f"http://{local}:{self.ports[GIT]}",
            "http://s3:8333": f"http://{local}:{self.ports['s3']}",
            "0.0.0.0": local,
            "/opt/megapairs": str(PROJECT),
            "/opt/airflow": str(self.root / "airflow"),
            "/data": str(self.root / "data"),
            "/sources": str(self.root / "sources"),
            "/checkout": str(PROJECT),
            "/var/cache/megapairs": str(self.root / "host-cache"),
            "/usr/local/bin/python": sys.executable,
        }

    def service_environment(self, name: str) -> dict[str, str]:
        """Environment of a service of the compose file: the image's, the file's, the twin's CHANGES, `changes`."""
        if name == GIT:  # it gets no secret, and knows no Airflow
            return {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(PROJECT)}
        image = dockerfile_environment(PROJECT / "Dockerfile")
        stated = {**image, **self.compose[name].environment}
        local = {key: replaced(value, self.replacements()) for key, value in stated.items()}
        local["AIRFLOW__API__PORT"] = str(self.port)
        # A worker is a host of its own: the api-server does not see its log files and must ask for them.
        if name in WORKERS:
            local["AIRFLOW_HOME"] = str(self.root / name)
            local[LOG_FOLDER] = str(self.root / "workers-logs")
        local["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"] = str(
            self.ports["gpu-logs" if name == WORKERS[1] else "logs"]
        )
        local["AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT"] = str(self.ports["trigger-logs"])
        inherited = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**inherited, "PATH": path, **local, **self.changes}

    def service_command(self, name: str) -> tuple[str, ...]:
        """Command of a service of this project's image: the compose file's, under this machine's interpreter."""
        words = tuple(replaced(word, self.replacements()) for word in self.compose[name].command)
        if name == GIT:
            return (sys.executable, "-m", "tasks", *words[:-1], str(self.ports[GIT]))
        # two workers of one host need two names
        more = ("--celery-hostname", worker_node(name)) if name in WORKERS else ()
        return (sys.executable, "-m", "airflow", *words, *more)

    # --- processes ---------------------------------------------------------------------------------------------------

    def start_everything(self) -> None:
        """Infrastructure, `init`, every Airflow service; returns when all are healthy and the DAGs are known.

        Call it from a thread that stays: the services end with it.

        Raises:
            TransientError: a service ended or did not answer in time; the message has its last lines.
        """
        self.migrate_and_start()
        self.wait_healthy(("dataset_refresh", "bge_vl_finetune"))

    def migrate(self) -> None:
        """Start the infrastructure and run deploy/init.sh, as the compose file's service `init` does."""
        for folder in ("data/airflow", "data/runs", "sources", "airflow", "worker", "gpu-worker"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._start_infrastructure()
        script = ("bash", str(PROJECT / "deploy" / "init.sh"))
        self.services.add(Service("init", script, self.environment, PROJECT))
        code = self.services.run("init")
        if code != 0:
            raise TransientError(f"deploy/init.sh ended with {code}:\n{self.last_lines('init')}")

    def start(self) -> None:
        """Start every Airflow service and the one of origin.git; returns at once, see `wait_healthy`."""
        for name in (GIT, *AIRFLOW_SERVICES):
            service = Service(
                name,
                self.service_command(name),
                self.service_environment(name),
                self.root / "airflow",
                is_restarted=self.compose[name].is_restarted,
            )
            self.services.add(service)
            self.services.start(name)

    def _start_infrastructure(self) -> None:
        self._add_postgres()
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        redis = self.root / "redis"
        redis.mkdir(exist_ok=True)
        settings = (*self.compose["redis"].command[1:], "--bind", "127.0.0.1", "--port", str(self.ports["redis"]))
        self.services.add(Service("redis", (self.programs["redis-server"], *settings), environment, redis))
        words = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports["s3"]))
        self.services.add(Service("s3", words, environment, self.root))
        mailbox.Maildir(self.mails, create=True)
        mail = ("-n", "-c", "aiosmtpd.handlers.Mailbox", str(self.mails), "-l", f"127.0.0.1:{self.ports['mail']}")
        self.services.add(Service("mail", (sys.executable, "-m", "aiosmtpd", *mail), environment, self.root))
        for name in INFRASTRUCTURE:
            self.services.start(name)
        for name in INFRASTRUCTURE:
            port = self.ports[name]
            wait_ready(name, lambda port=port: is_listening(port), self.services, START_TIMEOUT_S)  # type: ignore[misc]
        self._create_database()

    def _add_postgres(self) -> None:
        """Make a database cluster in a folder of its own, owned by a user that PostgreSQL accepts."""
        user = unprivileged_user()
        folder = Path(tempfile.mkdtemp(prefix="megapairs-postgres-"))
        self._postgres_folder = folder
        passwords = folder / "password"
        passwords.write_text(self.variables["POSTGRES_PASSWORD"])
        if user:
            for path in (folder, passwords):
                shutil.chown(path, user)
        data, programs = folder / "data", Path(self.programs["postgres"]).resolve().parent
        initdb = ["initdb", "-D", str(data), "-U", "airflow", "-A", "scram-sha-256", f"--pwfile={passwords}"]
        done = subprocess.run(
            [str(programs / initdb[0]), *initdb[1:], "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        passwords.unlink()
        if done.returncode != 0:
            raise TransientError(f"initdb ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
        settings = {"listen_addresses": "127.0.0.1", "port": self.ports["postgres"], "unix_socket_directories": ""}
        settings |= {"fsync": "off", "max_connections": 200}  # it needs to outlive a killed process, not a power cut
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        command = (self.programs["postgres"], "-D", str(data), *words)
        self.services.add(Service("postgres", command, environment, folder, user, signal.SIGINT))

    def _create_database(self) -> None:
        """Create Airflow's database, as the image of PostgreSQL does at its first start."""
        import psycopg2

        url = {"host": "127.0.0.1", "port": self.ports["postgres"], "user": "airflow", "dbname": "postgres"}

        def is_made() -> bool:
            with contextlib.suppress(psycopg2.OperationalError):  # it is still starting
                connection = psycopg2.connect(**url, password=self.variables["POSTGRES_PASSWORD"])
                connection.autocommit = True
                with contextlib.closing(connection), connection.cursor() as cursor:
                    cursor.execute("CREATE DATABASE airflow")
                    return True
            return False

        wait_ready("postgres", is_made, self.services, START_TIMEOUT_S)

    def check_alive(self) -> None:
        """Raise TransientError when a service has ended by itself; one that was stopped or killed here may be down."""
        self.services.check_alive()

    def stop(self) -> None:
        """End everything that was started and remove the database; logs and data stay below `root`."""
        self.services.stop_all(last=INFRASTRUCTURE)
        if self._postgres_folder is not None:
            shutil.rmtree(self._postgres_folder, ignore_errors=True)
            self._postgres_folder = None
        self._client.close()

    @property
    def clone_url(self) -> str:
        """Where anybody clones the dataset repository from."""
        return f"http://127.0.0.1:{self.ports[GIT]}/origin.git"

    # --- what a test asks --------------------------------------------------------------------------------------------

    def credentials(self) -> tuple[str, str]:
        """User and password of the web UI."""
        return "admin", self.variables["AIRFLOW_PASSWORD"]

    def received_mails(self) -> list[Message]:
        """Every mail that the catcher got, in no order."""
        return list(mailbox.Maildir(self.mails, create=False)) if self.mails.exists() else []

    def health_problem(self, name: str) -> str:
        """Run the compose file's own health check of a service; why it is not healthy, empty when it is."""
        words = [replaced(word, self.replacements()) for word in self.compose[name].healthcheck]
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        node = {"NODE_NAME": worker_node(name)} if name in WORKERS else {}
        environment = {**self.service_environment(name), **node}
        done = subprocess.run(words, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else f"{name}: {done.stderr.strip()[-300:] or done.returncode}"

    def health(self) -> dict[str, str]:
        """Component -> status of Airflow's own health page; empty while the api-server does not answer."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = self._client.get("/api/v2/monitor/health").json()
            return {name: str(part.get("status")) for name, part in answer.items()}
        return {}
