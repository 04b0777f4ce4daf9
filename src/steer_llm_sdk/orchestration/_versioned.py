"""A run and the versions of tools: who asks, and what a caller of a deprecated one is told."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.orchestration.versions import Who

_OURS = ("steer_llm_sdk.", "asyncio.", "concurrent.")
_NO_TENANT = "default"


def who_of(run: Run) -> Who:
    """By what canaries tell callers apart. Who gives no tenant is told apart by his key, else by the trace."""
    options = run.options
    who = {name: str(value) for name, value in options.metadata.items()}
    who["run"] = options.idempotency_key or run.trace_id
    if options.tenant != _NO_TENANT:
        who["tenant"] = options.tenant
    return who


def warn_deprecated(run: Run, tool: Tool, farewell: str) -> None:
    """A DeprecationWarning where the caller stands, which Python shows once for each place, and an event."""
    run.tell("tool_deprecated", {"tool_name": tool.name, "tool_version": tool.version, "message": farewell})
    frame = _caller()
    names = frame.f_globals
    warnings.warn_explicit(
        farewell,
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__"),
        names.setdefault("__warningregistry__", {}),
    )


def _caller() -> FrameType:
    """The nearest frame that is not ours. In a task of its own there is none; then it is ours."""
    here = frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(_OURS):
            return frame
    return here
