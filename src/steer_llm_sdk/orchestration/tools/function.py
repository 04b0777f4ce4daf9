"""`@tool`: a function as a tool.

@tool(name="shout", capabilities=["text"])
async def shout(text: str, marks: int = 1) -> str:
    '''Say it louder.'''
    return text.upper() + "!" * marks

await shout("hello", marks=2)              # the function, as it always was
await shout.run("hello", marks=2)          # the same call under retry, breaker, budget and deadline: an output
await orchestrator.run({"text": "hello", "marks": 2}, "shout")      # by name, once it is registered
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration._declared import check_declared
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.orchestration.tools._parameters import Parameters
from steer_llm_sdk.orchestration.tools._runner import runner

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.output import OrchestrationOutput
    from steer_llm_sdk.streaming.manager import EventManager

P = ParamSpec("P")
R = TypeVar("R")


class FunctionTool(Tool, Generic[P, R]):
    """A function as a tool. Calling it calls the function; `run` makes the same call under the policies.

    The keys of a request are the function's parameters, and their type hints its JSON Schema, which is enforced:
    a request with a wrong, missing or unknown value is refused with a sentence before anything runs. `type` and
    `options` of a request are for the planner and are left out, unless the function has parameters of these names.
    A text request goes to `query`, or else to the first parameter that takes a text.

    A parameter `options` that is annotated as a mapping gets the tool's options; a run that has `tool_options` for a
    function without it is refused. One called `event_manager` gets the event manager (None where there is none). A
    function that is not async runs in a thread, with the caller's context variables; a deadline stops the waiting for
    it, not the thread.
    """

    __name__: str

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        provider: str | None = None,
        version: str = "1.0.0",
        capabilities: Sequence[str] = (),
        description: str | None = None,
        supported_models: Sequence[str] = (),
        default_options: Mapping[str, Any] | None = None,
        resource_requirements: Mapping[str, Any] | None = None,
        composite: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._name = _name_of(function, name)
        self._is_async = inspect.iscoroutinefunction(function)
        self._parameters = Parameters.of(function)
        self.provider = provider
        self.version = version
        self.capabilities = capabilities
        self.description = _first_line(function) if description is None else description
        self.supported_models = supported_models
        self.default_options = {} if default_options is None else default_options
        self.resource_requirements = {} if resource_requirements is None else resource_requirements
        check_declared(self)
        self.capabilities, self.supported_models = tuple(capabilities), tuple(supported_models)
        self.default_options, self.resource_requirements = dict(self.default_options), dict(self.resource_requirements)
        self.composite = composite
        self.takes_options = "options" in self._parameters.injected

    @property
    def name(self) -> str:
        return self._name

    @property
    def request_schema(self) -> dict[str, Any]:
        """The JSON Schema of a request."""
        return copy.deepcopy(self._parameters.schema)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def validate_request(self, request: Any) -> None:
        """InvalidRequest names the parameter, what was given and what is allowed."""
        self._parameters.read(request)

    def validate_options(self, options: Mapping[str, Any]) -> None:
        """InvalidRequest names the first option, where the function takes none."""
        if self.takes_options or not options:
            return
        name, value = next(iter(options.items()))
        meant = f'; did you mean options={{"{name}": {value!r}}}?' if name in OrchestrationConfig.model_fields else ""
        raise InvalidRequest(f"tool_options.{name}", value, f"{self._name!r} takes no such option{meant}")

    async def execute(
        self, request: Any, options: dict[str, Any] | None = None, event_manager: EventManager | None = None
    ) -> Any:
        args, kwargs = self._parameters.read(request).call(dict(options or {}), event_manager)
        if self._is_async:
            return await self._function(*args, **kwargs)  # type: ignore[misc]
        result = await asyncio.to_thread(_called, self._function, args, kwargs)
        return await result if inspect.isawaitable(result) else result

    async def run(
        self,
        *args: Any,
        options: OrchestrationConfig | Mapping[str, Any] | None = None,
        tool_options: Mapping[str, Any] | None = None,
        event_manager: EventManager | None = None,
        **kwargs: Any,
    ) -> OrchestrationOutput:
        """The call `self(*args, **kwargs)`, under the policies that `options` ask for.

        A mapping given alone, to a function whose first parameter takes none, is the whole request.
        """
        request = self._parameters.request_of(args, kwargs)
        run = runner()
        return await run(self, request, tool_options=tool_options, options=options, event_manager=event_manager)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    provider: str | None = None,
    version: str = "1.0.0",
    capabilities: Sequence[str] = (),
    description: str | None = None,
    supported_models: Sequence[str] = (),
    default_options: Mapping[str, Any] | None = None,
    resource_requirements: Mapping[str, Any] | None = None,
    composite: bool = False,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def tool(function: Callable[..., Any] | None = None, /, **declared: Any) -> Any:
    """Make a tool of a function: `@tool`, or `@tool(name=..., provider=..., version=..., capabilities=...)`.

    The name is the function's unless one is given, the description the first line of its docstring. TypeError where the
    parameters have no JSON Schema, InvalidRequest for what is declared and cannot be used.
    """
    if function is None:
        return lambda decorated: FunctionTool(decorated, **declared)
    return FunctionTool(function, **declared)


def _called(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # A future cannot hold StopIteration: the await would never end.
        raise RuntimeError("the function raised StopIteration") from error


def _name_of(function: Callable[..., Any], name: str | None) -> str:
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"tool: {function!r} is no function; decorate a function, or subclass Tool")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"tool: {function.__qualname__} yields; return the whole result, and show pieces of it by events"
        )
    chosen = getattr(function, "__name__", "") if name is None else name
    if not isinstance(chosen, str) or not chosen.strip() or chosen == "<lambda>":
        raise InvalidRequest("name", chosen, "give the tool a name: tool(name=...)")
    return chosen


def _first_line(function: Callable[..., Any]) -> str:
    lines = (inspect.getdoc(function) or "").strip().splitlines()
    return lines[0].strip() if lines and not isinstance(function, functools.partial) else ""
