"""What a stage read and wrote, as OpenLineage's provider asks for it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from megapairs import lineage

DVC = Path("dvc.yaml")


@pytest.mark.parametrize(
    ("stage", "item", "read", "written"),
    [
        ("ingest", None, [], ["data/images", "data/shards", "data/dropped/ingest"]),
        ("mine", "pattern", ["data/embeddings/pattern"], ["data/neighbours/pattern"]),
        ("validate", "pairs", ["data/pairs"], ["data/quarantine/pairs"]),
        ("promote", None, [], []),
    ],
)
def test_tables_are_those_of_the_graph(stage: str, item: str | None, read: list[str], written: list[str]):
    assert lineage.tables_of(DVC, stage, item) == (read, written)


def test_without_the_graph_or_the_provider_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert lineage.tables_of(tmp_path / "dvc.yaml", "ingest", None) == ([], [])
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage", None)
    assert lineage.lineage_of("ingest", None, Path(), {"written": 3}) is None


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the provider where it is not installed: its names, which keep what they get."""
    if lineage.lineage_of("ingest", None, Path(), None) is not None:
        return

    def keep(*names: str) -> Any:
        return lambda *values, **named: SimpleNamespace(**dict(zip(names, values, strict=False)), **named)

    facet = SimpleNamespace(OutputStatisticsOutputDatasetFacet=keep("rowCount"))
    modules = {
        "airflow.providers.openlineage": {},
        "airflow.providers.openlineage.extractors": {"OperatorLineage": keep()},
        "openlineage": {},
        "openlineage.client": {},
        "openlineage.client.event_v2": {
            "InputDataset": keep("namespace", "name"),
            "OutputDataset": keep("namespace", "name"),
        },
        "openlineage.client.facet_v2": {"output_statistics_output_dataset": facet},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


def test_the_first_table_has_the_count_of_its_rows(provider: None):
    found = lineage.lineage_of("select", None, Path(), {"written": 1800})
    assert [(d.namespace, d.name) for d in found.inputs] == [
        ("megapairs", f"data/{name}") for name in ("images", "captions", "embeddings", "neighbours")
    ]
    assert [d.name for d in found.outputs] == ["data/pairs", "data/dropped/select"]
    assert found.outputs[0].outputFacets["outputStatistics"].rowCount == 1800 and not found.outputs[1].outputFacets


def test_the_operator_answers_after_its_stage_has_run(provider: None, fake_tasks: Any, monkeypatch: pytest.MonkeyPatch):
    from megapairs.stage import Stage

    folder = fake_tasks("""echo '{"stage": "ingest", "written": 7}'""")
    (folder / "dvc.yaml").write_text(DVC.read_text())
    task = Stage(task_id="ingest", stage="ingest")
    task.execute({"run_id": "run 1", "params": {}, "dag_run": SimpleNamespace(conf={})})
    found = task.get_openlineage_facets_on_complete(SimpleNamespace(run_id="run 1"))
    assert found.outputs[0].outputFacets["outputStatistics"].rowCount == 7
