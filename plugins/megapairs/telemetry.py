"""Traces and metrics of the factory, where OpenTelemetry is switched on; nothing otherwise.

On means: Airflow's own switch ([traces] otel_on, [metrics] otel_on: Airflow then has made the providers of the task's
process), or the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, or the one of TRACES or METRICS; OTEL_SDK_DISABLED
switches off): then this module makes providers that export by OTLP over HTTP.

A stage is a span `stage <name>` below Airflow's span of the task; the stage's process gets it as TRACEPARENT. The
metrics, each with the attribute `stage`:

    images_dropped_total    images that ingest or embed left out, by `reason`
    caption_tokens_total    tokens of the models that caption and judge
    gpu_seconds_total       seconds x GPUs that the stage's process held, by .run/costs
    release_age_seconds     age of the newest published dataset version, when the stage ended
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

IMAGE_STAGES = ("ingest", "ingest-list", "embed")
TEXT_STAGES = ("recaption", "caption", "judge")
NAME = "megapairs"
FLUSH_MS = 10_000


def is_on(signal: str) -> bool:
    """Whether the standard variables switch a signal on; `signal`: TRACES or METRICS."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "").lower() == "none":
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def tracer() -> trace.Tracer:
    """The tracer: Airflow's provider's, else one by the standard variables, else one that does nothing."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) and is_on("TRACES"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=Resource.create(_service()))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return trace.get_tracer(NAME)


def meter() -> metrics.Meter:
    """The meter, likewise."""
    provider = metrics.get_meter_provider()
    if not hasattr(provider, "force_flush") and is_on("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        metrics.set_meter_provider(MeterProvider([reader], Resource.create(_service())))
    return metrics.get_meter(NAME)


def _service() -> dict[str, str]:
    return {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": NAME}


def flush() -> None:
    """Send what is recorded; a task's process may end without running its exit handlers."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if hasattr(provider, "force_flush"):
            provider.force_flush(FLUSH_MS)


@contextmanager
def stage_span(stage: str, attributes: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A span around a stage's process; an error ends it as one.

    Args:
        stage: its name.
        attributes: of the span, without the prefix `megapairs.`; empty ones are left out.
    Yields:
        Variables for the process: TRACEPARENT and TRACESTATE, or none where traces are off.
    """
    named = {f"{NAME}.{key}": value for key, value in {"stage": stage, **attributes}.items() if value}
    # neither the exception nor its message: that may quote a caption
    with tracer().start_as_current_span(
        f"stage {stage}", attributes=named, record_exception=False, set_status_on_exception=False
    ) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        try:
            yield {name.upper(): value for name, value in carrier.items()}
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def record_stage(stage: str, report: Mapping[str, Any], worktree: Path) -> None:
    """Count a stage that succeeded, where metrics are on, and send what was recorded.

    Args:
        stage: its name.
        report: its StageReport.
        worktree: of the run.
    """
    source = meter()
    if not hasattr(metrics.get_meter_provider(), "force_flush"):
        return
    here = {"stage": stage}
    if stage in IMAGE_STAGES:
        dropped = source.create_counter("images_dropped_total", "1", "Images left out, by reason")
        for reason, count in sorted((report.get("dropped") or {}).items()):
            dropped.add(count, {**here, "reason": reason})
    if stage in TEXT_STAGES:
        tokens = source.create_counter("caption_tokens_total", "1", "Model tokens, prompt and output together")
        tokens.add(int(report.get("tokens") or 0), here)
    source.create_counter("gpu_seconds_total", "s", "Seconds times GPUs").add(
        gpu_seconds(worktree, stage, report), here
    )
    if (age_s := release_age_s(worktree)) is not None:
        source.create_gauge("release_age_seconds", "s", "Age of the newest dataset version").set(age_s, here)
    flush()


def gpu_seconds(worktree: Path, stage: str, report: Mapping[str, Any]) -> float:
    """Seconds x GPUs of the process that made a report, by the cost that it kept in .run/costs."""
    names = (stage, *str(report.get("part") or "").split("@"))
    name = "@".join(part.replace("/", "-of-") for part in names if part)
    try:
        return float(json.loads((worktree / ".run" / "costs" / f"{name}.json").read_text())["gpu_s"])
    except (OSError, ValueError, KeyError):
        return 0.0


def release_age_s(worktree: Path) -> float | None:
    """Age of the newest dataset version that the clone knows, seconds; None where there is none."""
    arguments = ["for-each-ref", "--sort=-creatordate", "--count=1", "--format=%(creatordate:unix)"]
    command = ["git", "-C", str(worktree), *arguments, "refs/tags/dataset"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return max(0.0, time.time() - float(done.stdout)) if done.returncode == 0 and done.stdout.strip() else None
