"""Web pages in Airflow's UI, behind its login: each version's gallery, and the Data Docs of runs that are still open.

    /megapairs/                              the versions, newest first
    /megapairs/versions/<name>/gallery.html  a version's gallery, from git and the DVC cache
    /megapairs/runs/<slug>/<path>            a file below an open run's reports/ (Data Docs, validation)

Reads MEGAPAIRS_DATASET and MEGAPAIRS_RUNS; writes nothing. The words are in tasks/pages/templates/versions.html.j2.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from airflow.api_fastapi.core_api.security import get_user
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response

from tasks.errors import TasksError
from tasks.pages.render import html
from tasks.publish.git import tags
from tasks.publish.published import published_bytes

VERSION_NAME = re.compile(r"\d{4}\.\d{2}\.\d{2}(\.\d+)?")
RUN_NAME = re.compile(r"[a-z0-9-]+")
# A page made from data must not reach the UI's cookies: the sandbox gives it an origin of its own.
SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts allow-popups", "X-Content-Type-Options": "nosniff"}

app = FastAPI(
    title="MegaPairs reports", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None
)


def folder_in(variable: str) -> Path:
    """The folder that an environment variable names; 404 when it is not set."""
    if not os.environ.get(variable):
        raise HTTPException(404, f"{variable} is not set")
    return Path(os.environ[variable]).resolve()


@app.get("/", response_class=HTMLResponse)
def versions() -> str:
    """The published versions, newest first."""
    names = [tag.partition("/")[2] for tag in reversed(tags(folder_in("MEGAPAIRS_DATASET"), "dataset"))]
    return html("versions.html.j2", names=names)


@app.get("/versions/{name}/gallery.html")
def gallery(name: str) -> Response:
    """A version's gallery page."""
    if not VERSION_NAME.fullmatch(name):
        raise HTTPException(404, "no such version")
    try:
        page = published_bytes(folder_in("MEGAPAIRS_DATASET"), "reports/gallery.html", f"refs/tags/dataset/{name}")
    except TasksError as error:
        raise HTTPException(404, str(error)) from error
    return Response(page, media_type="text/html", headers=SANDBOX)


@app.get("/runs/{run}/{path:path}")
def report(run: str, path: str) -> FileResponse:
    """A file below an open run's reports/."""
    reports = folder_in("MEGAPAIRS_RUNS") / run / "reports"
    file = (reports / path).resolve()
    if not RUN_NAME.fullmatch(run) or not file.is_relative_to(reports) or not file.is_file():
        raise HTTPException(404, "no such report; the worktree of a run is removed after success")
    return FileResponse(file, headers=SANDBOX)


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
