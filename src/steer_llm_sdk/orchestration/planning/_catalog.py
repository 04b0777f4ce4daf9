"""The tools by what they can do, so that choosing one does not look at them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from operator import is_
from types import MappingProxyType

from steer_llm_sdk.orchestration.planning.planner import ToolMetadata


class Catalog:
    """One set of tools, in the order they were registered. `limited`: one of them, or of their other versions, which a
    rule may name, serves not everybody, or not every length of request, or nobody now."""

    def __init__(self, tools: Mapping[str, ToolMetadata]) -> None:
        self.tools = tools
        self.names = tuple(tools)
        versions = (version for tool in tools.values() for version in (tool, *tool.versions))
        self.limited = any(v.tenants or v.context_window is not None or v.unavailable for v in versions)
        by_capability: dict[str, list[str]] = {}
        for name, tool in tools.items():
            for capability in tool.capabilities:
                by_capability.setdefault(capability, []).append(name)
        self.by_capability = by_capability
        self._related: dict[str, tuple[str, ...]] = {}

    def with_capability(self, capability: object) -> list[str]:
        return self.by_capability.get(capability, []) if isinstance(capability, str) else []

    @cached_property
    def classes(self) -> Mapping[frozenset[str], list[str]]:
        """The tools that declare the same capabilities, by these; the class of the tool registered first is first."""
        classes: dict[frozenset[str], list[str]] = {}
        for name, tool in self.tools.items():
            classes.setdefault(frozenset(tool.capabilities), []).append(name)
        return classes

    @cached_property
    def by_model(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, tool in self.tools.items():
            for model in tool.supported_models:
                found.setdefault(model, []).append(name)
        return found

    @cached_property
    def position(self) -> Mapping[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def related(self, name: str) -> tuple[str, ...]:
        """The other tools that share a declared capability with this one, in the order they were registered."""
        known = self._related.get(name)
        if known is None:
            known = self._related[name] = tuple(self._find_related(name))
        return known

    def _find_related(self, name: str) -> Iterator[str]:
        tool = self.tools.get(name)
        if tool is None:
            return
        sharing = {other for capability in tool.capabilities for other in self.by_capability.get(capability, ())}
        yield from sorted(sharing - {name}, key=self.position.__getitem__)


class CatalogCache:
    """The catalog of the tools seen last, for as long as they are the same tools in the same order. What a tool
    declares is read once: one that declares something else is another object.

    A read-only view, as the registry hands out one per change of its tools, is known by itself. Of any other mapping
    the tools are compared with those seen last, which takes 15 us for a thousand.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # Together, because threads may share a planner for several registries.
        self._last: tuple[Catalog, tuple[ToolMetadata, ...]] | None = None

    def of(self, tools: Mapping[str, ToolMetadata]) -> Catalog:
        if self._last is not None:
            last, values = self._last
            if len(last.names) == len(tools):
                if last.tools is tools and type(tools) is MappingProxyType:
                    return last
                if last.names == tuple(tools) and all(map(is_, values, tools.values())):
                    return last
        kept = tools if type(tools) is MappingProxyType else dict(tools)
        made = Catalog(kept)
        self._last = made, tuple(kept.values())
        return made
