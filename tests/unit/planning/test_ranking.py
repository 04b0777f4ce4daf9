"""One planner serves several registries at once."""

from __future__ import annotations

from collections.abc import Iterator

from steer_llm_sdk.orchestration.planning import Statistics, ToolMetadata
from steer_llm_sdk.orchestration.planning._catalog import Catalog, CatalogCache
from steer_llm_sdk.orchestration.planning._ranking import Ranking
from steer_llm_sdk.orchestration.planning.statistics import Estimate


def test_a_registry_that_is_ranked_in_the_middle_of_another_gets_its_own_tools() -> None:
    """As when another thread comes in between."""
    one, other = (Catalog({name: ToolMetadata(name=name)}) for name in ("one", "other"))
    statistics = Statistics()

    def group(catalog: Catalog) -> list[str]:
        return list(ranking.group(catalog, "type", catalog.names, None, None).names)

    def expected(tool: ToolMetadata, kind: str | None) -> Estimate:
        if tool.name == "one":
            assert group(other) == ["other"]
        return statistics.estimate(kind, tool, None, None)

    ranking = Ranking(statistics, expected)
    assert group(one) == ["one"]
    assert group(other) == ["other"]
    assert group(one) == ["one"]


class Interrupted(dict[str, ToolMetadata]):
    """Tools of another registry are looked at while these are."""

    def __init__(self, tools: dict[str, ToolMetadata], cache: CatalogCache, other: dict[str, ToolMetadata]) -> None:
        super().__init__(tools)
        self.interrupt = lambda: cache.of(other)

    def __iter__(self) -> Iterator[str]:
        self.interrupt()
        return super().__iter__()


def test_a_catalog_is_of_the_tools_that_are_asked_about() -> None:
    cache = CatalogCache()
    before = {name: ToolMetadata(name=name) for name in ("a", "b")}
    after = {name: ToolMetadata(name=name, capabilities=["new"]) for name in ("a", "b")}
    assert cache.of(before).with_capability("new") == []
    assert cache.of(Interrupted(after, cache, {})).with_capability("new") == ["a", "b"]
