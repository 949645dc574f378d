"""The web application of composed search: pages without script, and the same as JSON (described at /openapi.json).

Nothing from outside is opened as a path, a URL or a pickle: an image is an id of the version, or bytes that ingest's
decoding process has checked. Requests of another site are refused where they write (token), requests for other host
names altogether (DNS rebinding).
"""

from __future__ import annotations

import hmac
import io
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlencode

from fastapi import Cookie, FastAPI, File, Form, Request, UploadFile
from fastapi import Query as QueryParam
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tasks.errors import DataError
from tasks.pages.problem_pages import add_problem_pages, problem_page
from tasks.pages.render import html
from tasks.studio.answers import MAX_RESULTS, MODES, NAME_LENGTH, Feedback, Query, Triplets, answer, one_line
from tasks.studio.galleries import Gallery, Images

THUMBNAIL_PX = 160
THUMBNAILS_KEPT = 4096  # in memory, some 5 KB each: a page of results shows up to 120
EXAMPLES = 12
FORM_BYTES = 64 * 1024  # of a request beside its image
NAME_KEPT_S = 365 * 24 * 3600  # in the browser
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


@dataclass
class Studio:
    """What the pages show.

    Attributes:
        version: name of the dataset's version.
        images: stored and uploaded ones.
        galleries: one a model.
        models: label -> Hugging Face name or folder.
        triplets: of the version.
        feedback: where people's answers go.
        max_bytes: of an uploaded file.
        token: a secret of this process; a form that writes carries it.
    """

    version: str
    images: Images
    galleries: list[Gallery]
    models: dict[str, str]
    triplets: Triplets
    feedback: Feedback
    max_bytes: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))


class BodyLimit:
    """Refuse a request whose body is longer than `limit` bytes, before it is stored anywhere (ASGI middleware)."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        too_long = JSONResponse({"error": f"expected at most {self.limit:,} bytes"}, 413)
        if not stated.isdigit() or int(stated) > self.limit:
            await too_long(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise TooLongError
            return message

        try:
            await self.app(scope, counted, send)
        except TooLongError:
            await too_long(scope, receive, send)


class TooLongError(Exception):
    """A request's body turned out to be longer than it may be."""


def thumbnail(content: bytes) -> bytes:
    """A small JPEG of a stored image."""
    image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
    image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # a JPEG is decoded at an eighth to the whole of its size
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=82)
    return out.getvalue()


def address(query: Query) -> str:
    """The address of a search; it can be shared, as long as its image is one of the version."""
    return "/search?" + urlencode({"image": query.image or "", "text": query.text, "top_k": query.top_k})


def page(
    studio: Studio,
    query: Query | None = None,
    error: str = "",
    seed: int = 0,
    thanks: bool = False,
    name: str = "",
) -> str:
    """The one page: the form, example queries, and the results of a search.

    Args:
        studio: what is served.
        query: what was searched; None before the first search.
        error: what was wrong with the request.
        seed: of the example queries.
        thanks: an answer was just stored.
        name: of the person, as they gave it before.
    """
    result = None
    if query and not error:
        result = answer(query, studio.galleries, studio.images, studio.triplets)
    return html(
        "studio.html.j2",
        version=studio.version,
        count=len(studio.images.ids),
        query=query,
        error=error,
        thanks=thanks,
        name=name,
        name_length=NAME_LENGTH,
        result=result,
        modes=MODES,
        token=studio.token,
        seed=seed,
        examples=[
            {"image": image, "text": text, "href": address(Query(image, text))}
            for image, text in studio.triplets.examples(EXAMPLES, seed)
        ],
    )


TITLE = "Composed search"


def make_app(studio: Studio, hosts: list[str]) -> FastAPI:
    """The application.

    Args:
        studio: what it serves.
        hosts: host names that requests may be for.
    """
    app = FastAPI(title="MegaPairs composed search", version=studio.version, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=studio.max_bytes + FORM_BYTES)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    add_problem_pages(app, back=TITLE)
    small_image = lru_cache(THUMBNAILS_KEPT)(lambda key: thumbnail(studio.images.content(key)))
    faults: dict[int | str, dict[str, Any]] = {
        400: {"description": "The request names something that is not there, or is no image"},
        413: {"description": "The request is too long"},
    }

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update({name: value for name, value in HEADERS.items() if name not in response.headers})
        return response

    @app.exception_handler(DataError)
    def wrong(request: Request, error: DataError) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": str(error)}, 400)
        return HTMLResponse(page(studio, error=str(error)), 400)

    @app.get("/", response_class=HTMLResponse)
    def home(seed: Annotated[int, QueryParam(ge=0, le=2**31)] = 0) -> str:
        """The form and example queries."""
        return page(studio, seed=seed)

    @app.get("/search", response_class=HTMLResponse, responses=faults)
    def search_page(
        image: str = "",
        text: str = "",
        top_k: Annotated[int, QueryParam(ge=1, le=MAX_RESULTS)] = 20,
        thanks: bool = False,
        reviewer: Annotated[str, Cookie()] = "",
    ) -> str:
        """The results of a search by an image of the version, or an upload that is still kept, and a text."""
        name = unquote(reviewer)[:NAME_LENGTH]
        return page(studio, Query.checked(image, text, top_k), thanks=thanks, name=name)

    @app.post("/search", responses=faults, status_code=303)
    def search_upload(
        text: Annotated[str, Form()] = "",
        image: Annotated[str, Form()] = "",
        file: Annotated[UploadFile | None, File()] = None,
    ) -> Response:
        """Take an image that a person brings, and go to the results."""
        key = _uploaded(studio, file) or image
        return RedirectResponse(address(Query.checked(key, text)), 303)

    @app.post("/api/search", responses=faults)
    def search_json(
        text: Annotated[str, Form()] = "",
        image: Annotated[str, Form()] = "",
        top_k: Annotated[int, Form(ge=1, le=MAX_RESULTS)] = 20,
        file: Annotated[UploadFile | None, File()] = None,
    ) -> dict[str, Any]:
        """Search by an uploaded file or an image id, and a text; results of every model and mode."""
        query = Query.checked(_uploaded(studio, file) or image, text, top_k)
        return answer(query, studio.galleries, studio.images, studio.triplets)

    @app.post(
        "/feedback",
        responses={303: {"description": "Back"}, 403: {"description": "Not from these pages"}, **faults},
        status_code=303,
    )
    def feedback(
        request: Request,
        token: Annotated[str, Form()],
        should_be_first: Annotated[str, Form()],
        image: Annotated[str, Form()] = "",
        text: Annotated[str, Form()] = "",
        name: Annotated[str, Form()] = "",
    ) -> Response:
        """Store that an image should have been the first result; it waits in the review queue."""
        if not hmac.compare_digest(token.encode(), studio.token.encode()):
            why = "this form is of an earlier start of the server; go back and load the page again"
            return problem_page(request, 403, why, TITLE)
        query = Query.checked(image, text)
        studio.feedback.add(query, should_be_first, name, studio.images, studio.models)
        back = RedirectResponse(address(query) + "&thanks=true", 303)
        back.set_cookie("reviewer", quote(one_line(name)[:NAME_LENGTH]), NAME_KEPT_S, httponly=True, samesite="strict")
        return back

    @app.get("/images/{key}.jpg", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}, **faults})
    def image_file(key: str, small: bool = False) -> Response:
        """A stored image, or a small copy of it."""
        headers = {"Cache-Control": "private, max-age=86400"}
        content = small_image(key) if small else studio.images.content(key)
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether it answers, and what with."""
        return {"version": studio.version, "images": len(studio.images.ids), "models": list(studio.models)}

    return app


def _uploaded(studio: Studio, file: UploadFile | None) -> str:
    """The key of an uploaded file; "" where none was chosen.

    Raises:
        DataError: no image that ingest would take, or too long.
    """
    if file is None or not (content := file.file.read(studio.max_bytes + 1)):
        return ""
    if len(content) > studio.max_bytes:
        raise DataError(f"file: more than {studio.max_bytes:,} bytes; upload a smaller image")
    return studio.images.uploads.add(content)
