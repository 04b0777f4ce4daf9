"""`steer-llm tools`: the tools that can be named with --tool, and how far their versions are released."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._show import console, printable, table_of
from steer_llm_sdk.cli._stdout import stdout_of
from steer_llm_sdk.cli.exits import Group, OneCommand, complain, errors_as_exits, flowing, refuse
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.release_files import Releases, read_releases, write_releases
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry, installed_tools
from steer_llm_sdk.orchestration.versions import ACTIVE, MARGIN, Release, deprecated, rank

RELEASES_VARIABLE = "STEER_RELEASES"
_DEFAULT_FILE = "releases.toml"

tools = typer.Typer(cls=Group, invoke_without_command=True)

_File = Annotated[
    str | None,
    typer.Option(
        "--releases",
        metavar="FILE",
        help=f"Where it is written how far versions are released; else what {RELEASES_VARIABLE} names, else "
        f"{_DEFAULT_FILE} here.",
    ),
]
_Module = Annotated[
    str | None,
    typer.Option(
        "--tools",
        metavar="MODULE[:NAME]",
        help="A module that is imported from here and registers tools, or a ToolRegistry in it.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
_Name = Annotated[str, typer.Argument(metavar="TOOL", help="Its name.")]
_Version = Annotated[str, typer.Argument(metavar="VERSION", help="One version, as it is registered.")]


@tools.callback()
def common(context: typer.Context, as_json: _Json = False) -> None:
    """List the tools that this package and others have installed (entry points of the group steer_llm_sdk.tools), and
    say how far versions of tools are released."""
    if context.invoked_subcommand is None:
        with errors_as_exits(as_json=as_json):
            _show_tools({tool.name: tool for tool in installed_tools().values()}, sys.stdout, as_json)


def list_tools(
    versions: Annotated[bool, typer.Option("--versions", help="Each version, and how far it is released.")] = False,
    module: _Module = None,
    releases: _File = None,
    as_json: _Json = False,
) -> None:
    """List the tools: those that are installed, or with --tools those that a module registers."""
    with stdout_of(as_json=as_json) as stdout, errors_as_exits(as_json=as_json, out=stdout):
        registry = _registry(module)
        if versions:
            _show_versions(_versions(registry, read_releases(_path(releases))), stdout, as_json)
        else:
            _show_tools({tool.name: tool for tool in registry}, stdout, as_json)


def canary(
    name: _Name,
    version: _Version,
    share: Annotated[float, typer.Argument(metavar="SHARE", help="Of callers, from 0 to 1.")],
    key: Annotated[
        str, typer.Option(metavar="NAME", help='What tells callers apart: "tenant", or a name in the metadata of runs.')
    ] = "tenant",
    margin: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Worse than the other version by more than this, it goes to nobody any more; 1: never.",
        ),
    ] = MARGIN,
    releases: _File = None,
    as_json: _Json = False,
) -> None:
    """Give a version to a share of callers. A larger share only adds callers; 0 takes it back from all."""
    with errors_as_exits(as_json=as_json):
        _set(name, version, Release(state="canary", share=share, key=key, margin=margin), releases, as_json)


def promote(name: _Name, version: _Version, releases: _File = None, as_json: _Json = False) -> None:
    """Make a version active: whoever asks for no other gets the highest active one."""
    with errors_as_exits(as_json=as_json):
        _set(name, version, ACTIVE, releases, as_json)


def deprecate(
    name: _Name,
    version: _Version,
    since: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Deprecated since; else today.")] = None,
    sunset: Annotated[
        str | None,
        typer.Option(metavar="YYYY-MM-DD", help="From this day on nobody gets it. Without: nobody is refused."),
    ] = None,
    successor: Annotated[
        str | None, typer.Option(metavar="TOOL", help='What to use instead, as in "text_analyzer>=2".')
    ] = None,
    releases: _File = None,
    as_json: _Json = False,
) -> None:
    """Warn whoever still gets a version, and from a day on give it to nobody."""
    with errors_as_exits(as_json=as_json):
        begun, until = _day("--since", since), _day("--sunset", sunset)
        try:
            release = deprecated(begun, until, successor, date.today())
        except InvalidRequest as error:
            refuse(f"--{error.field}", error.given, error.remedy)
        _set(name, version, release, releases, as_json)


for _command, _called in ((list_tools, "list"), (canary, "canary"), (promote, "promote"), (deprecate, "deprecate")):
    tools.command(_called, cls=OneCommand, help=flowing(_command.__doc__))(_command)


def _day(option: str, text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        refuse(option, text, "write a day, as in 2027-01-31")


def _path(given: str | None) -> Path:
    return Path(given or os.environ.get(RELEASES_VARIABLE) or _DEFAULT_FILE)


def _set(name: str, version: str, release: Release, file: str | None, as_json: bool) -> None:
    path = _path(file)
    found = read_releases(path)
    if name not in found and name not in installed_tools():
        complain(f"no tool {name!r} is installed, nor is there one in {path}; this is for when one is registered")
    before = found.get(name, {}).get(version, ACTIVE)
    found.setdefault(name, {})[version] = release
    if release != before:
        write_releases(path, found)
    if as_json:
        told = {"tool": name, "version": version, "was": _told(before), "is": _told(release), "file": str(path)}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print(printable(f"{name}@{version}: {_in_words(release)}, was {_in_words(before)} ({path})"))


def _registry(module: str | None) -> ToolRegistry:
    if module is not None:
        return inputs.registry_of(module, "--tools")
    registry = ToolRegistry()
    for tool in installed_tools().values():
        registry.register_tool(tool)
    return registry


def _versions(registry: ToolRegistry, releases: Releases) -> list[dict[str, Any]]:
    """All that are registered, and those of which only the file knows; the highest of each tool first."""
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys([*(tool.name for tool in registry), *releases]):
        registered, told = registry.versions(name), releases.get(name, {})
        for version in sorted({*registered, *told}, key=rank, reverse=True):
            release = told.get(version, registry.release_of(name, version))
            found.append({"tool": name, "version": version, "registered": version in registered, **_told(release)})
    return found


def _told(release: Release) -> dict[str, Any]:
    found: dict[str, Any] = {"state": release.state}
    if release.state == "canary":
        found.update(share=release.share, key=release.key)
    for name in ("since", "sunset", "successor"):
        value = getattr(release, name)
        if value is not None:
            found[name] = str(value)
    return found


def _in_words(release: Release) -> str:
    if release.state == "canary":
        return f"canary for {release.share:.4g} of callers by {release.key}"
    told = _told(release)
    more = [f"{name} {told[name]}" for name in ("since", "sunset", "successor") if name in told]
    return " ".join([release.state, *more])


def _show_versions(found: list[dict[str, Any]], stdout: TextIO, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False), file=stdout)
        return
    table = table_of("tool", "version", "released")
    for one in found:
        fields = {name: value for name, value in one.items() if name not in ("tool", "version", "registered")}
        for name in ("since", "sunset"):
            if name in fields:
                fields[name] = date.fromisoformat(fields[name])
        words = _in_words(Release(**fields)) + ("" if one["registered"] else "; not registered here")
        table.add_row(Text(printable(one["tool"])), Text(printable(one["version"])), Text(printable(words)))
    console().print(table)


def _show_tools(tools: Mapping[str, Tool], stdout: TextIO, as_json: bool) -> None:
    found = {
        tool.name: {
            "version": tool.version,
            "provider": tool.provider,
            "capabilities": list(tool.capabilities),
            "description": tool.description,
        }
        for tool in tools.values()
    }
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False), file=stdout)
        return
    table = table_of("tool", "version", "what it does")
    for name, facts in found.items():
        table.add_row(Text(name), Text(str(facts["version"])), Text(str(facts["description"])))
    console().print(table)
