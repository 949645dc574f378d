"""Spans and metrics: none where nothing is switched on, and what a receiver gets where it is."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from megapairs import telemetry
from opentelemetry import metrics, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

CAPTION = {"stage": "caption", "part": "1/2", "tokens": 700, "dropped": {"leaky": 3}}
INGEST = {"stage": "ingest", "part": "", "tokens": 0, "dropped": {"too_small": 2, "unreachable": 5}}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Traces on, as Airflow switches them on: what ends is kept."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """Metrics on, as Airflow switches them on."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    return reader


def points(reader: InMemoryMetricReader) -> dict[tuple[str, str], float]:
    """(metric, its attributes) -> value."""
    content = reader.get_metrics_data()
    result = {}
    for resource in content.resource_metrics if content else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    attributes = ",".join(f"{k}={v}" for k, v in sorted((point.attributes or {}).items()))
                    result[metric.name, attributes] = point.value  # type: ignore[union-attr]
    return result


def tag_clone(folder: Path, tag: str, age_s: float) -> None:
    """A git repository with a tag that was made `age_s` ago."""
    when = f"{int(time.time() - age_s)} +0000"
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **identity, "GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"], ["tag", tag]):
        subprocess.run(["git", *command], cwd=folder, env=environment, check=True)


@pytest.fixture(autouse=True)
def no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def test_a_stage_is_a_span_that_its_process_can_continue(spans: InMemorySpanExporter):
    with (
        trace.get_tracer("airflow").start_as_current_span("worker.caption") as task,
        telemetry.stage_span("caption", {"part": "1/2", "item": ""}) as variables,
    ):
        assert set(variables) == {"TRACEPARENT"}
    stage, _ = spans.get_finished_spans()
    assert stage.name == "stage caption" and stage.parent is not None
    assert stage.parent.span_id == task.get_span_context().span_id
    assert dict(stage.attributes or {}) == {"megapairs.stage": "caption", "megapairs.part": "1/2"}
    version, trace_id, span_id, _ = variables["TRACEPARENT"].split("-")
    assert version == "00" and int(trace_id, 16) == stage.context.trace_id and int(span_id, 16) == stage.context.span_id


def test_a_stage_that_fails_ends_its_span_as_an_error_without_the_message(spans: InMemorySpanExporter):
    with pytest.raises(RuntimeError), telemetry.stage_span("judge", {}):
        raise RuntimeError("a caption")
    (stage,) = spans.get_finished_spans()
    assert not stage.status.is_ok and stage.status.description == "RuntimeError" and not stage.events


def test_metrics_are_counted_by_stage_and_reason(reader: InMemoryMetricReader, tmp_path: Path):
    tag_clone(tmp_path, "dataset/2026.01.04", age_s=3600)
    costs = tmp_path / ".run" / "costs"
    costs.mkdir(parents=True)
    (costs / "caption@1-of-2.json").write_text(json.dumps({"gpu_s": 12.5}))
    telemetry.record_stage("ingest", INGEST, tmp_path)
    telemetry.record_stage("caption", CAPTION, tmp_path)
    got = points(reader)
    assert 3599 < got.pop(("release_age_seconds", "stage=caption")) < 3700
    assert got.pop(("release_age_seconds", "stage=ingest")) > 3599
    assert got == {
        ("images_dropped_total", "reason=too_small,stage=ingest"): 2,
        ("images_dropped_total", "reason=unreachable,stage=ingest"): 5,
        ("caption_tokens_total", "stage=caption"): 700,
        ("gpu_seconds_total", "stage=caption"): 12.5,
        ("gpu_seconds_total", "stage=ingest"): 0,
    }


def test_nothing_is_made_or_passed_on_where_nothing_is_on(tmp_path: Path):
    with telemetry.stage_span("ingest", {}) as variables:
        assert variables == {}
    telemetry.record_stage("ingest", INGEST, tmp_path)
    assert not hasattr(metrics.get_meter_provider(), "force_flush")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_standard_variables_switch(variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert telemetry.is_on("TRACES") is expected


class Receiver(BaseHTTPRequestHandler):
    """An OTLP receiver over HTTP that keeps what it gets."""

    bodies: dict[str, list[bytes]]

    def do_POST(self) -> None:
        """Keep the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """Its address, and path -> bodies."""
    bodies: dict[str, list[bytes]] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Receiver,), {"bodies": bodies}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    server.shutdown()
    server.server_close()


def test_with_the_standard_variables_a_receiver_gets_the_span_and_the_metrics(
    receiver: tuple[str, dict[str, list[bytes]]], tmp_path: Path
):
    address, bodies = receiver
    code = (
        "import sys; from pathlib import Path; from megapairs import telemetry\n"
        "with telemetry.stage_span('ingest', {}) as v: print(v['TRACEPARENT'])\n"
        f"telemetry.record_stage('ingest', {INGEST!r}, Path(sys.argv[1]))\n"
        "telemetry.flush()\n"
    )
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": address, "PYTHONPATH": f"{Path('plugins').resolve()}:."}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    traces = [ExportTraceServiceRequest.FromString(body) for body in bodies["/v1/traces"]]
    spans = [s for t in traces for r in t.resource_spans for scope in r.scope_spans for s in scope.spans]
    assert [s.name for s in spans] == ["stage ingest"] and spans[0].span_id.hex() in done.stdout
    exported = [ExportMetricsServiceRequest.FromString(body) for body in bodies["/v1/metrics"]]
    names = {m.name for e in exported for r in e.resource_metrics for scope in r.scope_metrics for m in scope.metrics}
    assert names == {"images_dropped_total", "gpu_seconds_total"}
