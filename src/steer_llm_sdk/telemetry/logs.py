"""Logs as one JSON object a line, with the ids of the run that wrote them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from steer_llm_sdk.orchestration._call import current_scope

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "trace_id", "tool"}


def with_run_ids(record: logging.LogRecord) -> bool:
    """A filter: gives each record `request_id`, `trace_id` and `tool` of the run it comes from, None outside of one.

    `handler.addFilter(with_run_ids)`: on the handler, for a filter of a logger does not see what its children log.
    """
    scope = current_scope()
    record.request_id = None if scope is None else scope.run.request_id
    record.trace_id = None if scope is None else scope.run.trace_id
    record.tool = None if scope is None else scope.tool
    return True


class JsonLines(logging.Formatter):
    """time (ISO 8601, UTC), level, logger, message; the ids where there are any; what `extra` has; the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        if not hasattr(record, "request_id"):
            with_run_ids(record)
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name in ("request_id", "trace_id", "tool") if (value := getattr(record, name, None))}
        told |= {name: value for name, value in vars(record).items() if name not in _USUAL}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)
