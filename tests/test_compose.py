"""docker-compose.yaml, Dockerfile and .env.example, checked without Docker: form, commands, images, variables.

What the containers do is not proven here; the README says which parts were run.
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.__main__ import COMMANDS
from tasks.config import read_raw
from tasks.demo.compose import interpolate

SERVICES = {
    *("init", "api-server", "scheduler", "dag-processor", "triggerer", "git", "worker", "gpu-worker"),
    *("vllm", "vllm-writer", "vllm-2", "postgres", "redis", "s3", "mail", "studio"),
}
SERVICE_KEYS = {
    *("image", "build", "restart", "environment", "volumes", "depends_on", "user", "entrypoint", "command"),
    *("ports", "healthcheck", "profiles", "stop_grace_period", "deploy", "ipc", "configs"),
    *("read_only", "tmpfs", "cap_drop", "security_opt"),
}
TOP_KEYS = {"name", "services", "configs", "volumes"}
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "gpu-worker")
VARIABLE_NAME = re.compile(r"(MEGAPAIRS|TASKS)_[A-Z_]+")
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(Path("docker-compose.yaml").read_text())


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    lines = [line for line in Path(".env.example").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [t for k, v in value.items() for t in [str(k), *texts(v)]]
    return [t for v in value for t in texts(v)] if isinstance(value, list) else [str(value)]


def test_the_file_has_the_form_of_a_compose_file(compose: dict[str, Any]):
    assert {k for k in compose if not k.startswith("x-")} == TOP_KEYS
    assert set(compose["services"]) == SERVICES
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert service.get("image") or service.get("build"), name
        assert service["command"] and isinstance(service["command"], list), name
        image = interpolate(service["image"], {})
        assert ":" in image and not image.endswith(":latest"), f"{name}: an image needs a pinned tag"


def test_no_key_is_given_twice():
    """Docker refuses such a file; PyYAML takes the last one without a word."""

    def walk(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if key.value != "<<"]
            assert len(keys) == len(set(keys)), sorted(k for k in set(keys) if keys.count(k) > 1)
            for _, value in node.value:
                walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item)

    walk(yaml.compose(Path("docker-compose.yaml").read_text()))


def test_whatever_a_service_refers_to_is_declared(compose: dict[str, Any]):
    for name, service in compose["services"].items():
        for other, how in service.get("depends_on", {}).items():
            assert other in compose["services"], f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][other], f"{name} waits for {other} to be healthy"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith((".", "/", "$")), f"{name}: volume {source}"
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: port {port} is open to the network"


def gpu_devices(service: dict[str, Any], variables: dict[str, str]) -> list[str]:
    """Numbers of the GPUs that a service gets."""
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and "count" not in device, "count takes GPU 0, whoever has it already"
    return [interpolate(number, variables) for number in device["device_ids"]]


def test_services_run_locked_down(compose: dict[str, Any]):
    """Ours and what has no need of root: a plain user, a read-only root, no capability; nobody gains privileges."""
    assert re.search(r"^USER airflow$", Path("Dockerfile").read_text(), re.M)
    theirs = {"s3", "vllm", "vllm-writer", "vllm-2"}  # images that start as root and write where they like
    for name, service in compose["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name not in theirs:
            assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "/tmp" in service["tmpfs"], name
            assert str(service.get("user", "airflow")) not in ("0", "root", "0:0"), name


def test_what_sqlite_writes_is_not_on_the_shared_volume(compose: dict[str, Any]):
    for name in (*AIRFLOW, "init"):
        service = compose["services"][name]
        folder = service["environment"]["DVC_SITE_CACHE_DIR"]
        volume = next(v for v in service["volumes"] if folder.startswith(v.split(":")[1] + "/"))
        assert volume.split(":")[0] == "host-cache", f"{name}: {volume}"


def test_the_gpu_profile_holds_the_worker_and_the_servers_that_params_call(compose: dict[str, Any]):
    services = compose["services"]
    assert {n for n, s in services.items() if s.get("profiles") == ["gpu"]} == {"gpu-worker", "vllm", "vllm-writer"}
    devices = {n: gpu_devices(services[n], {}) for n in ("gpu-worker", "vllm", "vllm-writer", "vllm-2")}
    assert len({d for ids in devices.values() for d in ids}) == 4, f"each has a GPU of its own: {devices}"
    one = {"GPU_WORKER_DEVICE": "5", "VLLM_DEVICE": "5", "WRITER_DEVICE": "5"}
    assert {gpu_devices(services[n], one)[0] for n in ("gpu-worker", "vllm", "vllm-writer")} == {"5"}
    assert services["vllm-2"]["profiles"] == ["gpu2"] and services["vllm-2"]["command"] == services["vllm"]["command"]
    caption = read_raw(Path("params.yaml"))["profiles"]["production"]["caption"]
    for key, model in (("url", "model"), ("writer_url", "writer")):
        host = re.fullmatch(r"http://([a-z-]+):8000/v1", caption[key])
        assert host and host[1] in services, caption[key]
        assert any(caption[model] in text for text in services[host[1]]["command"]), (
            f"{host[1]} must serve {caption[model]}"
        )


def test_every_variable_that_dags_plugins_and_tasks_read_is_set(compose: dict[str, Any]):
    code = [p for folder in ("dags", "plugins", "tasks") for p in Path(folder).rglob("*.py")]
    wanted = {
        node.value
        for path in code
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE_NAME.fullmatch(node.value)
    }
    assert {"MEGAPAIRS_DATASET", "MEGAPAIRS_RUNS", "MEGAPAIRS_MAIL_TO", "MEGAPAIRS_SCHEDULE", "TASKS_PYTHON"} <= wanted
    for name in AIRFLOW:
        # One is for a bare terminal; the next one's default, beside the DVC cache, is right in a deployment; the image
        # and the operator of open_run set the other two.
        optional = {"MEGAPAIRS_PROFILE", "MEGAPAIRS_CACHE", "MEGAPAIRS_COMMIT", "MEGAPAIRS_AIRFLOW_COMMIT"}
        missing = wanted - set(compose["services"][name]["environment"]) - optional
        assert not missing, f"{name} lacks {sorted(missing)}"


def test_every_service_has_a_health_check(compose: dict[str, Any]):
    without = {name for name, service in compose["services"].items() if "healthcheck" not in service}
    assert without == {"init", "mail"}  # the one ends, the other is a convenience
    for name in AIRFLOW:
        words = compose["services"][name]["healthcheck"]["test"]
        assert words[0] == "CMD" and Path(words[2].removeprefix("/opt/megapairs/")).exists() or words[2] == "-c", name


def test_workers_take_the_queues_that_the_dags_use(compose: dict[str, Any], example: dict[str, str]):
    queues = {n: compose["services"][n]["command"][3] for n in ("worker", "gpu-worker")}
    assert queues == {"worker": "default", "gpu-worker": "gpu"}
    assert example["MEGAPAIRS_GPU_QUEUE"] in queues.values()


def locked(path: str = "requirements.lock") -> dict[str, str]:
    """Pinned version by package."""
    return dict(re.findall(r"^([\w.-]+)==([^ ;\n]+)", Path(path).read_text(), re.M))


def test_the_image_installs_nothing_past_the_locks():
    """One lock for all: what `make install` puts on a laptop runs in the image, Celery's worker too."""
    script = re.sub(r"\\\n", " ", Path("Dockerfile").read_text())
    installs = re.findall(r"(?:uv )?pip install ([^&;]*)", script)
    packages = [w for line in installs for w in line.split() if not w.startswith("-") and not w.endswith(".lock")]
    assert set(packages) == {"uv", '"$TORCH"', '"$TORCH_INDEX"'}, packages
    pins = locked()
    assert tuple(map(int, pins["celery"].split("."))) < (5, 7), "celery 5.7.0 breaks `airflow celery worker`"
    assert {"apache-airflow-providers-celery", "apache-airflow-providers-postgres", "redis"} <= set(pins)
    on_gpu, vllm = locked("requirements-gpu.lock"), locked("requirements-vllm.lock")
    assert "faiss-gpu-cu12" in on_gpu and not set(on_gpu) & set(pins), "faiss-gpu brings CUDA libraries alone"
    assert vllm["vllm"].startswith("0.33.") and {"torch", "transformers"} <= set(vllm), "vLLM's environment is whole"
    assert f"v{vllm['vllm']}" in Path("docker-compose.yaml").read_text(), (
        "the server of the image and of the lock differ"
    )


@pytest.mark.airflow
def test_airflows_subcommands_exist(compose: dict[str, Any]):
    from airflow.cli import cli_parser

    known = set(cli_parser.ALL_COMMANDS_DICT)
    for name in AIRFLOW:
        command = compose["services"][name]["command"][0]
        # `celery` comes with the Celery provider, which the lock pins
        assert command in known or (command == "celery" and "apache-airflow-providers-celery" in locked()), name
    assert compose["services"]["init"]["command"] == ["/opt/megapairs/deploy/init.sh"]
    script = Path("deploy/init.sh").read_text()
    assert {line.split()[1] for line in script.splitlines() if line.strip().startswith("airflow ")} <= known
    commands = re.findall(r"python -m tasks ([a-z_]+)", script)
    assert commands == ["deploy"] and set(commands) <= set(COMMANDS)


def test_secrets_come_from_the_environment_file_and_none_is_committed(compose: dict[str, Any], example: dict[str, str]):
    used = {n for text in texts(compose) for n in VARIABLE.findall(text)}
    assert used == set(example), "variables of docker-compose.yaml and .env.example differ"
    for name, value in example.items():
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN", name):
            assert value == "", f"{name} must be empty in .env.example"
    assert ".env" in Path(".gitignore").read_text().split()


def test_the_image_pins_and_holds_what_a_service_runs():
    text = Path("Dockerfile").read_text()
    kept = {line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in text.splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert source in kept and Path(source).exists(), f"COPY {source}"
    for flavour in ("cpu", "gpu"):
        assert f'"$FLAVOUR" = {flavour}' in text
    for variable in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER", "PYTHONPATH"):
        assert variable in text
