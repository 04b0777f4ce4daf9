"""What is written down of a run: JSON, and back. What a call gave or failed with, a plan, and how the run ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

import steer_llm_sdk.errors as own_errors
from steer_llm_sdk.errors import ErrorCategory, a_kind, message_of
from steer_llm_sdk.orchestration._result import ToolResult
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.tools._model_call import ReplicateBudgetExceeded
from steer_llm_sdk.providers.base import ModelReply
from steer_llm_sdk.reliability.classify import ErrorClassification, classify, note

Json: TypeAlias = dict[str, Any]
"""A JSON object."""

_DEEPEST = 50
_ERROR, _ERRORS, _OUTPUT = "$error", "$errors", "$output"


class Unrecordable(Exception):
    """It is no JSON and nothing that this library knows, so nobody could read it back."""


class RecordedError(Exception):
    """An exception of somebody else's, read back: a subclass has its name, and it says and means the same."""


def is_json(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether JSON gives back the very same: tuples and models, which come back as something else, are none."""
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return True
    if kind is str:
        return bool(value.isascii()) or not any("\ud800" <= character <= "\udfff" for character in value)
    if kind is float:
        return math.isfinite(value)
    if depth == 0:
        return False
    if kind is list:
        return all(is_json(item, depth - 1) for item in value)
    return kind is dict and all(type(key) is str and is_json(key) and is_json(value[key], depth - 1) for key in value)


# ── what a call gave ─────────────────────────────────────────────────────────────────────────────────────────────────


def dump_result(result: Any) -> Json:
    """Unrecordable where it could not be read back as the same."""
    if isinstance(result, ModelReply):
        # What it says of rate limits was read already, and is on the clock of an event loop.
        fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        known = {**fields, "usage": dict(result.usage), "ignored": list(result.ignored), "rate_limit": None}
        return {"kind": "reply", "value": _json(known)}
    if isinstance(result, ToolResult):
        if result.bundle is not None:
            return {"kind": "bundle", "value": result.bundle.model_dump(mode="json")}
        return {"kind": "tool", "value": _json({**result._asdict(), "usage": dict(result.usage), **_maps(result)})}
    return {"kind": "value", "value": _json(result)}


def load_result(record: Mapping[str, Any]) -> Any:
    value = record["value"]
    if record["kind"] == "reply":
        return ModelReply(**{**value, "ignored": tuple(value["ignored"])})
    if record["kind"] == "bundle":
        return ToolResult.of(EvidenceBundle.model_validate(value))
    return ToolResult(**value) if record["kind"] == "tool" else value


def _maps(result: ToolResult) -> Json:
    return {"cost_breakdown": dict(result.cost_breakdown), "metadata": dict(result.metadata)}


def _json(value: Any) -> Any:
    if not is_json(value):
        raise Unrecordable(f"{a_kind(value)} that JSON cannot give back as it is")
    return value


# ── what it failed with ──────────────────────────────────────────────────────────────────────────────────────────────


def dump_error(error: BaseException, depth: int = 5) -> Json:
    """Name, message and meaning of any exception; the attributes too of one of this library's own."""
    record: Json = {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "message": _text(message_of(error)),
        "means": {**classify(error)._asdict(), "category": classify(error).category.value},
        "base": _own_base(type(error)).__name__,
    }
    if record["base"] != RecordedError.__name__:
        own = {name: value for name, value in vars(error).items() if not name.startswith("__")}
        record["state"] = {name: _dump_attribute(value, depth) for name, value in own.items()}
    if error.__cause__ is not None and depth:
        record["cause"] = dump_error(error.__cause__, depth - 1)
    return record


def load_error(record: Mapping[str, Any]) -> Exception:
    kind = _class_of(record["base"], record["type"], record["module"])
    error = kind.__new__(kind)
    error.args = (record["message"],)
    for name, value in record.get("state", {}).items():
        vars(error)[name] = _load_attribute(value)
    means = record["means"]
    note(error, ErrorClassification(**{**means, "category": ErrorCategory(means["category"])}))
    if "cause" in record:
        error.__cause__ = load_error(record["cause"])
    return error


def _dump_attribute(value: Any, depth: int) -> Any:
    if isinstance(value, OrchestrationOutput):
        return {_OUTPUT: value.model_dump(mode="json")}
    if isinstance(value, BaseException):
        return {_ERROR: dump_error(value, depth - 1)} if depth else None
    if isinstance(value, Mapping) and value and all(isinstance(item, BaseException) for item in value.values()):
        return {_ERRORS: {str(name): dump_error(item, depth - 1) for name, item in value.items()}} if depth else {}
    return value if is_json(value) else None


def _load_attribute(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) != 1:
        return value
    if _OUTPUT in value:
        return OrchestrationOutput.model_validate(value[_OUTPUT])
    if _ERROR in value:
        return load_error(value[_ERROR])
    return {name: load_error(one) for name, one in value[_ERRORS].items()} if _ERRORS in value else value


@cache
def _own() -> Mapping[str, type[Exception]]:
    """The exceptions of this library by name: those that the flow tells apart."""
    known = {name: kind for name, kind in vars(own_errors).items() if isinstance(kind, type)}
    errors = {name: kind for name, kind in known.items() if issubclass(kind, Exception)}
    return {**errors, ReplicateBudgetExceeded.__name__: ReplicateBudgetExceeded}


def _own_base(kind: type[BaseException]) -> type[Exception]:
    """The class itself where it is ours, else the nearest of its bases that is."""
    known = _own().values()
    return next((base for base in kind.__mro__ if base in known), RecordedError)


@cache
def _class_of(base: str, name: str, module: str) -> type[Exception]:
    kind = _own().get(base, RecordedError)
    return kind if kind.__name__ == name else type(name, (kind,), {"__module__": module})


def _text(value: str) -> str:
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


# ── how it ended ─────────────────────────────────────────────────────────────────────────────────────────────────────


def dump_output(output: OrchestrationOutput) -> Json:
    return {"output": output.model_dump(mode="json")}


def dump_raised(error: Exception) -> Json:
    return {"raised": dump_error(error)}


def load_ended(record: Mapping[str, Any]) -> OrchestrationOutput:
    """The output, marked as replayed; or raises what the run raised."""
    if "raised" in record:
        raise load_error(record["raised"])
    output = OrchestrationOutput.model_validate(record["output"])
    output.replayed = True
    return output


def is_final(record: Mapping[str, Any], remember_failures: bool) -> bool:
    """Whether the same request is answered with it again: a failure that a later try could cure is none."""
    if "raised" in record:
        return False
    output = record["output"]
    if output["status"] != "failed":
        return True
    errors = (output["errors"] or {}).values()
    return remember_failures and not any(info.get("is_retryable") for info in errors)
