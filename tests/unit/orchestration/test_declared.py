"""What a tool declares is looked at when it is made or registered, and not in everybody's next run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration import BundleTool, Tool, ToolRegistry
from steer_llm_sdk.orchestration.strategies import Chain, StrategyTool
from steer_llm_sdk.orchestration.tool_registry import _load
from steer_llm_sdk.orchestration.tools import LLMTool, tool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.testing import ScriptedTool


class Declaring(Tool):
    """A tool that declares whatever it is told to."""

    def __init__(self, name: Any = "odd", **declared: Any) -> None:
        self._name = name
        vars(self).update(declared)

    @property
    def name(self) -> str:
        return self._name  # type: ignore[no-any-return]

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return self._name


WRONG = [
    ("version", None),
    ("version", 2),
    ("version", ""),
    ("version", " 1.0"),
    ("version", "x y"),
    ("description", None),
    ("description", "\ud800"),
    ("provider", 5),
    ("capabilities", "weather"),
    ("capabilities", b"weather"),
    ("capabilities", {"weather": 1}),
    ("capabilities", None),
    ("capabilities", iter(["weather"])),
    ("capabilities", ["weather", 5]),
    ("supported_models", "gpt"),
    ("supported_models", None),
    ("tenants", "acme"),
    ("default_options", None),
    ("default_options", {1: 2}),
    ("resource_requirements", None),
    ("context_window", "x"),
    ("context_window", True),
    ("context_window", 0),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_what_cannot_be_used_is_refused_with_tool_field_and_value(field: str, value: Any) -> None:
    registry = ToolRegistry()
    with pytest.raises(InvalidRequest, match=rf"^Tool 'odd' {field}: .* cannot be used; give ") as refused:
        registry.register_tool(Declaring(**{field: value}))
    assert refused.value.given is value
    assert not registry.has_tool("odd")


@pytest.mark.parametrize("value", ["soon", -1, float("nan"), float("inf"), True])
@pytest.mark.parametrize("number", ["estimated_cost_per_run", "estimated_duration_ms"])
def test_a_declared_number_is_one(number: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^Tool 'odd' resource_requirements\['{number}'\]: "):
        ToolRegistry().register_tool(Declaring(resource_requirements={number: value}))


@pytest.mark.parametrize("name", ["", " ", None, 5, "\ud800"])
def test_a_name_that_no_output_could_be_written_with_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^tool\.name: .*give "):
        ToolRegistry().register_tool(Declaring(name))


@pytest.mark.parametrize("names", [["a"], ("a",), {"a"}, frozenset({"a"}), {"a": 1}.keys(), []])
def test_any_collection_of_names_will_do(names: Any) -> None:
    registry = ToolRegistry()
    registry.register_tool(Declaring(capabilities=names, supported_models=names, tenants=names))
    described = registry.get_tool_metadata("odd")
    assert described is not None
    assert described["capabilities"] == described["supported_models"] == described["tenants"] == list(names)


async def make_nothing(request: Any, seed: int) -> Any:
    return None


@pytest.mark.parametrize(
    "make",
    [
        lambda: tool(name="odd", capabilities="ab")(make_nothing),
        lambda: ScriptedTool("odd", capabilities="ab"),
        lambda: SimpleBundleTool(make_nothing, name="odd", capabilities="ab"),
        lambda: LLMTool("odd", "recorded:gpt-4o-2024-05-13", capabilities="ab"),
        lambda: StrategyTool("odd", Chain([ScriptedTool("a")]), capabilities="ab"),
    ],
)
def test_no_way_to_make_a_tool_takes_a_text_for_its_letters(make: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^Tool 'odd' capabilities: 'ab' cannot be used; .*\['ab'\]"):
        make()


@pytest.mark.parametrize(
    ("field", "value"),
    [("supported_models", "gpt"), ("default_options", 5), ("resource_requirements", "x"), ("version", 1)],
)
def test_a_decorated_function_is_looked_at_at_once(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^Tool 'make_nothing' {field}: "):
        tool(**{field: value})(make_nothing)


def test_an_installed_tool_that_does_not_fit_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    points = [
        SimpleNamespace(name=name, value=f"there:{name}", load=lambda made=made: made)
        for name, made in (("odd", Declaring(capabilities="weather")), ("good", ScriptedTool("good")))
    ]
    assert [name for name, _ in _load(points)] == ["good"]
    assert "installed tool odd (there:odd) cannot be loaded" in caplog.text
    assert "Tool 'odd' capabilities: 'weather' cannot be used" in caplog.text


def test_a_bundle_tool_is_looked_at_like_any_other() -> None:
    class Odd(BundleTool):
        name = "odd"  # type: ignore[assignment]
        capabilities = "weather"

        async def _execute_bundle(self, request: Any, options: Any, event_manager: Any) -> Any: ...

    with pytest.raises(InvalidRequest, match="Tool 'odd' capabilities"):
        ToolRegistry().register_tool(Odd())
