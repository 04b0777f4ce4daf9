from __future__ import annotations

import asyncio
import functools
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date
from enum import Enum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from pydantic import BaseModel, Field, SecretStr

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration import Orchestrator, ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.orchestration.tools import _runner
from steer_llm_sdk.orchestration.tools._runner import set_runner
from steer_llm_sdk.orchestration.tools.function import FunctionTool, tool

if TYPE_CHECKING:
    from steer_llm_sdk.streaming.manager import EventManager


class Point(BaseModel):
    x: int
    y: int = 0


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@tool
async def shout(text: str, marks: int = 1) -> str:
    """Say it louder.

    Much louder.
    """
    return text.upper() + "!" * marks


# What it is


def test_a_decorated_function_is_a_tool_named_and_described_after_it() -> None:
    assert isinstance(shout, Tool)
    assert (shout.name, shout.version, shout.provider, shout.description) == ("shout", "1.0.0", None, "Say it louder.")
    assert (shout.capabilities, shout.composite) == ((), False)
    assert shout.targets == (("shout", "shout"),)
    assert shout.__name__ == "shout"
    assert list(inspect.signature(shout).parameters) == ["text", "marks"]


def test_everything_that_a_tool_declares_can_be_given() -> None:
    @tool(
        name="louder",
        provider="acme",
        version="2.1.0",
        capabilities=["text"],
        description="Louder.",
        supported_models=["m"],
        default_options={"k": 2},
        resource_requirements={"estimated_cost_per_run": 0.5},
        composite=True,
    )
    def louder(text: str) -> str:
        """Not this."""
        return text

    assert (louder.name, louder.provider, louder.version) == ("louder", "acme", "2.1.0")
    assert (louder.capabilities, louder.description, louder.supported_models) == (("text",), "Louder.", ("m",))
    assert louder.default_options == {"k": 2}
    assert louder.composite
    assert louder.targets == (("acme", "louder"),)
    assert louder.worst_case({}, {}).cost_usd == 0.5


def test_it_can_be_registered() -> None:
    registry = ToolRegistry()
    registry.register_tool(shout)
    assert registry.get_tool("shout") is shout
    assert registry.list_tools()["shout"]["description"] == "Say it louder."


async def test_it_can_still_be_called_like_the_function() -> None:
    assert await shout("hello", marks=2) == "HELLO!!"
    assert await shout("hello") == "HELLO!"


def test_a_sync_function_is_called_on_the_spot() -> None:
    @tool
    def add(a: int, b: int = 1) -> int:
        return a + b

    assert add(1) == 2
    assert add(1, b=5) == 6


def test_no_docstring_is_no_description() -> None:
    @tool
    def quiet(text: str) -> str:
        return text

    assert quiet.description == ""


# Requests


async def test_the_keys_of_a_request_are_the_parameters() -> None:
    assert await shout.execute({"text": "hello", "marks": 3}) == "HELLO!!!"


async def test_a_default_of_the_function_is_used_where_a_key_is_left_out() -> None:
    assert await shout.execute({"text": "hello"}) == "HELLO!"


@pytest.mark.parametrize("request_", ["hello", {"query": "hello"}, {"query": "hello", "type": "t", "options": {}}])
async def test_a_text_goes_to_the_first_parameter_that_takes_one(request_: Any) -> None:
    @tool
    async def echo(count: int = 2, text: str | None = None, other: str = "") -> str:
        return f"{count}{text}{other}"

    assert await echo.execute(request_) == "2hello"


async def test_a_text_goes_to_query_where_there_is_one() -> None:
    @tool
    async def ask(text: str = "", query: str = "") -> list[str]:
        return [text, query]

    assert await ask.execute("hello") == ["", "hello"]


async def test_a_text_goes_to_the_only_parameter_if_that_may_be_anything() -> None:
    @tool
    async def echo(thing) -> Any:  # type: ignore[no-untyped-def]
        return thing

    assert await echo.execute("hello") == "hello"
    assert await echo.execute({"thing": [1]}) == [1]


@pytest.mark.parametrize("hint", [int, Literal["hello"], date, Colour, list[str]])
def test_a_text_does_not_go_where_only_some_texts_fit(hint: Any) -> None:
    def pick(choice: Any) -> Any:
        raise AssertionError("never called")

    pick.__annotations__["choice"] = hint
    with pytest.raises(InvalidRequest, match=r"choice is missing; .* also query: leave it out"):
        tool(pick).validate_request("hello")


async def test_the_planners_keys_are_left_out_of_the_call() -> None:
    @tool
    async def given(text: str, **more: Any) -> Any:
        return [text, more]

    request = {"text": "a", "type": "shouting", "options": {"budget": {"tokens": 5}}, "colour": "red"}
    given.validate_request(request)
    assert await given.execute(request) == ["a", {"colour": "red"}]


async def test_a_parameter_may_have_a_planners_key_as_its_name() -> None:
    @tool
    async def kind(type: str, options: list[int]) -> Any:
        return [type, options]

    assert await kind.execute({"type": "t", "options": [1]}) == ["t", [1]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"text": 5}, 'text: 5 cannot be used; it should be a valid string (schema: {"type": "string"})'),
        (
            {"text": "a", "marks": "five"},
            'marks: \'five\' cannot be used; it should be a valid integer (schema: {"type": "integer"})',
        ),
        ({"text": "a", "marks": "5"}, "marks: '5' cannot be used"),
        ({"text": "a", "marks": True}, "marks: True cannot be used"),
        ({"text": "a", "marks": 1.5}, "marks: 1.5 cannot be used"),
        ({}, 'text is missing; give it (schema: {"type": "string"})'),
        (
            {"text": "a", "mark": 1},
            "mark: 1 cannot be used; leave it out: the parameters are text, marks",
        ),
        ({"marks": "x"}, "text is missing; give it"),
        ([1], "request: [1] cannot be used; give a mapping with text, marks"),
        (None, "request: None cannot be used; give a mapping with text, marks"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_with_field_value_and_remedy(request_: Any, message: str) -> None:
    for attempt in (shout.validate_request, shout.execute):
        with pytest.raises(InvalidRequest) as caught:
            await _maybe(attempt(request_))
        assert str(caught.value).startswith(message)


async def _maybe(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        shout.validate_request({"marks": "x", "colour": 1})
    assert caught.value.field == "text"
    told = str(caught.value)
    assert "; also marks: it should be a valid integer" in told
    assert "colour: leave it out" in told


def test_a_secret_that_does_not_fit_is_not_shown() -> None:
    @tool
    def login(key: Annotated[SecretStr, Field(min_length=30)]) -> str:
        raise AssertionError("never called")

    with pytest.raises(InvalidRequest) as caught:
        login.validate_request({"key": "sk-very-secret"})
    assert "sk-very" not in str(caught.value)
    assert caught.value.field == "key"


async def test_half_a_character_reaches_the_function_as_it_came() -> None:
    assert await shout.execute(json.loads('{"text": "a\\ud800"}')) == "A\ud800!"


async def test_values_come_in_jsons_form_or_pythons() -> None:
    @tool
    async def take(
        point: Point, when: date, pair: tuple[int, int], colour: Colour, ratio: float, some: set[int]
    ) -> list[Any]:
        return [point, when, pair, colour, ratio, some]

    as_python: dict[str, Any] = {
        "point": Point(x=1),
        "when": date(2026, 11, 22),
        "pair": (1, 2),
        "colour": Colour.RED,
        "ratio": 2,
        "some": {3},
    }
    as_json = {"point": {"x": 1}, "when": "2026-11-22", "pair": [1, 2], "colour": "red", "ratio": 2, "some": [3]}
    assert await take.execute(as_json) == await take.execute(as_python) == list(as_python.values())
    with pytest.raises(InvalidRequest, match=r"point\.x: '1' cannot be used"):
        take.validate_request({**as_json, "point": {"x": "1"}})


def test_a_value_that_no_json_can_hold_is_judged_as_python() -> None:
    with pytest.raises(InvalidRequest, match=r"marks: .*object.* cannot be used"):
        shout.validate_request({"text": "a", "marks": object()})


def test_limits_in_a_hint_are_enforced() -> None:
    @tool
    def roll(dice: Annotated[int, Field(ge=1, le=6, description="how many")]) -> int:
        raise AssertionError("never called")

    assert roll.request_schema["properties"]["dice"] == {
        "description": "how many",
        "minimum": 1,
        "maximum": 6,
        "title": "Dice",
        "type": "integer",
    }
    with pytest.raises(InvalidRequest, match="dice: 7 cannot be used; it should be less than or equal to 6"):
        roll.validate_request({"dice": 7})


def test_type_hints_become_a_json_schema() -> None:
    schema = shout.request_schema
    assert schema["type"] == "object"
    assert schema["required"] == ["text"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["marks"]["default"] == 1
    schema["properties"].clear()
    assert shout.request_schema["properties"]


@given(
    request=st.dictionaries(
        st.sampled_from(["text", "marks", "other"]), st.none() | st.booleans() | st.integers() | st.text() | st.floats()
    )
)
def test_what_the_schema_allows_is_accepted_and_nothing_else(request: dict[str, Any]) -> None:
    allowed = validator_for(shout.request_schema).is_valid(request)
    # JSON Schema calls 1.0 an integer, and knows no difference between a text and half a character.
    odd = any(isinstance(value, float) for value in request.values())
    if allowed and not odd:
        shout.validate_request(request)
    elif not allowed:
        with pytest.raises(InvalidRequest):
            shout.validate_request(request)


async def test_parameters_may_have_any_name_and_kind() -> None:
    @tool
    async def odd(
        model_config: int, _hidden: int, /, copy: int = 3, *, json: int = 4, parameter_0: int = 5
    ) -> list[int]:
        return [model_config, _hidden, copy, json, parameter_0]

    assert await odd.execute({"model_config": 1, "_hidden": 2}) == [1, 2, 3, 4, 5]
    given = {"model_config": 1, "_hidden": 2, "copy": 6, "json": 7, "parameter_0": 8}
    assert await odd.execute(given) == [1, 2, 6, 7, 8]


async def test_a_positional_parameter_with_a_default_may_be_left_out() -> None:
    @tool
    async def f(a: int = 1, b: int = 2, /) -> list[int]:
        return [a, b]

    assert await f.execute({}) == [1, 2]
    assert await f.execute({"a": 5}) == [5, 2]


async def test_keywords_of_any_name_keep_the_type_that_is_declared_for_them() -> None:
    @tool
    async def total(base: int, **more: int) -> int:
        return base + sum(more.values())

    assert await total.execute({"base": 1, "x": 2, "y": 3}) == 6
    with pytest.raises(InvalidRequest, match="x: '2' cannot be used; it should be a valid integer"):
        total.validate_request({"base": 1, "x": "2"})


def test_a_default_that_is_no_json_is_left_out_of_the_schema() -> None:
    marker = object()

    @tool
    def f(a: Any = marker) -> bool:
        return a is marker

    assert "default" not in f.request_schema["properties"]["a"]
    assert f()


# Options and events


async def test_options_and_events_are_handed_over_where_they_are_asked_for() -> None:
    @tool
    async def look(text: str, options: Mapping[str, Any], event_manager: EventManager | None = None) -> list[Any]:
        return [text, options, event_manager]

    assert "options" not in look.request_schema["properties"]
    assert "event_manager" not in look.request_schema["properties"]
    events: Any = SimpleNamespace()
    given = {"k": 1}
    result = await look.execute({"text": "a"}, given, events)
    assert result == ["a", {"k": 1}, events]
    assert result[1] is not given
    assert await look.execute({"text": "a", "options": {"budget": 1}}) == ["a", {}, None]


async def test_options_that_may_be_none_are_handed_over_too() -> None:
    @tool
    async def look(options: dict[str, Any] | None = None) -> Any:
        return options

    assert await look.execute({}, {"k": 1}) == {"k": 1}


# Functions that are not async


async def test_a_sync_function_does_not_block_the_loop_and_keeps_the_context() -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    @tool
    def where(text: str) -> list[Any]:
        return [threading.current_thread() is threading.main_thread(), user.get()]

    user.set("ada")
    assert await where.execute("x") == [False, "ada"]


async def test_a_sync_function_that_returns_an_awaitable_is_awaited() -> None:
    @tool(name="partly")
    def partly(text: str) -> Any:
        return shout(text)

    assert await partly.execute("x") == "X!"


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k")])
async def test_what_a_function_raises_comes_through(error: Exception) -> None:
    @tool
    def bad(text: str) -> str:
        raise error

    with pytest.raises(type(error)) as caught:
        await bad.execute("x")
    assert caught.value is error


async def test_a_stop_iteration_does_not_hang_the_run() -> None:
    @tool
    def bad(text: str) -> Any:
        return next(iter([]))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await asyncio.wait_for(bad.execute("x"), 5)


# Kinds of functions


class Greeter:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def greet(self, name: str) -> str:
        """Greet somebody."""
        return f"{self.greeting}, {name}"

    async def __call__(self, name: str) -> str:
        return f"{self.greeting}!! {name}"


async def test_bound_methods_partials_and_callable_objects_can_be_tools() -> None:
    greet = tool(Greeter("Hi").greet)
    assert (greet.name, greet.description) == ("greet", "Greet somebody.")
    assert await greet.execute("Ada") == "Hi, Ada"
    partial = tool(name="partial")(functools.partial(Greeter("Ho").greet, name="Bob"))
    assert partial.description == ""
    assert await partial.execute({"name": "Eve"}) == "Ho, Eve"
    called = tool(name="called")(Greeter("Hey"))
    assert await called.execute("Ada") == "Hey!! Ada"


def test_a_tool_needs_a_name() -> None:
    with pytest.raises(InvalidRequest, match="name: '<lambda>' cannot be used; give the tool a name"):
        tool(lambda text: text)
    with pytest.raises(InvalidRequest, match="name: ' ' cannot be used"):
        tool(name=" ")(lambda text: text)
    assert tool(name="ok")(lambda text: text).name == "ok"


async def _yields(text: str) -> AsyncIterator[str]:
    yield text


def _yields_too(text: str) -> Any:
    yield text


def _takes_stars(*texts: str) -> None: ...


def _takes_function(function: Callable[[int], int]) -> None: ...


class Opaque:
    pass


def _takes_opaque(thing: Opaque) -> None: ...


def _takes_unknown(thing: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("made_of", "message"),
    [
        (_yields, "yields; return the whole result"),
        (_yields_too, "yields; return the whole result"),
        (Greeter, "is no function; decorate a function, or subclass Tool"),
        (5, "is no function"),
        (_takes_stars, r"_takes_stars: \*texts has no name in a request; take a list"),
        (_takes_function, "_takes_function: a parameter has no JSON Schema"),
        (_takes_opaque, "_takes_opaque: Unable to generate pydantic-core schema"),
        (_takes_unknown, r"_takes_unknown: a type hint cannot be resolved \(name 'Nowhere' is not defined\)"),
        (Greeter.greet, r"Greeter.greet: a method has no self in a request; use tool\(instance.method\)"),
    ],
)
def test_what_cannot_be_called_from_a_request_is_refused_at_once(made_of: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tool(made_of)


def test_a_builtin_whose_parameters_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="its parameters cannot be read"):
        tool(name="get")(getattr)


# run


@dataclass
class Ran:
    tool: Tool
    request: Mapping[str, Any]
    how: Mapping[str, Any]


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def runner(tool: Tool, request: Mapping[str, Any], **how: Any) -> Any:
        return Ran(tool, request, how)

    monkeypatch.setattr(_runner, "_load", None)
    set_runner(lambda: runner)


@pytest.mark.usefixtures("_recorded")
async def test_run_makes_the_same_call_as_a_request() -> None:
    calls: list[Any] = [
        shout.run("a", 2),
        shout.run("a", marks=2),
        shout.run(text="a", marks=2),
        shout.run({"text": "a", "marks": 2}),
    ]
    for call in calls:
        ran: Any = await call
        assert ran.tool is shout
        assert ran.request == {"text": "a", "marks": 2}
        assert ran.how == {"tool_options": None, "options": None, "event_manager": None}


@pytest.mark.usefixtures("_recorded")
async def test_run_hands_on_options_and_events() -> None:
    ran: Any = await shout.run("a", options={"timeout_ms": 500}, tool_options={"x": 1})
    assert ran.how == {"tool_options": {"x": 1}, "options": {"timeout_ms": 500}, "event_manager": None}
    assert ran.request == {"text": "a"}


@pytest.mark.usefixtures("_recorded")
async def test_a_mapping_for_a_function_that_takes_one_is_an_argument() -> None:
    @tool
    async def count(table: dict[str, int], **more: int) -> int:
        return len(table)

    first: Any = await count.run({"table": 1})
    assert first.request == {"table": {"table": 1}}
    second: Any = await count.run({"a": 1}, b=2)
    assert second.request == {"table": {"a": 1}, "b": 2}


@pytest.mark.usefixtures("_recorded")
async def test_run_refuses_arguments_that_the_function_does_not_have() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        await shout.run("a", colour="red")


async def test_run_without_the_flow_says_what_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "_load", None)
    with pytest.raises(RuntimeError, match=r"import steer_llm_sdk\.orchestration first"):
        await shout.run("a")


def test_the_types_of_the_function_are_kept() -> None:
    kept: FunctionTool[Any, Any] = shout
    assert kept is shout


# Options.


@tool
async def slow(n: int) -> int:
    """Takes no options."""
    return n


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"timeout_ms": 200},
            "tool_options.timeout_ms: 200 cannot be used; 'slow' takes no such option; "
            'did you mean options={"timeout_ms": 200}?',
        ),
        ({"tone": "kind"}, "tool_options.tone: 'kind' cannot be used; 'slow' takes no such option"),
    ],
)
async def test_an_option_that_the_function_would_never_see_is_refused(given: dict[str, Any], says: str) -> None:
    registry = ToolRegistry()
    registry.register_tool(slow)
    for output in (
        await Orchestrator(registry).run({"n": 1}, "slow", given),
        await ReliableOrchestrator(registry=registry).run({"n": 1}, None, given),
        await slow.run(1, tool_options=given),
    ):
        assert (output.status, output.content["error"]["message"], output.attempts) == ("failed", says, [])


async def test_what_the_planner_and_the_run_add_is_no_option_of_the_caller() -> None:
    registry = ToolRegistry()
    registry.register_tool(slow)
    output = await ReliableOrchestrator(registry=registry).run({"n": 1}, options={"timeout_ms": 200, "streaming": True})
    assert output.content == 1


async def test_a_function_with_options_gets_every_one() -> None:
    @tool
    async def seen(n: int, options: dict[str, Any]) -> Any:
        return options["tone"], options["timeout_ms"]

    output = await seen.run(1, tool_options={"tone": "kind", "timeout_ms": 200})
    assert output.content == ["kind", 200]
