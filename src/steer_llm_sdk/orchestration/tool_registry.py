"""What a tool is, and where tools are found by name."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata

if TYPE_CHECKING:
    from packaging.version import Version

    from steer_llm_sdk.streaming.manager import EventManager

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_log = logging.getLogger(__name__)

ENTRY_POINTS = "steer_llm_sdk.tools"


class Tool(ABC):
    """Something that can be asked. Subclass it, or decorate a function with `@tool`.

    `provider` names who is called: tools of one provider share a circuit breaker; None makes the tool its own.
    `resource_requirements` declares `estimated_cost_per_run` (USD) and `estimated_duration_ms`.
    `composite` True: `execute` makes its calls through `protected()`, so retry, breaker, budget and attempt timeout
    stand round each of them and not round the whole.
    `takes_options` False: a run with `tool_options` for it is refused by `validate_options`, where they would be lost.
    """

    version: str = "1.0.0"
    description: str = ""
    provider: str | None = None
    supported_models: Sequence[str] = ()
    default_options: Mapping[str, Any] = _NOTHING
    capabilities: Sequence[str] = ()
    resource_requirements: Mapping[str, Any] = _NOTHING
    composite: bool = False
    takes_options: bool = True

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        """What a breaker may know of this tool: (provider, part). It can be asked while one of them is not open."""
        return ((self.provider or self.name, self.name),)

    def validate_request(self, request: Any) -> None:  # noqa: B027 - most tools take any request
        """Raise ValueError, with the field and what would do, where the request cannot be served."""

    def validate_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027 - most tools take any option
        """Raise ValueError where the options cannot be used, for who wants to know before anything is spent."""

    def worst_case(self, request: Any, options: Mapping[str, Any]) -> Amount:
        """What one call can take at most; reserved before each attempt. By default what the class declares."""
        cost = self.resource_requirements.get("estimated_cost_per_run")
        return Amount(0, float(cost)) if cost is not None else _FREE

    @abstractmethod
    async def execute(
        self,
        request: Any,
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> Any:
        """Do it. An EvidenceBundle, a mapping with `content`, `usage`, `cost_usd`, `metadata`, or any JSON value."""

    async def aclose(self) -> None:  # noqa: B027 - most tools open nothing
        """Give back what was opened."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}@{self.version})"


_FREE = Amount()


class ToolRegistry:
    """Tools by name and version. Names that are not registered are looked for among the installed tools."""

    def __init__(self) -> None:
        self._tools: dict[str, dict[str, Tool]] = {}
        self._changes = 0
        self._view: tuple[tuple[int, int], Mapping[str, ToolMetadata]] | None = None

    def register_tool(self, tool: Tool, replace: bool = False) -> None:
        """TypeError if it is no Tool; ValueError if the name is empty or the same name and version is there. `replace`:
        take the place of that one, so that a cell of a notebook can be run again."""
        if not isinstance(tool, Tool):
            raise TypeError(f"tool: expected a Tool, got {type(tool).__name__}; subclass Tool or use @tool")
        if not isinstance(tool.name, str) or not tool.name.strip():
            raise ValueError(f"tool.name: {tool.name!r} is empty; give the tool a name")
        _check_declared_cost(tool)
        versions = self._tools.setdefault(tool.name, {})
        if tool.version in versions and not replace:
            raise ValueError(
                f"Tool '{tool.name}' version {tool.version} is already registered; "
                "register it with replace=True, or give the new one another version"
            )
        versions = {**versions, tool.version: tool}
        # The highest last, so that no run has to compare them.
        self._tools[tool.name] = versions if len(versions) == 1 else dict(sorted(versions.items(), key=_rank))
        self._changes += 1

    def get_tool(self, name: str, version: str | None = None) -> Tool | None:
        """The tool of that name, in the highest version unless one is asked for; None if there is none."""
        versions = self._tools.get(name)
        if not versions:
            return None if version is not None else _installed().get(name)
        if version is not None:
            return versions.get(version)
        return next(reversed(versions.values()))

    def has_tool(self, name: str) -> bool:
        return self.get_tool(name) is not None

    def list_tools(self) -> dict[str, dict[str, Any]]:
        """Registered tools, in the order they came; see `installed_tools` for the others."""
        return {tool.name: _describe(tool) for tool in self}

    def get_tool_metadata(self, name: str) -> dict[str, Any] | None:
        tool = self.get_tool(name)
        return None if tool is None else _describe(tool)

    def unregister_tool(self, name: str, version: str | None = None) -> bool:
        """Take out one version, or all of them; False if there was nothing to take out."""
        versions = self._tools.get(name, {})
        gone = [v for v in versions if version in (None, v)]
        kept = {v: tool for v, tool in versions.items() if v not in gone}
        if kept:
            self._tools[name] = kept
        else:
            self._tools.pop(name, None)
        self._changes += 1
        return bool(gone)

    def clear(self) -> None:
        self._tools.clear()
        self._changes += 1

    def planning_view(self) -> Mapping[str, ToolMetadata]:
        """What a planner may choose from: the registered tools, or the installed ones where nothing is registered.

        Built once per change of the registry, never per run.
        """
        mark = (self._changes, len(self._tools))
        if self._view is None or self._view[0] != mark:
            tools = list(self) or list(_installed().values())
            self._view = (mark, MappingProxyType({tool.name: metadata_of(tool) for tool in tools}))
        return self._view[1]

    def names(self) -> list[str]:
        return sorted({*self._tools, *_installed()})

    def __iter__(self) -> Iterator[Tool]:
        return (tool for name in list(self._tools) if (tool := self.get_tool(name)) is not None)

    def __len__(self) -> int:
        return len(self._tools)


def _check_declared_cost(tool: Tool) -> None:
    """A declared cost is reserved before each attempt: one that is no price would stop every run with a budget."""
    cost = tool.resource_requirements.get("estimated_cost_per_run")
    price = isinstance(cost, (int, float)) and not isinstance(cost, bool) and 0 <= cost <= 1e15
    if cost is not None and not price:
        raise ValueError(
            f"Tool '{tool.name}' resource_requirements['estimated_cost_per_run']: {cost!r} cannot be used; "
            "give USD as a finite number from 0, or leave it out"
        )


def metadata_of(tool: Tool) -> ToolMetadata:
    """What a planner may know of a tool."""
    return ToolMetadata(
        name=tool.name,
        version=tool.version,
        description=tool.description,
        supported_models=list(tool.supported_models),
        default_options=dict(tool.default_options),
        capabilities=list(tool.capabilities),
        resource_requirements=dict(tool.resource_requirements),
    )


def installed_tools() -> Mapping[str, Tool]:
    """Tools that installed packages declare under the entry point group `steer_llm_sdk.tools`, ours among them."""
    return MappingProxyType(_installed())


_found: dict[str, Tool] | None = None


def _installed() -> dict[str, Tool]:
    global _found
    if _found is None:
        from importlib.metadata import entry_points  # 10 ms that only those who look for installed tools pay

        _found = dict(_load(entry_points(group=ENTRY_POINTS)))
    return _found


def _load(points: Iterable[Any]) -> Iterator[tuple[str, Tool]]:
    for point in points:
        try:
            made = point.load()
            tool = made if isinstance(made, Tool) else made()
            if not isinstance(tool, Tool):
                raise TypeError(f"expected a Tool, got {type(tool).__name__}")
            yield tool.name, tool
        except Exception:  # One broken package must not take the others with it.
            _log.warning("the installed tool %s (%s) cannot be loaded", point.name, point.value, exc_info=True)


def _describe(tool: Tool) -> dict[str, Any]:
    view = metadata_of(tool).model_dump()
    view.pop("name")
    return {**view, "provider": tool.provider}


def _rank(item: tuple[str, Tool]) -> tuple[bool, Version, str]:
    """Order by PEP 440; what is no version comes below every one that is."""
    from packaging.version import InvalidVersion, Version  # 6 ms that only those with two versions of a tool pay

    version, _ = item
    try:
        return True, Version(version), version
    except InvalidVersion:
        return False, Version("0"), version


_global = ToolRegistry()


def get_global_registry() -> ToolRegistry:
    """The registry that an orchestrator uses unless it is given one."""
    return _global
