"""`steer-llm tools`: the tools that can be named with --tool."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from steer_llm_sdk.cli._show import console, table_of
from steer_llm_sdk.cli.exits import errors_as_exits
from steer_llm_sdk.orchestration.tool_registry import installed_tools


def tools(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the tools that this package and others have installed (entry points of the group steer_llm_sdk.tools)."""
    with errors_as_exits(as_json=as_json):
        found = {
            tool.name: {
                "version": tool.version,
                "provider": tool.provider,
                "capabilities": list(tool.capabilities),
                "description": tool.description,
            }
            for tool in installed_tools().values()
        }
        if as_json:
            print(json.dumps(found, indent=2, ensure_ascii=False))
            return
        table = table_of("tool", "version", "what it does")
        for name, facts in found.items():
            table.add_row(Text(name), Text(str(facts["version"])), Text(str(facts["description"])))
        console().print(table)
