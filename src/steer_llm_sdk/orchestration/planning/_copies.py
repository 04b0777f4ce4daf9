"""The tools as a planner of somebody else's sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from steer_llm_sdk.models.plain import copied
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata


class Copies(Mapping[str, ToolMetadata]):
    """A copy of each tool that is looked at, which may be written into: the next run is told what was declared."""

    def __init__(self, tools: Mapping[str, ToolMetadata]) -> None:
        self._tools = tools
        self._made: dict[str, ToolMetadata] = {}

    def __getitem__(self, name: str) -> ToolMetadata:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = ToolMetadata.model_construct(**copied(dict(self._tools[name])))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools
