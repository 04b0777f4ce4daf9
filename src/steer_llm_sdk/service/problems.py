"""Errors as problem+json (RFC 9457), each with the status that tells a client what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from steer_llm_sdk.errors import (
    BudgetExceeded,
    ConflictError,
    InvalidRequest,
    NoEligibleTool,
    OrchestratorError,
    ProviderError,
    Rejected,
    StoreUnavailable,
    ToolNotFound,
)


class Problem(Exception):
    """What is answered instead of a result. `more` are members of its own; `headers` go along."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    def response(self) -> Response:
        body = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        body |= {"detail": self.detail, **self.more}
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


def problem_of(error: Exception) -> Problem:
    """400 for what the caller has to mend, 404, 422 for a key that had another request, 402 and 504 for a budget of
    money and of time, 429 and 503 with Retry-After for what may go later."""
    if isinstance(error, Problem):
        return error
    kind = type(error).__name__
    after = _retry_after(error)
    headers = {} if after is None else {"Retry-After": str(after)}
    if isinstance(error, ConflictError):
        return Problem(422, str(error), error=kind)
    if isinstance(error, ToolNotFound):
        return Problem(404, str(error), error=kind)
    if isinstance(error, InvalidRequest):
        return Problem(400, str(error), error=kind, field=error.field, remedy=error.remedy)
    if isinstance(error, NoEligibleTool):
        return Problem(422, str(error), error=kind, reasons=error.reasons)
    if isinstance(error, BudgetExceeded):
        output = None if error.output is None else error.output.model_dump(mode="json")
        status = 504 if error.budget_type == "time" else 402
        return Problem(status, str(error), headers, error=kind, budget=error.budget_type, output=output)
    if kind == "InFlight":
        return Problem(409, str(error), headers, error=kind)
    if isinstance(error, (StoreUnavailable, Rejected)):
        return Problem(503, str(error), headers, error=kind)
    if isinstance(error, ProviderError):
        return Problem(502, str(error), headers, error=kind)
    if isinstance(error, (OrchestratorError, ValueError)):
        return Problem(400, str(error), error=kind)
    return Problem(500, "the service has failed; the log has the reason", error="InternalError")


def _retry_after(error: Exception) -> int | None:
    """Whole seconds, as the header has them; what is less than one is one."""
    after = getattr(error, "retry_after", None)
    return max(1, math.ceil(after)) if isinstance(after, (int, float)) and 0 <= after < 1e9 else None
