"""Errors come through a pickle and a copy with all that they have: a pool of processes hands them on so."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from steer_llm_sdk import errors
from steer_llm_sdk.errors import (
    MISSING,
    AllToolsFailed,
    BudgetExceeded,
    ConnectionFailed,
    InvalidRequest,
    OrchestratorError,
    ProviderError,
    ToolExecutionError,
)
from steer_llm_sdk.orchestration.output import OrchestrationOutput, RunFailed

OURS = (OrchestratorError, ProviderError)
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OURS)]
MORE: dict[str, Any] = {"original_error": KeyError("x"), "failures": {"t": KeyError("x")}, "reasons": {"t": "no"}}


def made(kind: type[Exception]) -> Exception:
    """One with something in each of its fields."""
    try:
        wanted = list(inspect.signature(kind).parameters.values())
    except ValueError:  # It has no __init__ of its own.
        wanted = []
    if not wanted or wanted[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return kind("x")
    named = [each for each in wanted if each.kind is not inspect.Parameter.VAR_KEYWORD and each.name != "rate_limit"]
    return kind(**{each.name: MORE[each.name] if each.name in MORE else value_for(each.annotation) for each in named})


def value_for(annotation: str) -> Any:
    if annotation in ("str", "str | None", "object"):
        return "a"
    if "Sequence" in annotation or "Iterable" in annotation:
        return ["a"]
    return {"a": 1} if "Mapping" in annotation else 5


def told(error: Any) -> Any:
    """All that it has; of an exception in it, what it says."""
    if isinstance(error, BaseException):
        return type(error), error.args, told(vars(error)), str(error)
    if isinstance(error, dict):
        return {key: told(value) for key, value in error.items()}
    return error


def through_a_pickle(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("way", [through_a_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_comes_through_with_all_its_fields(kind: type[Exception], way: Any) -> None:
    error = made(kind)
    come = way(error)
    assert come is not error
    assert told(come) == told(error)


class OfOnesOwn(ProviderError):
    def __init__(self, one: int, two: int, *, three: int) -> None:
        super().__init__("own", "p", status_code=429)
        self.sum = one + two + three


def test_one_that_is_derived_needs_nothing_for_it() -> None:
    error = through_a_pickle(OfOnesOwn(1, 2, three=3))
    assert (type(error), error.sum, error.status_code, error.is_retryable) == (OfOnesOwn, 6, 429, True)


def test_an_output_goes_along_and_what_cannot_be_pickled_stays() -> None:
    output = OrchestrationOutput(content="paid", cost_usd=1.0, elapsed_ms=5)
    come = through_a_pickle(BudgetExceeded("cost", 1, 2, output=output))
    assert (come.output, come.limit, come.actual) == (output, 1, 2)
    assert through_a_pickle(RunFailed(output)).output == output
    left = through_a_pickle(BudgetExceeded("cost", 1, 2, ["t"], output=threading.Lock()))
    assert (left.output, left.affected_agents) == (None, ["t"])
    assert copy.copy(BudgetExceeded("cost", 1, 2, output=left)).output is left


class Unreadable(Exception):
    """As many client libraries have them: it can be written, and not be read again."""

    def __init__(self, *, response: Any) -> None:
        super().__init__("down")


def test_an_exception_that_cannot_be_pickled_has_one_with_its_text_in_its_place() -> None:
    lost = Unreadable(response=1)
    tool = through_a_pickle(ToolExecutionError("t", lost))
    assert (type(tool.original_error), str(tool.original_error)) == (OrchestratorError, "Unreadable: down")
    assert str(tool) == "Tool 't' failed: down"
    both = through_a_pickle(AllToolsFailed({"a": lost, "b": KeyError("x")}))
    assert {name: str(error) for name, error in both.failures.items()} == {"a": "Unreadable: down", "b": "'x'"}


def test_that_nothing_was_given_is_still_that() -> None:
    assert through_a_pickle(InvalidRequest("query", MISSING, "give one")).given is MISSING


def fail() -> None:
    raise ConnectionFailed("down", "p", sent=False, status_code=503)


def test_a_process_of_a_pool_hands_it_on_and_works_on() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(ConnectionFailed, match="down") as raised:
            pool.submit(fail).result(60)
        assert (raised.value.provider, raised.value.sent, raised.value.status_code) == ("p", False, 503)
        assert pool.submit(len, "a").result(60) == 1
