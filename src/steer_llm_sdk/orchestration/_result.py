"""What a tool may return, and what becomes of it. The only ladder of isinstance in the package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from steer_llm_sdk.errors import (
    InvalidRequest,
    OrchestratorError,
    ProviderError,
    ToolExecutionError,
    message_of,
    shown,
)
from steer_llm_sdk.evidence._json import MOST_BITS
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle, json_value
from steer_llm_sdk.reliability.classify import classify

E = TypeVar("E", bound=BaseException)

_MAX_DEPTH = 100
_BY_DECISION = frozenset({"decided", "converged", "certified", "distance"})
"""Reasons to stop early that leave nothing to be asked: such a bundle is whole."""


_SCALARS = frozenset({str, bool, type(None)})
"""Not int: one of 5,000 digits can be neither written as JSON nor read again."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_new = tuple.__new__


class ToolResult(NamedTuple):
    """`metadata` is the tool's own. `bundle` is set where `content` holds one."""

    content: Any
    usage: Mapping[str, Any] = _NOTHING
    cost_usd: float | None = None
    cost_breakdown: Mapping[str, float] = _NOTHING
    metadata: Mapping[str, Any] = _NOTHING
    bundle: EvidenceBundle | None = None

    @classmethod
    def of(cls, returned: Any) -> ToolResult:
        """An EvidenceBundle; a mapping or model with `content`, `usage`, `cost_usd`, `metadata`; or any value."""
        kind = type(returned)
        if kind in _SCALARS and (kind is not str or returned.isascii()):
            # What cls(returned) makes, in half the time.
            return _new(cls, (returned, _NOTHING, None, _NOTHING, _NOTHING, None))
        if isinstance(returned, ToolResult):
            return returned
        if kind is dict:
            return cls._of_mapping(returned)
        if isinstance(returned, EvidenceBundle):
            return cls._of_bundle(returned)
        if isinstance(returned, BaseModel):
            return cls._of_mapping(_dumped(returned))
        if isinstance(returned, Mapping):
            return cls._of_mapping(returned)
        content, warning = as_json(returned)
        return cls(content, metadata={"content_warning": warning}) if warning else cls(content)

    @classmethod
    def _of_bundle(cls, bundle: EvidenceBundle) -> ToolResult:
        view = bundle.model_dump(mode="json")
        content = {"evidence_bundle": {part: view[part] for part in ("meta", "replicates", "summary")}}
        return cls(
            content,
            view["usage_total"] or {},
            bundle.cost_total_usd,
            view["cost_breakdown"] or {},
            {**(view["metadata"] or {}), "bundle_meta": view["meta"]},
            bundle,
        )

    @classmethod
    def _of_mapping(cls, returned: Mapping[str, Any]) -> ToolResult:
        content, warning = as_json(returned.get("content", returned))
        metadata = json_mapping(returned.get("metadata"))
        if warning:
            metadata = {**metadata, "content_warning": warning}
        used, price = returned.get("usage"), returned.get("cost_usd")
        usage, cost_usd = json_mapping(used), _cost(price)
        if (price is not None and cost_usd is None) or (used is not None and not isinstance(used, Mapping)):
            metadata = {**metadata, "account_warning": _left_out(used, price, cost_usd)}
        costs = {name: _cost(cost) for name, cost in json_mapping(returned.get("cost_breakdown")).items()}
        return cls(content, usage, cost_usd, {name: cost for name, cost in costs.items() if cost is not None}, metadata)

    @property
    def status(self) -> Literal["succeeded", "partial", "failed"]:
        """Honest: a bundle with fewer valid replicates than were asked for is partial, one with none has failed.

        One that stopped because it knew enough is whole, if it has `min_valid`.
        """
        if self.bundle is None:
            # An answer that its tool says was cut off is no whole one.
            return "partial" if self.metadata.get("truncated") is True else "succeeded"
        meta = self.bundle.meta
        valid = sum(replicate.quality.valid for replicate in self.bundle.replicates)
        completed = valid if meta.k_completed is None else min(valid, meta.k_completed)
        if not completed:
            return "failed"
        stopped_well = meta.early_stopped and meta.early_stop_reason in _BY_DECISION and completed >= meta.min_valid
        return "succeeded" if stopped_well or completed >= meta.k else "partial"


def _dumped(model: BaseModel) -> dict[str, Any]:
    try:
        return model.model_dump()
    except Exception:  # A serializer of somebody else's; the fields are still there.
        return dict(model)


def as_json(value: Any) -> tuple[Any, str | None]:
    """`value` in plain JSON types, and a warning where something had to be changed: what was paid for is not lost."""
    kind = type(value)
    if kind in _SCALARS and (kind is not str or value.isascii()):
        return value, None
    try:
        return json_value(value), None
    except (ValueError, RecursionError) as error:
        return _forced(value, _MAX_DEPTH), f"not all of it was JSON: {error}"


def _forced(value: Any, depth: int, around: tuple[int, ...] = ()) -> Any:
    """`around` are the identities of what it is in: a node and its parent that hold each other would have no end."""
    if depth == 0 or id(value) in around:
        return "(nested too deep)"
    if isinstance(value, Mapping):
        return _forced_object(value, depth - 1, (*around, id(value)))
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_forced(item, depth - 1, (*around, id(value))) for item in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MOST_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _text(_said(value))


def _forced_object(value: Mapping[Any, Any], depth: int, around: tuple[int, ...]) -> dict[str, Any]:
    forced: dict[str, Any] = {}
    for key, item in value.items():
        name = _text(_said(key) if not isinstance(key, str) else key)
        while name in forced:  # The keys 1 and "1" are two things, and both were paid for.
            name += "'"
        forced[name] = _forced(item, depth, around)
    return forced


def _said(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"({type(value).__name__})"


def _text(value: str) -> str:
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _cost(value: Any) -> float | None:
    """USD; None for what is no price."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, Fraction)):
        return None
    try:
        cost = float(value)
    except (OverflowError, ValueError):
        return None
    return cost if math.isfinite(cost) and cost >= 0 else None


def _left_out(usage: Any, price: Any, cost: float | None) -> str:
    """What a tool said of its usage and its price that nobody can count with."""
    said = []
    if price is not None and cost is None:
        said.append(f"cost_usd: {shown(price)} is no price; give USD as a finite number from 0")
    if usage is not None and not isinstance(usage, Mapping):
        said.append(f"usage: {shown(usage)} is no mapping; give {{'total_tokens': 12}}")
    return _text("left out: " + "; ".join(said))


def json_mapping(value: Any) -> dict[str, Any]:
    """A mapping in plain JSON types; empty where it is none."""
    if not isinstance(value, Mapping):
        return {}
    plain, _ = as_json(value)
    return plain if isinstance(plain, dict) else {}


def readable(tool: str, error: E) -> E | ToolExecutionError:
    """`error`, or what stands for one that raises whatever it is asked, for it would do so wherever it is looked at."""
    try:
        _ = error.__class__, error.__cause__, error.__context__, error.__traceback__
    except Exception:
        said = f"{type(error).__name__}: {message_of(error)}"
        return ToolExecutionError(tool, OrchestratorError(f"{said} (an exception that cannot be read)"))
    return error


def describe_error(error: BaseException) -> dict[str, Any]:
    """An error as content: type, message, code (its category), is_retryable, and what else is known. Never raises."""
    means = classify(error)
    info: dict[str, Any] = {
        "type": type(error).__name__,
        "message": _text(message_of(error)),
        "code": means.category.value,
        "is_retryable": means.is_retryable,
    }
    known: dict[str, Any] = {"status_code": means.status_code, "retry_after": means.retry_after}
    try:
        if isinstance(error, ProviderError):
            known |= {"provider": error.provider, "request_id": error.request_id, "provider_code": error.code}
        elif isinstance(error, InvalidRequest):
            known["field"] = error.field
    except Exception:  # One of somebody else's that cannot be read.
        known |= {"provider": None}
    return {**info, **{name: as_json(value)[0] for name, value in known.items() if value is not None}}
