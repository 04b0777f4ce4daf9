"""What /openapi.json says of the answers: FastAPI knows the requests, and nothing of what the guard and the handlers
answer instead."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_TEXT = {"type": "string"}
_OBJECT = {"type": "object"}


def _members(**known: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*known], "properties": known}


def _list_of(name: str) -> dict[str, Any]:
    return _members(**{name: {"type": "array", "items": _OBJECT}})


_PROBLEM = _members(type=_TEXT, title=_TEXT, status={"type": "integer"}, detail=_TEXT)
_PROBLEM["properties"] |= {"error": _TEXT, "field": _TEXT}
_OF_CLIENT = {"anyOf": [_members(error=_OBJECT), _members(type=_TEXT, error=_OBJECT)]}
_RUN = _members(id=_TEXT, state=_TEXT)
_EVENTS = "text/event-stream"
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": _TEXT, "event": _TEXT, "id": _TEXT}}

ANY = (400, 401, 403, 405, 413, 414, 421, 429, 431, 500, 503)
"""What every route may answer, and a route with a body besides."""
WITH_BODY = (408, 415)

OWN: dict[tuple[str, str], dict[int | str, dict[str, Any] | None]] = {
    ("get", "/v1/runs"): {200: _list_of("runs")},
    ("post", "/v1/runs"): {
        200: _members(id=_TEXT, status=_TEXT, content={}),
        202: _members(id=_TEXT, state=_TEXT, events=_TEXT),
        **dict.fromkeys((402, 404, 409, 422, 502, 504)),
    },
    ("get", "/v1/runs/{run_id}"): {200: _RUN, 404: None},
    ("delete", "/v1/runs/{run_id}"): {202: _RUN, 204: None, 404: None},
    ("get", "/v1/runs/{run_id}/events"): {200: {_EVENTS: _EVENT}, 404: None},
    ("get", "/v1/tools"): {200: _list_of("tools")},
    ("post", "/v1/plan"): {200: _OBJECT, 402: None, 422: None},
    ("get", "/v1/breakers"): {200: _members(breakers=_OBJECT)},
    ("post", "/v1/breakers/{name}"): {200: _OBJECT, 404: None},
    ("get", "/v1/budgets"): {200: _members(budgets=_OBJECT)},
    ("post", "/v1/chat/completions"): {200: {"application/json": _OBJECT, _EVENTS: _EVENT}, "4XX": None, "5XX": None},
    ("post", "/v1/messages"): {200: {"application/json": _OBJECT, _EVENTS: _EVENT}, "4XX": None, "5XX": None},
    ("get", "/v1/models"): {200: _list_of("data")},
    ("get", "/v1/models/{name}"): {200: _members(id=_TEXT), 404: None},
    ("get", "/healthz"): {200: _members(status=_TEXT)},
    ("get", "/readyz"): {200: _members(status=_TEXT, runs={"type": "integer"}), 503: _members(status=_TEXT)},
    ("get", "/metrics"): {200: {"text/plain": _TEXT, "application/openmetrics-text": _TEXT}},
}
"""The answers of each route: a schema of JSON, schemas by their content type, or None: nothing, or what went wrong."""


def described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        shared = schema.setdefault("components", {})
        shared["schemas"] = {"Problem": _PROBLEM, "ErrorOfClient": _OF_CLIENT} | {
            name: each for name, each in shared.get("schemas", {}).items() if "ValidationError" not in name
        }
        for path, item in schema["paths"].items():
            for method, operation in item.items():
                operation["responses"] = _responses(method, path)
        app.openapi_schema = schema
    return app.openapi_schema


def _responses(method: str, path: str) -> dict[str, Any]:
    own = OWN[method, path]
    passed_on = "4XX" in own
    # What a provider says against a request comes with a status of its choosing.
    statuses = () if passed_on else (*ANY, *(WITH_BODY if method == "post" else ()))
    found = {str(status): own.get(status) for status in {**own, **dict.fromkeys(statuses)}}
    of_client = path.startswith(("/v1/chat/", "/v1/messages", "/v1/models"))
    return {status: _response(status, found[status], of_client) for status in sorted(found)}


def _response(status: str, schema: dict[str, Any] | None, of_client: bool) -> dict[str, Any]:
    told = {"description": HTTPStatus(int(status)).phrase if status.isdigit() else "What the provider said, or we did"}
    if status == "204":
        return told
    if schema is None:
        name, kind = ("ErrorOfClient", "json") if of_client else ("Problem", "problem+json")
        return {**told, "content": {f"application/{kind}": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    kinds = schema if any("/" in name for name in schema) else {"application/json": schema}
    return {**told, "content": {name: {"schema": each} for name, each in kinds.items()}}
