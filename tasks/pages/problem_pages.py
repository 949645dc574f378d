"""What a browser shows where a page cannot be: the reason in words and a way back, instead of a line of JSON."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from tasks.pages.render import html

JSON_STATUSES = (301, 302, 303, 307, 308, 401)  # redirects, and Airflow's own word that a person must log in
HEADINGS = {403: "Not allowed", 404: "Not found", 413: "Too long"}


def is_for_a_person(request: Request) -> bool:
    """Whether a browser asks for a page; programs and images get JSON."""
    return "text/html" in request.headers.get("accept", "")


def problem_page(request: Request, status: int, why: str, back: str) -> HTMLResponse:
    """The page of an answer that is an error.

    Args:
        request: whose answer it is; the link back leads to the application's home.
        status: HTTP status.
        why: what is wrong.
        back: what the home is called.
    """
    heading = HEADINGS.get(status, "This cannot be shown")
    home = f"{request.scope.get('root_path', '')}/"
    return HTMLResponse(html("problem.html.j2", heading=heading, why=why, home=home, back=back), status)


def add_problem_pages(app: FastAPI, back: str) -> None:
    """Answer a browser's wrong addresses and forms with a page.

    Args:
        app: the application.
        back: what its home is called.
    """

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if not is_for_a_person(request) or error.status_code in JSON_STATUSES:
            return await http_exception_handler(request, error)
        return problem_page(request, error.status_code, str(error.detail), back)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if not is_for_a_person(request):
            return await request_validation_exception_handler(request, error)
        said = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return problem_page(request, 422, f"The address is not understood. {said}.", back)

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
