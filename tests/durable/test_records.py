"""What is written down of a call is read back as the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk import errors
from steer_llm_sdk.durable._records import (
    RecordedError,
    Unrecordable,
    dump_error,
    dump_result,
    is_json,
    load_error,
    load_result,
)
from steer_llm_sdk.models.quota import RateLimitStatus
from steer_llm_sdk.orchestration import OrchestrationOutput
from steer_llm_sdk.orchestration._result import ToolResult, describe_error
from steer_llm_sdk.orchestration.tools._model_call import ReplicateBudgetExceeded
from steer_llm_sdk.providers.base import ModelReply
from steer_llm_sdk.reliability.classify import classify

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def through_json(record: Any) -> Any:
    return json.loads(json.dumps(record))


@given(JSON)
def test_json_is_what_comes_back_as_it_was(value: Any) -> None:
    assert is_json(value)
    assert through_json(value) == value


@pytest.mark.parametrize("value", [(1,), {1: 2}, {"a": (1,)}, float("nan"), b"x", {1, 2}, "\ud800", [object()]])
def test_what_would_come_back_as_something_else_is_none(value: Any) -> None:
    assert not is_json(value)
    with pytest.raises(Unrecordable):
        dump_result(value)


@given(
    st.builds(
        ModelReply,
        text=TEXT,
        model=TEXT,
        usage=st.dictionaries(TEXT, st.integers(), max_size=3),
        cost_usd=st.none() | st.floats(min_value=0, allow_infinity=False),
        request_id=st.none() | TEXT,
        finish_reason=st.none() | TEXT,
        simulated=st.booleans(),
        local=st.booleans(),
        ignored=st.lists(TEXT, max_size=2).map(tuple),
    )
)
def test_a_reply_is_read_back_as_it_was(reply: ModelReply) -> None:
    assert load_result(through_json(dump_result(reply))) == reply


def test_what_a_reply_said_of_rate_limits_is_not_kept() -> None:
    reply = ModelReply(text="x", model="m", rate_limit=RateLimitStatus(at=1.0))
    assert load_result(through_json(dump_result(reply))) == ModelReply(text="x", model="m")


@given(JSON, st.dictionaries(TEXT, st.integers(), max_size=2), st.dictionaries(TEXT, JSON, max_size=2))
def test_a_tool_result_is_read_back_as_it_was(content: Any, usage: dict[str, int], metadata: dict[str, Any]) -> None:
    result = ToolResult(content, usage, 0.5, {"a": 0.5}, metadata)
    assert load_result(through_json(dump_result(result))) == result


class Own(errors.RateLimited):
    """Somebody's subclass."""


class Foreign(Exception):
    pass


def _raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def _declared(error: errors.ProviderError, retryable: bool) -> Exception:
    error.is_retryable = retryable
    return error


P = {"request_id": "r", "code": "c", "usage": {"total_tokens": 3}}
ERRORS: list[Exception] = [
    errors.OrchestratorError("plain"),
    errors.ToolExecutionError("t", TimeoutError("slow"), metadata={"x": 1}),
    errors.BudgetExceeded("tokens", 10, 500, ["a"], budget="team", resets_in=3.0),
    errors.BudgetExceeded("time", 10, 500, output=OrchestrationOutput(content="x", elapsed_ms=3)),
    errors.ConflictError("key"),
    errors.StoreUnavailable("down"),
    errors.AllToolsFailed({"a": errors.RateLimited("slow", "p", 429, 2.5), "b": ValueError("no")}),
    errors.InvalidRequest("field", object(), "give another"),
    errors.ToolNotFound("x", ["a", "b"]),
    errors.NoEligibleTool({"a": "closed"}),
    errors.CircuitOpen("openai", 12.5),
    errors.QueueFull("openai", 5, 1.0),
    errors.WaitTooLong("openai"),
    errors.AttemptsUsedUp(10),
    errors.ProviderError("odd", "p", 418),
    errors.ConnectionFailed("broke", "p", sent=False, **P),
    errors.InvalidOutput("not JSON", "p", answer="text", **P),
    *(kind("said", "p", 400, 1.5, **P) for kind in (errors.AuthenticationFailed, errors.TruncatedStream, Own)),
    _declared(errors.ProviderUnavailable("x", "p", 503), False),
    ReplicateBudgetExceeded("cost", 0.1, 0.2, overrun=True),
    ValueError("bad"),
    TimeoutError(),
    ConnectionResetError(104, "reset"),
    Foreign("gone \ud800"),
    _raised(Foreign("wrapped"), errors.RateLimited("slow", "p", 429, 3.0)),
    ExceptionGroup("several", [ValueError("one"), Foreign("two")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_says_and_means_what_it_said_and_meant(error: Exception) -> None:
    again = load_error(through_json(dump_error(error)))
    assert describe_error(again) == describe_error(error)
    assert classify(again) == classify(error)
    assert type(again).__name__ == type(error).__name__


@pytest.mark.parametrize("error", ERRORS[:16], ids=lambda error: type(error).__name__)
def test_an_error_of_ours_is_of_the_same_class_with_the_same_attributes(error: Exception) -> None:
    again = load_error(through_json(dump_error(error)))
    assert type(again) is type(error)
    kept = {name: value for name, value in vars(error).items() if is_json(value) or isinstance(value, Exception)}
    for name, value in kept.items():
        found = vars(again)[name]
        assert str(found) == str(value) if isinstance(value, Exception) else found == value


def test_an_error_of_somebody_elses_is_one_of_the_bases_it_has_here() -> None:
    own, foreign = load_error(dump_error(Own("x", "p", 429))), load_error(dump_error(Foreign("x")))
    assert isinstance(own, errors.RateLimited)
    assert isinstance(foreign, RecordedError)
    assert not isinstance(foreign, (errors.OrchestratorError, errors.ProviderError))


def test_nothing_that_is_read_is_ever_called() -> None:
    """A record names a class of this library or none: a name from outside becomes a name only."""
    record = {**dump_error(Foreign("x")), "base": "system", "type": "Popen", "module": "os"}
    assert isinstance(load_error(record), RecordedError)
