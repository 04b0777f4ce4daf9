"""A problem in the form that whoever asked can read: the API's own, a page for a browser, else problem+json."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from steer_llm_sdk.service._page import whole_page
from steer_llm_sdk.service.formats import ANTHROPIC, OPENAI, Format
from steer_llm_sdk.service.problems import Problem

_FORMATS = (("/v1/chat/", OPENAI), ("/v1/models/", OPENAI), ("/v1/messages/", ANTHROPIC))


def refusal(problem: Problem, method: str, path: str, headers: Mapping[bytes, bytes]) -> Response:
    """`headers` of the request, by their names in small letters."""
    format = format_of(path)
    if format is not None:
        return in_format(format, problem)
    browsing = method in ("GET", "HEAD") and b"text/html" in headers.get(b"accept", b"")
    if browsing and not path.startswith("/v1/"):
        phrase = HTTPStatus(problem.status).phrase
        why = "There is nothing at this address." if problem.detail == "Not Found" else problem.detail
        content = f'<p class="panel">{escape(why)}</p><p><a href="/">All runs</a></p>'
        page = whole_page(phrase, content, status=problem.status)
        page.headers.update(problem.headers)
        return page
    return problem.response()


def format_of(path: str) -> Format | None:
    """That of the API which a path belongs to; None for the service's own."""
    return next((format for below, format in _FORMATS if f"{path}/".startswith(below)), None)


def in_format(format: Format, problem: Problem) -> Response:
    kind = problem.more.get("error") or ("api_error" if problem.status >= 500 else "invalid_request_error")
    said = format.error(problem.status, problem.detail, kind, problem.more.get("field"))
    return JSONResponse(said, problem.status, problem.headers)
