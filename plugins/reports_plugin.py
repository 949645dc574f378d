"""Web pages in Airflow's UI, behind its login: what was published, what was left out and why, and open runs' reports.

    /megapairs/                               the versions, newest first; what runs, what failed last, the next run
    /megapairs/versions/<name>/               a version: gates, what was left out by stage and reason
    /megapairs/versions/<name>/gallery.html   its gallery, from git and the DVC cache
    /megapairs/versions/<name>/drops          the dropped rows of a stage and reason, with their details
    /megapairs/versions/<name>/quarantine     the rows that a gate took out (megapairs/gate_pages.py)
    /megapairs/versions/<name>/card           its card, as text
    /megapairs/versions/<name>/triplets       its triplets, accepted and rejected, by text and filters; triplets.jsonl
    /megapairs/versions/<name>/review         rows to be answered by a person (megapairs/review_pages.py)
    /megapairs/compare?first=A&second=B       two versions side by side
    /megapairs/gates/<batch>/<table>          a gate of an open run, or of the version that came out of it
    /megapairs/runs/<slug>/<path>             a file below an open run's reports/ (Data Docs, validation)
    /megapairs/d/<dataset>/...                the same for a dataset of MEGAPAIRS_DATASETS

Reads MEGAPAIRS_DATASET and MEGAPAIRS_RUNS. No page loads anything from elsewhere; only the review queue writes, and
only it runs a script, for its keys. Every answer states a Content-Security-Policy, and only Airflow may frame it.
Links stay in Airflow's frame, whose sandbox lets no link open a window. The words are in tasks/pages/templates.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import yaml
from airflow.api_fastapi.core_api.security import get_user
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from megapairs.airflow_state import runs_at_a_glance
from megapairs.gate_pages import gate_router, shown_gate
from megapairs.review_pages import review_router
from megapairs.wiring import DATASET_DAG, dag_id_for, further_datasets

from tasks.browse import overview, promotions
from tasks.browse.comparison import comparison
from tasks.browse.drops import shown_drops
from tasks.browse.published import TABLES, PublishedVersion, models, versions
from tasks.browse.selection import selection_from
from tasks.errors import TasksError
from tasks.pages.problem_pages import add_problem_pages
from tasks.pages.render import html
from tasks.publish.git import tags
from tasks.publish.published import published_bytes
from tasks.reasons import REASONS, why

VERSION_NAME = re.compile(r"\d{4}\.\d{2}\.\d{2}(\.\d+)?")
RUN_NAME = re.compile(r"[a-z0-9-]+")
PAGE_ROWS = 50  # dropped rows on a page, with their images, a count
HOME_VERSIONS = 200  # on the home page, a count: four years of weeks
# A page made from data must not reach the UI's cookies: the sandbox gives it an origin of its own.
SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts allow-popups", "X-Content-Type-Options": "nosniff"}
# Of every answer that states none: a page's own rules, stated in the page, are narrower.
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
# A published page that needs no script gets none, whatever is in it; its links keep the login, which a sandbox loses.
STATIC = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}
WAY_BACK = b'<nav><a href="../../">All versions</a><a href="./">Gates and dropped rows of this version</a></nav>'
SPARKS = (("Yield", "yield_share"), ("Shortcuts", "shortcut_share"), ("True texts", "true_share"))

app = FastAPI(
    title="MegaPairs reports", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None
)


@app.middleware("http")
async def with_policy(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """State the policy on every answer, errors included."""
    answer = await call_next(request)
    answer.headers.setdefault("Content-Security-Policy", POLICY)
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    answer.headers.setdefault("Referrer-Policy", "same-origin")
    return answer


def folder_in(variable: str, dataset: str = "") -> Path:
    """The folder that an environment variable names, or that of a further dataset; 404 when there is none."""
    if dataset:
        folder = further_datasets().get(dataset)
        if folder is None:
            raise HTTPException(404, f"no dataset {dataset!r}; MEGAPAIRS_DATASETS names {sorted(further_datasets())}")
        return (folder / {"MEGAPAIRS_DATASET": "dataset", "MEGAPAIRS_RUNS": "runs"}[variable]).resolve()
    if not os.environ.get(variable):
        raise HTTPException(404, f"{variable} is not set")
    return Path(os.environ[variable]).resolve()


def dataset_name(clone: Path) -> str:
    """The name of the dataset that a deployment's clone holds; empty where it cannot be read."""
    with contextlib.suppress(OSError, KeyError, TypeError, yaml.YAMLError):
        return str(yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))["open_run"]["dataset"])
    return ""


def version_named(name: str, dataset: str) -> PublishedVersion:
    """A published version; 404 when there is none of that name."""
    clone = folder_in("MEGAPAIRS_DATASET", dataset)
    if not VERSION_NAME.fullmatch(name) or f"dataset/{name}" not in tags(clone, "dataset"):
        raise HTTPException(404, "no such version")
    return PublishedVersion(clone, name)


@contextlib.contextmanager
def as_not_found() -> Any:
    """Turn what git or the cache lacks into a page that says so."""
    try:
        yield
    except TasksError as error:
        raise HTTPException(404, str(error)) from error


def explorer_of(found: PublishedVersion) -> Any:
    """The explorer of a version (tasks/browse/explorer.py); numpy and Arrow are loaded with the first one."""
    with as_not_found():
        return importlib.import_module("tasks.browse.explorer").explorer_of(found)


@app.get("/", response_class=HTMLResponse)
@app.get("/d/{dataset}/", response_class=HTMLResponse)
def home(dataset: str = "") -> str:
    """The published versions, newest first, and how the DAG stands."""
    clone, problem = folder_in("MEGAPAIRS_DATASET", dataset), ""
    found = versions(clone)[:HOME_VERSIONS]
    trained: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    quality: tuple[list[str], list[list[str]]] = ([], [])
    decisions = promotions.read(clone)
    try:
        trained = models(clone)
        rows = [overview.home_row(version.record, trained, decisions) for version in found]
        quality = overview.quality_table([version.record for version in found], [v.metrics for v in found])
    except TasksError as error:
        problem = f"Some figures cannot be read: {error}"
    sparks = [(title, *overview.course(rows, key)) for title, key in SPARKS if rows]
    up = "../../" if dataset else ""
    return html(
        "versions.html.j2",
        names=[version.name for version in found],
        rows=rows,
        quality=quality,
        sparks=sparks,
        problem=problem,
        dataset=dataset or dataset_name(clone),
        dag=dag_id_for(DATASET_DAG, dataset),
        datasets=[("this Airflow's own", up or "./"), *((name, f"{up}d/{name}/") for name in further_datasets())],
        status=runs_at_a_glance(dataset),
        models=[overview.model_row(model) for model in trained],
        refused=overview.refused_rows(decisions),
    )


@app.get("/versions/{name}/", response_class=HTMLResponse)
@app.get("/d/{dataset}/versions/{name}/", response_class=HTMLResponse)
def version(name: str, dataset: str = "") -> str:
    """A version: its gates and what was left out."""
    found = version_named(name, dataset)
    with as_not_found():
        gates = [found.gate(table) for table in TABLES]
        row = overview.home_row(found.record, [])
        tiles = [("new images", row["images"]), ("new pairs", row["pairs"]), ("new triplets", row["triplets"])]
        tiles += [("all triplets", row["total"]), ("of the captioned pairs became triplets", row["yield"])]
        tiles.append(("new rows left out", row["dropped"]))
        return html(
            "version.html.j2",
            name=name,
            tiles=tiles,
            gates=[shown_gate(gate) for gate in gates if gate],
            drops=overview.drops_of(found.record),
            before=next((v.name for v in versions(found.clone) if v.name == found.record.get("parent")), ""),
        )


@app.get("/versions/{name}/gallery.html")
@app.get("/d/{dataset}/versions/{name}/gallery.html")
def gallery(name: str, dataset: str = "") -> Response:
    """A version's gallery page."""
    with as_not_found():
        page = published_bytes(*_gallery_place(name, dataset))
    return Response(with_way_back(page), media_type="text/html", headers=STATIC)


def with_way_back(page: bytes) -> bytes:
    """A published page with links to where it was opened from: Airflow's frame has no button that goes back."""
    return re.sub(rb"<main[^>]*>", lambda found: found[0] + WAY_BACK, page, count=1)


def _gallery_place(name: str, dataset: str) -> tuple[Path, str, str]:
    found = version_named(name, dataset)
    return found.clone, "reports/gallery.html", found.tag


@app.get("/versions/{name}/card", response_class=HTMLResponse)
@app.get("/d/{dataset}/versions/{name}/card", response_class=HTMLResponse)
def card(name: str, dataset: str = "") -> str:
    """A version's card, as the text that it is."""
    with as_not_found():
        return html("card.html.j2", name=name, text=version_named(name, dataset).text("README.md"))


@app.get("/versions/{name}/drops", response_class=HTMLResponse)
@app.get("/d/{dataset}/versions/{name}/drops", response_class=HTMLResponse)
def drops(
    name: str, stage: str, reason: str, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1, dataset: str = ""
) -> str:
    """The rows that a stage left out for a reason, of this version and those before, the newest first."""
    import pyarrow.compute as pc

    if reason not in REASONS.get(stage, {}):
        raise HTTPException(404, f"no reason {reason!r} of stage {stage!r}")
    found = version_named(name, dataset)
    with as_not_found():
        rows = found.table(f"data/dropped/{stage}", ["batch", "key", "reason", "detail"])
        if rows.num_rows:
            rows = rows.filter(pc.equal(rows["reason"], reason)).sort_by(
                [("batch", "descending"), ("key", "ascending")]
            )
        start = (page - 1) * PAGE_ROWS
        shown = shown_drops(found, rows.slice(start, PAGE_ROWS).to_pylist())
    return html(
        "drops.html.j2",
        name=name,
        stage=stage,
        reason=reason,
        why=why(stage, reason),
        total=rows.num_rows,
        rows=shown,
        page=page,
        first=start + 1,
        has_more=rows.num_rows > start + PAGE_ROWS,
    )


@app.get("/versions/{name}/triplets", response_class=HTMLResponse)
@app.get("/d/{dataset}/versions/{name}/triplets", response_class=HTMLResponse)
def triplets(
    request: Request, name: str, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1, dataset: str = ""
) -> str:
    """The triplets of a version that a search and its filters find."""
    wanted = selection_from(request.query_params)
    explorer = explorer_of(version_named(name, dataset))
    shown = explorer.page(wanted, page)
    return html("triplets.html.j2", name=name, wanted=vars(wanted), choices=explorer.index.choices(), page=shown)


@app.get("/versions/{name}/triplets.jsonl")
@app.get("/d/{dataset}/versions/{name}/triplets.jsonl")
def download(request: Request, name: str, dataset: str = "") -> StreamingResponse:
    """All rows that a search finds, as lines of JSON."""
    index = explorer_of(version_named(name, dataset)).index
    lines = index.lines(index.find(selection_from(request.query_params)))
    headers = {**SANDBOX, "Content-Disposition": f'attachment; filename="triplets-{name}.jsonl"'}
    return StreamingResponse(lines, media_type="application/jsonl", headers=headers)


@app.get("/versions/{name}/images/{image_id}.jpg")
@app.get("/d/{dataset}/versions/{name}/images/{image_id}.jpg")
def image(name: str, image_id: str, dataset: str = "") -> Response:
    """A stored image of a version, or one that a person uploaded for a search that waits in the review queue."""
    found = version_named(name, dataset)
    with as_not_found():
        content = importlib.import_module("tasks.browse.searches").image(explorer_of(found), found.clone, image_id)
    return Response(content, media_type="image/jpeg", headers={**SANDBOX, "Cache-Control": "private, max-age=86400"})


@app.get("/compare", response_class=HTMLResponse)
@app.get("/d/{dataset}/compare", response_class=HTMLResponse)
def compare(first: str, second: str, dataset: str = "") -> str:
    """Two versions side by side."""
    with as_not_found():
        groups = comparison(version_named(first, dataset).record, version_named(second, dataset).record)
    return html("compare.html.j2", first=first, second=second, groups=groups)


@app.get("/gates/{batch}/{table}", response_class=HTMLResponse)
@app.get("/d/{dataset}/gates/{batch}/{table}", response_class=HTMLResponse)
def gate(batch: str, table: str, run: str = "", dataset: str = "") -> str:
    """A gate of an open run, or of the version that came out of it."""
    if table not in TABLES or not VERSION_NAME.fullmatch(batch) or not (run == "" or RUN_NAME.fullmatch(run)):
        raise HTTPException(404, "no such gate")
    report, docs = None, ""
    if run:
        reports = folder_in("MEGAPAIRS_RUNS", dataset) / run / "reports"
        with contextlib.suppress(OSError, ValueError):
            report = json.loads((reports / "validation" / f"{table}.json").read_text())
        if (reports / "data_docs" / "index.html").is_file() and not dataset:
            docs = f"../../runs/{run}/data_docs/index.html"
    if report is None and f"dataset/{batch}" in tags(folder_in("MEGAPAIRS_DATASET", dataset), "dataset"):
        with as_not_found():
            report = version_named(batch, dataset).gate(table)
    if report is None:
        raise HTTPException(404, "no report of this gate: its run ended without a version, and its worktree is gone")
    return html("gate.html.j2", gate=shown_gate(report), batch=batch, docs=docs)


@app.get("/runs/{run}/{path:path}")
def report(run: str, path: str) -> FileResponse:
    """A file below an open run's reports/."""
    reports = folder_in("MEGAPAIRS_RUNS") / run / "reports"
    file = (reports / path).resolve()
    if not RUN_NAME.fullmatch(run) or not file.is_relative_to(reports) or not file.is_file():
        raise HTTPException(404, "no such report; the worktree of a run is removed after success")
    return FileResponse(file, headers=SANDBOX)


add_problem_pages(app, back="All versions")
app.include_router(review_router(version_named))
app.include_router(gate_router(version_named))


class ReportsPlugin(AirflowPlugin):
    """Adds the pages, and a link to them in the navigation."""

    name = "megapairs_reports"
    fastapi_apps = [{"app": app, "url_prefix": "/megapairs", "name": "megapairs_reports"}]
    external_views = [
        {
            "name": "MegaPairs versions",
            "href": "/megapairs/",
            "destination": "nav",
            "url_route": "megapairs",
            "category": "browse",
        }
    ]
