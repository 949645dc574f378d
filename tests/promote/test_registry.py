"""Promoted models in MLflow's registry: against MLflow's own file store where it is installed, else a stand-in."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tasks.promote.registry import register_model

METRICS = {"finetuned_mAP@5": 26.7, "is_promoted": 1.0}


class MlflowException(Exception):
    """Stands for MLflow's own."""


class Client:
    """What the registry keeps, in memory; stands for MlflowClient where MLflow is not installed."""

    models: set[str]
    versions: list[Any]
    metrics: dict[str, float]
    fails = False

    def search_model_versions(self, query: str) -> list[Any]:
        if self.fails:
            raise MlflowException("the server said no\nand more")
        return list(self.versions)

    def get_registered_model(self, name: str) -> None:
        if name not in self.models:
            raise MlflowException("no such model")

    def create_registered_model(self, name: str, description: str) -> None:
        self.models.add(name)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, number: str, run_name: str, tags: dict[str, str]) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def log_metric(self, run_id: str, name: str, value: float) -> None:
        self.metrics[name] = value

    def set_terminated(self, run_id: str) -> None:
        """Nothing is kept of it."""

    def create_model_version(self, name: str, source: str, run_id: str, tags: dict[str, str]) -> Any:
        version = SimpleNamespace(name=name, source=source, tags=tags, version=str(len(self.versions) + 1))
        self.versions.append(version)
        return version


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    client = type("Bound", (Client,), {"models": set(), "versions": [], "metrics": {}})
    mlflow, exceptions = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    mlflow.MlflowClient = client  # type: ignore[attr-defined]
    exceptions.MlflowException = MlflowException  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    return client


def register(tag: str = "model/2026.01.04") -> str | None:
    return register_model(tag, "model/2026.01.04@abc", METRICS, {"data": "dataset/2026.01.04"})


def test_nothing_is_told_without_a_tracking_uri(registry: type[Client], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert register() is None and not registry.versions


def test_a_model_is_registered_once_with_its_metrics_and_where_it_lies(registry: type[Client]):
    assert register() == "MLflow: version 1 of megapairs"
    (version,) = registry.versions
    assert version.source == "model/2026.01.04@abc"
    assert version.tags == {"data": "dataset/2026.01.04", "megapairs.tag": "model/2026.01.04"}
    assert registry.metrics == {"finetuned_mAP_at_5": 26.7, "is_promoted": 1.0}
    assert register() == "MLflow: version 1 of megapairs, registered before" and len(registry.versions) == 1
    assert register("model/2026.01.11") == "MLflow: version 2 of megapairs"


def test_a_registry_that_fails_is_said_and_takes_nothing_back(registry: type[Client]):
    registry.fails = True
    said = register()
    assert said == "MLflow: model/2026.01.04 is published but not registered: the server said no"


def test_a_missing_mlflow_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert "not registered: mlflow is not installed" in str(register())


def test_with_mlflow_itself_and_its_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not part of the lock (docs/decisions/0094)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert register() == "MLflow: version 1 of megapairs"
    assert "registered before" in str(register())
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'megapairs'")
    assert version.source == "model/2026.01.04@abc" and version.tags["megapairs.tag"] == "model/2026.01.04"
    assert mlflow.get_run(version.run_id).data.metrics["finetuned_mAP_at_5"] == 26.7
