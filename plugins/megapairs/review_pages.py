"""The review queue in Airflow's UI: one row at a time, answered by a key, kept with name and time.

    /megapairs/versions/<name>/review[?reason=...]     what people wanted first in composed search, then the row nearest
                                                       the judge's threshold, that this person has not answered; keys 1
                                                       right, 2 wrong, 3 unsure
    /megapairs/review.js                               the keys; the one script of all pages

Who may start a run may answer; a viewer is refused. A form's answer carries a token that only this server can make for
this person, so that no other site can send one. What is kept and what becomes of it: tasks/browse/reviews.py.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user
from airflow.configuration import conf
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from tasks.browse.published import PublishedVersion
from tasks.errors import TasksError
from tasks.pages.render import html

MAX_FORM_BYTES = 20_000
KEYS = """"use strict";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=radio]), select")) return;
  const button = document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
  if (button) button.click();
});
// A link that was clicked in Airflow's frame is gone with its page, and the keys with it: the row takes them.
window.focus();
document.getElementById("row")?.focus();
"""
HEADERS = {"X-Content-Type-Options": "nosniff"}


def token_for(user_name: str) -> str:
    """What a form of this person must carry."""
    secret = str(conf.get("api", "secret_key", fallback="")).encode()
    return hmac.new(secret, f"review {user_name}".encode(), hashlib.sha256).hexdigest()


def may_answer(user: Any) -> bool:
    """Whether a person may write: whoever may start a run."""
    return bool(
        get_auth_manager().is_authorized_dag(method="POST", access_entity=DagAccessEntity.RUN, user=user)  # type: ignore[arg-type]
    )


def review_router(version_named: Callable[[str, str], PublishedVersion]) -> APIRouter:
    """The routes of the queue.

    Args:
        version_named: name and dataset -> the version; raises HTTPException 404.
    """
    router = APIRouter()

    @router.get("/review.js")
    def keys() -> Response:
        """The keys of the queue."""
        return Response(KEYS, media_type="text/javascript", headers=HEADERS)

    @router.get("/versions/{name}/review", response_class=HTMLResponse)
    @router.get("/d/{dataset}/versions/{name}/review", response_class=HTMLResponse)
    def show(
        name: str, user: Annotated[Any, Depends(get_user)], reason: str = "", dataset: str = "", skip: int = 0
    ) -> str:
        """The next row of the queue."""
        found = version_named(name, dataset)
        reviews = importlib.import_module("tasks.browse.reviews")
        searches = importlib.import_module("tasks.browse.searches")
        try:
            explorer = importlib.import_module("tasks.browse.explorer").explorer_of(found)
            kept = reviews.Reviews(found.clone).read()
            items = searches.items_of(explorer, found.clone)
        except TasksError as error:
            raise HTTPException(404, str(error)) from error
        threshold = float((found.record.get("params") or {}).get("judge", {}).get("threshold", 0.5))
        mine = [review.row_id for review in kept if review.name == user.get_name()]
        first = searches.waiting(items, mine, reason)
        waiting = [] if reason == searches.REASON else reviews.queue(explorer.index, threshold, mine, reason)
        skip = max(skip, 0)
        numbers = waiting[max(skip - len(first), 0) :][:1]
        rows = first[skip : skip + 1] or explorer.shown(numbers)
        return html(
            "triplet_review.html.j2",
            name=name,
            up="../../../../" if dataset else "../../",
            row=rows[0] if rows else None,
            waiting=len(first) + len(waiting),
            searches=searches.verdicts(items, kept, mine),
            answered=len(set(mine)),
            agreement=reviews.agreement(kept),
            threshold=f"{threshold:g}",
            reason=reason,
            reasons=[*([searches.REASON] if items else []), *explorer.index.choices()["status"]],
            skip=skip,
            token=token_for(user.get_name()),
            may_answer=may_answer(user),
        )

    @router.post("/versions/{name}/review")
    @router.post("/d/{dataset}/versions/{name}/review")
    async def answer(
        request: Request, name: str, user: Annotated[Any, Depends(get_user)], dataset: str = ""
    ) -> RedirectResponse:
        """Keep one answer and show the next row."""
        if not may_answer(user):
            raise HTTPException(403, "a viewer cannot review; ask for a role that may start runs")
        body = await request.body()
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "too long")
        form = {key: values[-1] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}
        if not hmac.compare_digest(form.get("token", "").encode(), token_for(user.get_name()).encode()):
            raise HTTPException(403, "this form is not of this page or is too old; open the queue again")
        found = version_named(name, dataset)
        reviews = importlib.import_module("tasks.browse.reviews")
        text = form.get("text", "").strip()
        values = {key: form.get(key, "") for key in ("row_id", "instruction", "query", "target", "answer", "better")}
        try:
            reviews.Reviews(found.clone).add(
                reviews.Review(
                    at=reviews.now(),
                    name=user.get_name(),
                    version=name,
                    text="" if text == values["instruction"] else text,
                    **values,
                )
            )
        except TasksError as error:
            raise HTTPException(400, str(error)) from error
        more = urlencode({"reason": form["reason"]}) if form.get("reason") else ""
        return RedirectResponse(f"review?{more}", status_code=303)

    return router
