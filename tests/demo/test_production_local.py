"""The local twin against the compose file, without starting anything: the same variables, commands and queues."""

from pathlib import Path

import pytest

from tasks.demo import production_local
from tasks.demo.compose import dockerfile_environment
from tasks.demo.production_local import AIRFLOW_SERVICES, CHANGES, WORKERS, ProductionLocal, drawn_variables, replaced
from tests.support.programs import require_production_programs

# Set by the twin besides: what a container has by being one, and the ports of two log servers on one host.
OF_THE_MACHINE = {"PATH", "HOME", "LANG", "TMPDIR"} | {
    f"AIRFLOW__LOGGING__{n}_LOG_SERVER_PORT" for n in ("WORKER", "TRIGGER")
}
# The names of the containers and their folders; none may be left in what runs here.
OF_CONTAINERS = ("@postgres", "@redis:", "//api-server", "//s3:", "/opt/megapairs", "/opt/airflow", "0.0.0.0")

FOLDERS = ("/data", "/sources", "/checkout", "/usr/local/bin", "/var/cache")


@pytest.fixture
def stack(tmp_path: Path) -> ProductionLocal:
    require_production_programs()
    return ProductionLocal(tmp_path)


def test_the_twin_has_the_compose_files_environment(stack: ProductionLocal, project: Path, tmp_path: Path):
    image = dockerfile_environment(project / "Dockerfile")
    for name in (*AIRFLOW_SERVICES, "init"):
        stated = {**image, **stack.compose[name].environment}
        here = stack.service_environment(name)
        assert set(here) - OF_THE_MACHINE == set(stated) | set(CHANGES), name
        for key, value in here.items():
            assert not any(word in value for word in OF_CONTAINERS), f"{name}: {key}={value}"
        kept = {k for k in stated if not any(word in stated[k] for word in (*OF_CONTAINERS, *FOLDERS))}
        assert {k for k in kept - set(CHANGES) if here[k] != stated[k]} <= {"AIRFLOW__API__PORT"}, name


def test_the_twin_runs_the_compose_files_commands(stack: ProductionLocal):
    for name in AIRFLOW_SERVICES:
        words = stack.service_command(name)[3:]
        assert words[: len(stack.compose[name].command)] == stack.compose[name].command, name
        assert (len(words) > len(stack.compose[name].command)) == (name in WORKERS)
        assert stack.compose[name].is_restarted, (
            f"{name}: Airflow's processes end when the database is away for seconds"
        )
    assert stack.compose["init"].command == ("/opt/megapairs/deploy/init.sh",)
    assert stack.compose["git"].environment == {}  # it serves strangers: no secret is in its environment
    assert not {k for k in stack.service_environment("git") if k.startswith(("AIRFLOW", "AWS", "MEGAPAIRS"))}


def test_a_workers_logs_are_not_where_the_api_server_looks(stack: ProductionLocal):
    folders = {name: stack.service_environment(name)[production_local.LOG_FOLDER] for name in AIRFLOW_SERVICES}
    assert folders["worker"] == folders["gpu-worker"] != folders["api-server"] == folders["scheduler"]


def test_secrets_are_drawn_and_ones_own_values_win(project: Path):
    example = project / ".env.example"
    one, other = drawn_variables(example, {}), drawn_variables(example, {"S3_ACCESS_KEY": "mine"})
    secrets = {n for n, value in one.items() if other[n] != value}
    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW_JWT_SECRET", "AIRFLOW_FERNET_KEY"} <= secrets
    assert other["S3_ACCESS_KEY"] == "mine"


def test_paths_are_replaced_as_whole_components_and_only_once():
    replacements = {"/data": "/x/data", "http://s3:8333": "http://127.0.0.1:1"}
    assert replaced("/data/runs:/mydata:/database:http://s3:8333/b", replacements) == (
        "/x/data/runs:/mydata:/database:http://127.0.0.1:1/b"
    )


def test_no_ports_are_shared(stack: ProductionLocal):
    assert len(set(stack.ports.values())) == len(stack.ports)
