"""An error classifier of one's own: retry, breaker, budget and output go by what it says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from steer_llm_sdk import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.errors import BudgetExceeded, ErrorCategory, ProviderTimeout, ToolExecutionError
from steer_llm_sdk.orchestration import OrchestrationOutput
from steer_llm_sdk.reliability import ErrorClassification, ErrorClassifier
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err


class Busy(Exception):
    """An exception that this library has never heard of."""


class Mine(ErrorClassifier):
    def classify(self, error: BaseException) -> ErrorClassification:
        if isinstance(error, Busy):
            return ErrorClassification(ErrorCategory.SERVER_ERROR, is_retryable=True, retry_after=7.0)
        if isinstance(error, KeyError):
            raise RuntimeError("a classifier that fails")
        if isinstance(error, LookupError):
            return None  # type: ignore[return-value]
        return super().classify(error)


async def ran(*steps: Any, classifier: ErrorClassifier | None) -> tuple[OrchestrationOutput, ScriptedTool, Any]:
    tool = ScriptedTool("t", *steps, provider="p")
    registry = ToolRegistry()
    registry.register_tool(tool)
    orchestrator = ReliableOrchestrator(
        registry=registry, reliability_config=ReliabilityConfig(error_classifier=classifier)
    )
    return await orchestrator.run("q", "t"), tool, orchestrator


async def test_an_unknown_exception_is_not_retried_unless_a_classifier_says_so() -> None:
    output, tool, _ = await ran(err(Busy()), OK("yes"), classifier=None)
    assert (output.status, len(tool.calls)) == ("failed", 1)
    output, tool, _ = await ran(err(Busy()), OK("yes"), classifier=Mine())
    assert (output.content, len(tool.calls)) == ("yes", 2)
    assert tool.calls[1].at >= 7.0


async def test_the_breaker_and_the_output_go_by_what_it_says() -> None:
    output, tool, orchestrator = await ran(err(Busy("down")), classifier=Mine())
    assert (output.content["error"]["code"], output.content["error"]["is_retryable"]) == ("server_error", True)
    assert len(tool.calls) == 3
    assert orchestrator.executor.breakers.get("p").get_stats()["failures"] == 3


async def test_it_may_also_say_that_something_is_not_worth_another_try() -> None:
    class Never(ErrorClassifier):
        def classify(self, error: BaseException) -> ErrorClassification:
            return ErrorClassification(ErrorCategory.UNKNOWN, is_retryable=False)

    output, tool, _ = await ran(err(503), OK("yes"), classifier=Never())
    assert (output.content["error"]["code"], len(tool.calls)) == ("unknown", 1)


@pytest.mark.parametrize("error", [KeyError("x"), IndexError("x")])
async def test_where_it_fails_or_answers_nonsense_the_library_s_own_answer_holds(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    output, tool, _ = await ran(err(error), classifier=Mine())
    assert (output.content["error"]["code"], len(tool.calls)) == ("unknown", 1)
    assert "error classifier" in caplog.text


@pytest.mark.parametrize("category", ["server_error", "nonsense", None])
async def test_what_is_of_no_category_is_no_answer(category: Any, caplog: pytest.LogCaptureFixture) -> None:
    output, tool, _ = await ran(err(Busy("down")), classifier=Fixed(ErrorClassification(category, True)))
    assert (output.content["error"]["type"], output.content["error"]["code"]) == ("Busy", "unknown")
    assert len(tool.calls) == 1
    assert "must be an ErrorClassification" in caplog.text


@pytest.mark.parametrize("delay", ["5", float("nan"), float("inf"), -5, True])
async def test_a_delay_that_is_none_is_not_waited_for(delay: Any) -> None:
    means = ErrorClassification(ErrorCategory.SERVER_ERROR, True, delay)
    output, tool, _ = await ran(err(Busy()), OK("yes"), classifier=Fixed(means))
    assert (output.content, len(tool.calls)) == ("yes", 2)


class Fixed(ErrorClassifier):
    def __init__(self, means: ErrorClassification) -> None:
        self._means = means

    def classify(self, error: BaseException) -> ErrorClassification:
        return self._means


async def test_what_is_wrapped_afterwards_still_means_what_it_said() -> None:
    error = Busy()
    await ran(err(error), classifier=Mine())
    assert Mine().classify(ToolExecutionError("t", error)).category is ErrorCategory.SERVER_ERROR


async def test_one_exception_object_raised_again_is_asked_about_again() -> None:
    class OnlyOnce(ErrorClassifier):
        asked = 0

        def classify(self, error: BaseException) -> ErrorClassification:
            self.asked += 1
            return ErrorClassification(ErrorCategory.SERVER_ERROR, True) if self.asked == 1 else super().classify(error)

    output, tool, _ = await ran(err(Busy()), classifier=OnlyOnce())
    assert (output.content["error"]["code"], len(tool.calls)) == ("unknown", 2)


def test_something_else_than_a_classifier_is_refused() -> None:
    with pytest.raises(ValidationError, match="ErrorClassifier"):
        ReliabilityConfig(error_classifier=lambda error: None)  # type: ignore[arg-type]


class Says(ErrorClassifier):
    """One meaning for everything; `asked` has what it was asked about."""

    def __init__(self, means: ErrorClassification) -> None:
        self.means = means
        self.asked: list[BaseException] = []

    def classify(self, error: BaseException) -> ErrorClassification:
        self.asked.append(error)
        return self.means


def runner(tool: ScriptedTool, classifier: ErrorClassifier) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(tool)
    return ReliableOrchestrator(
        registry=registry, reliability_config=ReliabilityConfig(error_classifier=classifier, enable_fallback=False)
    )


@pytest.mark.parametrize(("billed", "calls"), [(True, 1), (False, 2)])
async def test_a_budget_charges_what_it_says_may_have_been_billed(billed: bool, calls: int) -> None:
    tool = ScriptedTool("t", err(Busy()), OK("yes"), resource_requirements={"estimated_cost_per_run": 0.6})
    means = ErrorClassification(ErrorCategory.NETWORK, is_retryable=True, maybe_billed=billed)
    run = runner(tool, Says(means)).run("q", "t", options={"budget": {"cost_usd": 1.0}})
    if billed:
        with pytest.raises(BudgetExceeded):
            await run
    else:
        assert (await run).content == "yes"
    assert len(tool.calls) == calls


async def test_it_is_asked_about_an_attempt_that_was_cut_off() -> None:
    says = Says(ErrorClassification(ErrorCategory.UNKNOWN, is_retryable=False))
    tool = ScriptedTool("t", HANG)
    output = await runner(tool, says).run("q", "t", options={"per_agent_timeout_ms": 200})
    assert [type(error) for error in says.asked] == [ProviderTimeout]
    assert (output.content["error"]["code"], len(tool.calls)) == ("unknown", 1)


@pytest.mark.parametrize(("retryable", "calls"), [(True, 2), (False, 1)])
async def test_a_failure_that_it_says_may_pass_is_not_remembered_for_a_key(retryable: bool, calls: int) -> None:
    tool = ScriptedTool("t", err(Busy()))
    orchestrator = runner(tool, Says(ErrorClassification(ErrorCategory.UNKNOWN, is_retryable=retryable)))
    options = {"idempotency_key": "k", "retry_on_failure": False}
    for _ in range(2):
        assert (await orchestrator.run("q", "t", options=options)).status == "failed"
    assert len(tool.calls) == calls
