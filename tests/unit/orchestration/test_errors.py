"""The tree of exceptions: what is what, what is worth another try, and what their sentences say."""

from __future__ import annotations

from typing import Any

import pytest

from steer_llm_sdk import errors
from steer_llm_sdk.errors import (
    AllToolsFailed,
    BudgetExceeded,
    CircuitOpen,
    ConflictError,
    ErrorCategory,
    InvalidOutput,
    InvalidRequest,
    NoEligibleTool,
    OrchestratorError,
    ProviderError,
    ToolExecutionError,
    ToolNotFound,
    a_kind,
)
from steer_llm_sdk.reliability.classify import classify


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (ToolExecutionError, (OrchestratorError,)),
        (BudgetExceeded, (OrchestratorError,)),
        (ConflictError, (OrchestratorError,)),
        (InvalidRequest, (OrchestratorError, ValueError)),
        (ToolNotFound, (OrchestratorError, ValueError)),
        (NoEligibleTool, (OrchestratorError, ValueError)),
        (CircuitOpen, (errors.Rejected, ProviderError, OrchestratorError)),
        (errors.AttemptsUsedUp, (errors.Rejected,)),
        (errors.TruncatedStream, (errors.BadResponse, ProviderError)),
        (errors.ContextWindowExceeded, (errors.RequestRejected, ProviderError)),
    ],
)
def test_the_tree(kind: type, bases: tuple[type, ...]) -> None:
    assert all(issubclass(kind, base) for base in bases)


def test_every_exception_is_drawn_in_the_tree() -> None:
    drawn = errors.__doc__ or ""
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [name for name in kinds if name not in drawn and not name.startswith("_")] == []


def test_a_tool_error_as_callers_construct_it() -> None:
    error = ToolExecutionError("t", ValueError("x"))
    assert (error.tool_name, error.is_retryable, error.metadata) == ("t", False, {})
    assert str(error) == "Tool 't' failed: x"
    assert ToolExecutionError("t", ValueError("x"), True, {"a": 1}).is_retryable
    assert str(ToolExecutionError("t", KeyError())) == "Tool 't' failed: KeyError"


@pytest.mark.parametrize(
    ("cause", "retryable"),
    [
        (ProviderError("x", "p", 503), True),
        (ProviderError("x", "p", 400), False),
        (ToolExecutionError("u", ProviderError("x", "p", 503)), True),
        (TimeoutError(), False),
    ],
)
def test_a_tool_error_that_was_told_nothing_says_what_its_cause_says(cause: Exception, retryable: bool) -> None:
    assert ToolExecutionError("t", cause).is_retryable is retryable


def test_all_tools_failed_holds_every_cause_in_order_and_may_be_retried_if_one_of_them_may() -> None:
    error = AllToolsFailed({"b": ValueError("x"), "a": ProviderError("down", "p", 503)})
    assert list(error.failures) == ["b", "a"]
    assert str(error) == "b: x; a: down"
    assert classify(error).is_retryable
    assert not classify(AllToolsFailed({"b": ValueError("x")})).is_retryable
    assert not classify(AllToolsFailed({})).is_retryable


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["down"], "r1: down"),
        (["down", "down", "down"], "all 3: down"),
        (["down", "late", "down"], "r1, r3: down; r2: late"),
    ],
)
def test_what_several_say_is_said_once(messages: list[str], said: str) -> None:
    failures = {f"r{number}": ValueError(message) for number, message in enumerate(messages, start=1)}
    assert str(AllToolsFailed(failures)) == said


def test_an_output_without_the_form_asked_for_is_not_worth_a_third_try_and_is_kept() -> None:
    error = InvalidOutput("not the form", "p", answer="{")
    assert (error.answer, error.is_retryable, error.category) == ("{", False, ErrorCategory.BAD_RESPONSE)


def test_a_circuit_that_is_open_is_a_503_that_says_when() -> None:
    error = CircuitOpen("acme", 2.5)
    assert str(error) == "Circuit breaker acme is OPEN; a probe is due in 2.5 s"
    assert (error.status_code, error.provider, error.target, error.retry_after) == (503, "acme", "acme", 2.5)
    assert str(CircuitOpen("acme")) == "Circuit breaker acme is OPEN"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ConflictError("k"),
            "Idempotency key 'k' was used with different request parameters; give this one a new key",
        ),
        (ConflictError("k", "mine"), "mine"),
        (ToolNotFound("x"), "Tool 'x' not found. Available tools: none"),
        (ToolNotFound("x", ["b", "a"]), "Tool 'x' not found. Available tools: a, b"),
        (NoEligibleTool(), "No tools available for planning; register one first"),
        (NoEligibleTool({"a": "it is open"}), "No tools available for planning: a: it is open"),
        (InvalidRequest("k", 11, "give 2 to 10"), "k: 11 cannot be used; give 2 to 10"),
        (BudgetExceeded("tokens", 10, 500), "tokens budget exceeded: 500 > 10"),
        (BudgetExceeded("cost", 1e-6, 2.5e-6), "cost budget exceeded: 2.5e-06 > 1e-06"),
    ],
)
def test_the_sentences_have_the_facts_in_them(error: Exception, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(("given", "shown"), [("x" * 200, "'" + "x" * 76 + "..."), ([10**5000], "a list")])
def test_what_was_given_is_shown_and_not_at_any_length(given: Any, shown: str) -> None:
    assert str(InvalidRequest("f", given, "no")) == f"f: {shown} cannot be used; no"


@pytest.mark.parametrize(
    ("status", "category"),
    [(None, "unknown"), (200, "unknown"), (302, "unknown"), (418, "validation"), (511, "server_error")],
)
def test_any_status_has_a_category(status: int | None, category: str) -> None:
    assert ProviderError("x", "p", status).category.value == category


def test_a_provider_error_is_believed_when_somebody_sets_is_retryable() -> None:
    error = ProviderError("x", "p", 400, original_error=KeyError("x"))
    assert not error.is_retryable
    error.is_retryable = True
    assert error.is_retryable
    assert isinstance(error.original_error, KeyError)


def test_a_type_has_the_article_that_its_name_is_spoken_with() -> None:
    assert [a_kind(value) for value in (1, object(), "", b"")] == ["an int", "an object", "a str", "bytes"]
