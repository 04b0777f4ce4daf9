"""What a tool is, and where tools are found by name."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import ToolNotFound, VersionUnavailable
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration._declared import check_declared
from steer_llm_sdk.orchestration.canaries import ENOUGH, Seen, Trials, next_look, trial_of, why_worse
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata
from steer_llm_sdk.orchestration.release_files import read_releases
from steer_llm_sdk.orchestration.versions import (
    ACTIVE,
    MARGIN,
    Release,
    Who,
    check_spec,
    choose,
    deprecated,
    is_in_share,
    rank,
    satisfies,
    wanted,
    written_differently,
)

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.stores.sums import SumStore
    from steer_llm_sdk.streaming.manager import EventManager

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NOBODY: Who = MappingProxyType({})
MAX_VIEWS = 64
"""Sets of canaries whose view is kept: with six canaries at once, all."""
_log = logging.getLogger(__name__)

ENTRY_POINTS = "steer_llm_sdk.tools"

# Loaded by who shares what is seen of canaries.
_late = looked_up(__name__, {"SharedTrials": "steer_llm_sdk.orchestration.shared_trials"})


class Tool(ABC):
    """Something that can be asked. Subclass it, or decorate a function with `@tool`.

    `provider` names who is called: tools of one provider share a circuit breaker; None makes the tool its own.
    `resource_requirements` declares `estimated_cost_per_run` (USD) and `estimated_duration_ms`.
    `composite` True: `execute` makes its calls through `protected()`, so retry, breaker, budget and attempt timeout
    stand round each of them and not round the whole.
    `context_window` is in tokens; a longer request is planned for another tool. `tenants`: whom it serves; none: all.
    `takes_options` False: a run with `tool_options` for it is refused by `validate_options`, where they would be lost.
    """

    version: str = "1.0.0"
    description: str = ""
    provider: str | None = None
    supported_models: Sequence[str] = ()
    default_options: Mapping[str, Any] = _NOTHING
    capabilities: Sequence[str] = ()
    resource_requirements: Mapping[str, Any] = _NOTHING
    context_window: int | None = None
    tenants: Sequence[str] = ()
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
    """Tools by name and version. Names that are not registered are looked for among the installed tools.

    Of several versions a caller gets the highest active one that his request names; see `versions.choose`. `today` is
    asked for the date where a version has a sunset. `staged`: some version is anything but active; `several`: some tool
    has been registered in several versions; `serves_some_only`: some tool names the tenants that it serves, which is
    known once a planning view was made.
    """

    def __init__(self, *, today: Callable[[], date] = date.today) -> None:
        self._tools: dict[str, dict[str, Tool]] = {}
        self._releases: dict[str, dict[str, Release]] = {}
        self._today = today
        self.staged = self.several = self.serves_some_only = False
        self._followed: _Followed | None = None
        self._trials: Trials = Trials()
        self._next_look: dict[str, int] = {}
        self._taken_back: dict[tuple[str, str], Release] = {}
        self._changes = 0
        self._targets: tuple[tuple[int, int], Mapping[str, Sequence[Tool]]] | None = None
        self._view: tuple[int, int, Mapping[str, ToolMetadata]] | None = None
        self._views: tuple[tuple[int, int, date], dict[Any, Mapping[str, ToolMetadata]]] | None = None

    def register_tool(self, tool: Tool, replace: bool = False, *, release: Release | None = None) -> None:
        """TypeError if it is no Tool; ValueError if it declares what cannot be used, such as an empty name or a text
        for `capabilities`, or the same name and version is there, be it written differently ("1.0", "1.0.0").
        `replace`: take the place of that one, so that a cell of a notebook can be run again. `release`: how far it is
        released; None: as it was set before, else it is active."""
        if not isinstance(tool, Tool):
            raise TypeError(f"tool: expected a Tool, got {type(tool).__name__}; subclass Tool or use @tool")
        check_declared(tool)
        same = written_differently(tool.version, self._tools.get(tool.name, ()))
        if same is not None:
            raise ValueError(
                f"Tool '{tool.name}' version {tool.version} is the same as {same}, which is registered; "
                "write it the same way, or give the new one another version"
            )
        versions = self._tools.setdefault(tool.name, {})
        if tool.version in versions and not replace:
            raise ValueError(
                f"Tool '{tool.name}' version {tool.version} is already registered; "
                "register it with replace=True, or give the new one another version"
            )
        versions = {**versions, tool.version: tool}
        self.several = self.several or len(versions) > 1
        # The highest last, so that no run has to compare them.
        self._tools[tool.name] = versions if len(versions) == 1 else dict(sorted(versions.items(), key=_rank))
        self._changes += 1
        if release is not None:
            self.set_release(tool.name, tool.version, release)

    # ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def set_release(self, name: str, version: str, release: Release) -> None:
        """Say how far a version is released, whether or not it is registered yet."""
        of_tool = {**self._releases.get(name, {}), version: release}
        self._releases = {**self._releases, name: {v: r for v, r in of_tool.items() if r != ACTIVE}}
        self.staged = any(self._releases.values())
        self._changes += 1

    def set_releases(self, releases: Mapping[str, Mapping[str, Release]]) -> None:
        """Say it of all versions at once; those that are not named are active."""
        taken_back = self._taken_back
        self._releases = {
            name: {v: _closed(r) if taken_back.get((name, v)) == r else r for v, r in some.items() if r != ACTIVE}
            for name, some in releases.items()
        }
        self.staged = any(self._releases.values())
        self._changes += 1

    def follow(self, path: str | Path, every: float = 5.0) -> None:
        """Take from a file how far versions are released, as `steer-llm tools` writes it, now and whenever it has
        changed. It is looked at when a tool is looked for, at most once in `every` seconds. A file that cannot be used
        is an InvalidRequest now, and a warning later: then what was known stays."""
        self._followed = _Followed(Path(path), every, 0.0, None)
        self.set_releases(read_releases(path))

    def _look_again(self) -> None:
        followed, now = self._followed, time.monotonic()
        if followed is None or now < followed.next_look:
            return
        try:
            stat = followed.path.stat()
            mark: tuple[int, int, int] | None = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            mark = None
        self._followed = followed._replace(next_look=now + followed.every, mark=mark)
        if mark != followed.mark:
            try:
                self.set_releases(read_releases(followed.path))
            except (ValueError, OSError) as error:
                _log.warning("%s; what was known of releases stays", error)

    def canary(self, name: str, version: str, share: float, key: str = "tenant", margin: float | None = MARGIN) -> None:
        """Give a version to a share of callers, from 0 to 1. A larger share only adds callers. It goes to nobody any
        more once it turns out to be worse than the version beside it by more than `margin`; see Release."""
        release = Release(state="canary", share=share, key=key, margin=margin)
        self._taken_back.pop((name, version), None)
        trial = trial_of(name, version, release)
        self._trials.forget(trial)
        self._next_look.pop(trial, None)
        self.set_release(name, version, release)

    def share_canaries(self, store: SumStore | str, space: str = "canaries") -> None:
        """Judge canaries by the runs of all processes that share this store: its URL, `sqlite://`, `redis://` or
        `postgresql://`, or a SumStore. Each takes a canary back by itself, at its next run of the tool. `aclose` closes
        the store. Then what was seen of a canary stays, and only another share, key or margin gives it a new chance."""
        self._trials = _late("SharedTrials")(store, space)

    async def aclose(self) -> None:
        """Tell the store of `share_canaries` what it has not heard yet, and close it. It is opened again if it is used
        again."""
        await self._trials.aclose()

    def watches(self, name: str) -> bool:
        """Whether a canary of the tool is watched."""
        return any(_is_watched(release) for release in self._releases.get(name, _NOTHING).values())

    def saw(self, name: str, version: str, succeeded: bool, confidence: float | None) -> tuple[str, str] | None:
        """Count a run of a watched tool. Of a canary that is taken back for it, its version and why."""
        seen = Seen.once(succeeded, confidence)
        for canary, release in self._releases.get(name, _NOTHING).items():
            if _is_watched(release):
                trial = trial_of(name, canary, release)
                self._trials.add(trial + version, seen)
                if (why := self._why_worse(name, canary, release, trial)) is not None:
                    self._take_back(name, canary, release, why)
                    return canary, why
        return None

    def _why_worse(self, name: str, canary: str, release: Release, trial: str) -> str | None:
        seen = self._trials.of(trial + canary)
        if release.margin is None or seen.runs < self._next_look.get(trial, ENOUGH):
            return None
        beside = choose(name, self._tools.get(name, ()), self._closed_releases(name), None, _NOBODY, self._today())
        other = self._trials.of(f"{trial}{beside.version}")
        if beside.version == canary or other.runs < ENOUGH:
            return None
        self._next_look[trial] = next_look(seen.runs)
        return why_worse(seen, other, release.margin)

    def _take_back(self, name: str, version: str, release: Release, why: str) -> None:
        self._taken_back[name, version] = release
        self.set_release(name, version, _closed(release))
        _log.warning("Tool '%s' version %s, a canary, goes to nobody any more: %s", name, version, why)

    def _closed_releases(self, name: str) -> dict[str, Release]:
        return {version: _closed(release) for version, release in self._releases.get(name, {}).items()}

    def promote(self, name: str, version: str) -> None:
        """Make a version active."""
        self.set_release(name, version, ACTIVE)

    def deprecate(
        self,
        name: str,
        version: str,
        *,
        since: date | None = None,
        sunset: date | None = None,
        successor: str | None = None,
    ) -> None:
        """Warn whoever gets a version, and give it to nobody from `sunset` on. `since` is today, or the sunset where
        that has been."""
        self.set_release(name, version, deprecated(since, sunset, successor, self._today()))

    def release_of(self, name: str, version: str) -> Release:
        return self._releases.get(name, {}).get(version, ACTIVE)

    def versions(self, name: str) -> Mapping[str, Tool]:
        """The registered versions of a tool, the highest last."""
        return MappingProxyType(self._tools.get(name, {}))

    def resolve(self, name: str, who: Who = _NOBODY) -> Tool:
        """The tool that a caller gets for a name, or for a name and versions ("text_analyzer>=1.2,<2").

        ToolNotFound where there is none; VersionUnavailable, a kind of it that names the successor, where what would do
        is past its sunset, or a canary that the caller does not get.
        """
        if self._followed is not None:
            self._look_again()
        tool = self._resolved(name, who)
        if tool is None:
            check_spec(name)
            asked = wanted(name)
            versions = () if asked is None else self._tools.get(asked.name, ())
            raise ToolNotFound(name, [f"{asked.name}@{v}" for v in versions] if asked and versions else self.names())
        return tool

    def _resolved(self, name: str, who: Who) -> Tool | None:
        asked = None if name in self._tools else wanted(name)
        base, spec = (name, None) if asked is None else asked
        versions = self._tools.get(base)
        if not versions:
            tool = _installed().get(base)
            return tool if tool is not None and (spec is None or satisfies(tool.version, spec)) else None
        releases = self._releases.get(base, {})
        found = choose(base, versions, releases, spec, who, self._today() if releases else date.min)
        if found.version is not None:
            return versions[found.version]
        if found.closed:
            version = found.closed[-1]
            release = releases[version]
            raise VersionUnavailable(base, release.why_closed(base, version, self._today()), release.successor)
        return None

    def farewell(self, tool: Tool) -> str | None:
        """What whoever gets a deprecated tool is to be told; None for any other."""
        release = self.release_of(tool.name, tool.version)
        if release.state != "deprecated":
            return None
        return release.farewell(tool.name, tool.version)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_tool(self, name: str, version: str | None = None) -> Tool | None:
        """The tool of that name, in the highest active version unless one is asked for; None if there is none. `name`
        may ask for versions: "text_analyzer>=1.2,<2"."""
        if self._followed is not None:
            self._look_again()
        versions = self._tools.get(name)
        if versions and version is not None:
            return versions.get(version)
        if versions and name not in self._releases:
            return next(reversed(versions.values()))
        if version is not None:
            return None
        try:
            return self._resolved(name, _NOBODY)
        except VersionUnavailable:
            return None

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

    # ── planning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def planning_view(self, who: Who = _NOBODY) -> Mapping[str, ToolMetadata]:
        """What a planner may choose from for a caller: the registered tools, or the installed ones where nothing is
        registered.

        Built once per change of the registry, and for each set of canaries that a caller is in; never per run.
        """
        if self._followed is not None:
            self._look_again()
        if not self.staged:
            kept = self._view
            if kept is not None and kept[0] == self._changes and kept[1] == len(self._tools):
                return kept[2]
            view = self._view_of(())
            self._view = (self._changes, len(self._tools), view)
            return view
        mark = (self._changes, len(self._tools), self._today())
        if self._views is None or self._views[0] != mark:
            self._views = (mark, {})
        views, cohort = self._views[1], self._cohort(who)
        if (found := views.get(cohort)) is None:
            if len(views) >= MAX_VIEWS:
                views.clear()
            found = views[cohort] = self._view_of(cohort)
        return found

    def _view_of(self, cohort: Sequence[tuple[str, str]]) -> Mapping[str, ToolMetadata]:
        view = dict(self._metadata(cohort))
        # Never taken back: views of other cohorts are handed out again.
        if any(version.tenants for tool in view.values() for version in (tool, *tool.versions)):
            self.serves_some_only = True
        return MappingProxyType(view)

    def _cohort(self, who: Who) -> tuple[tuple[str, str], ...]:
        """The canaries that a caller is in."""
        return tuple(
            (name, version)
            for name, releases in self._releases.items()
            for version, release in releases.items()
            if release.state == "canary" and is_in_share(name, version, release, who)
        )

    def _metadata(self, cohort: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ToolMetadata]]:
        if not self._tools:
            yield from ((tool.name, metadata_of(tool)) for tool in _installed().values())
        for name, versions in list(self._tools.items()):
            releases = {
                version: ACTIVE if (name, version) in cohort else _closed(release)
                for version, release in self._releases.get(name, {}).items()
            }
            today = self._today() if releases else date.min
            found = choose(name, versions, releases, None, _NOBODY, today)
            states = {
                v: releases.get(v, ACTIVE).state
                for v in reversed(versions)
                if not releases.get(v, ACTIVE).is_gone(today)
            }
            usable = [
                versions[v] for wanted in ("active", "deprecated") for v, state in states.items() if state == wanted
            ]
            first = versions[found.version] if found.version is not None else next(reversed(versions.values()))
            told = metadata_of(first)
            if found.version is None:
                version = found.closed[-1]
                told.unavailable = self._releases[name][version].why_closed(name, version, today)
            told.versions = [metadata_of(tool) for tool in usable if tool is not first]
            yield name, told

    def by_target(self) -> Mapping[str, Sequence[Tool]]:
        """The tools by the providers that they call, as they were at the last change of the registry."""
        mark = (self._changes, len(self._tools))
        if self._targets is None or self._targets[0] != mark:
            found: dict[str, list[Tool]] = {}
            for tool in self:
                for target in dict.fromkeys(target for target, _ in tool.targets):
                    found.setdefault(target, []).append(tool)
            self._targets = (mark, found)
        return self._targets[1]

    def identities(self) -> list[str]:
        """Every `name@version` that is registered, whatever its release."""
        return sorted(f"{name}@{version}" for name, known in self._tools.items() for version in known)

    def names(self) -> list[str]:
        return sorted({*self._tools, *_installed()})

    def __iter__(self) -> Iterator[Tool]:
        return (tool for name in list(self._tools) if (tool := self.get_tool(name)) is not None)

    def __len__(self) -> int:
        return len(self._tools)


class _Followed(NamedTuple):
    """A file, how often it is looked at, when next (monotonic seconds), and what told its state apart last."""

    path: Path
    every: float
    next_look: float
    mark: tuple[int, int, int] | None


def _is_watched(release: Release) -> bool:
    return release.state == "canary" and release.share > 0 and release.margin is not None


def _closed(release: Release) -> Release:
    """A canary that nobody is in; any other as it is."""
    return replace(release, share=0.0) if release.state == "canary" else release


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
        provider=tool.provider,
        context_window=tool.context_window,
        tenants=list(tool.tenants),
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
            check_declared(tool)
            yield tool.name, tool
        except Exception:  # One broken package must not take the others with it.
            _log.warning("the installed tool %s (%s) cannot be loaded", point.name, point.value, exc_info=True)


def _describe(tool: Tool) -> dict[str, Any]:
    return metadata_of(tool).model_dump(exclude={"name", "unavailable", "versions"})


def _rank(item: tuple[str, Tool]) -> Any:
    return rank(item[0])


_global = ToolRegistry()


def get_global_registry() -> ToolRegistry:
    """The registry that an orchestrator uses unless it is given one."""
    return _global
