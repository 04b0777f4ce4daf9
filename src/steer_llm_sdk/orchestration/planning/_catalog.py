"""The tools by what they can do, so that choosing one does not look at them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from steer_llm_sdk.orchestration.planning.planner import ToolMetadata


class Catalog:
    """One set of tools, in the order they were registered."""

    __slots__ = ("_related", "by_capability", "names", "tools")

    def __init__(self, tools: Mapping[str, ToolMetadata]) -> None:
        self.tools = tools
        self.names = tuple(tools)
        by_capability: dict[str, list[str]] = {}
        for name, tool in tools.items():
            for capability in tool.capabilities:
                by_capability.setdefault(capability, []).append(name)
        self.by_capability = by_capability
        self._related: dict[str, tuple[str, ...]] = {}

    def with_capability(self, capability: object) -> list[str]:
        return self.by_capability.get(capability, []) if isinstance(capability, str) else []

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
        yield from (other for other in self.names if other in sharing and other != name)


class CatalogCache:
    """The catalog of the tools seen last. It is kept for a read-only view, as the registry hands out one per change
    of its tools; for any other mapping, which may be changed in place, it is made anew."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: Catalog | None = None

    def of(self, tools: Mapping[str, ToolMetadata]) -> Catalog:
        last = self._last
        if last is not None and last.tools is tools and len(last.names) == len(tools):
            return last
        made = Catalog(tools)
        if isinstance(tools, MappingProxyType):
            self._last = made
        return made
