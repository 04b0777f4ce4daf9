"""`steer-llm doctor`: what is here to answer with, and what would answer."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from textwrap import wrap
from typing import Annotated, Any

import typer
from rich.text import Text

from steer_llm_sdk import __version__
from steer_llm_sdk._install import install_line
from steer_llm_sdk.cli._settings import configured
from steer_llm_sdk.cli._show import WIDTH, console, printable
from steer_llm_sdk.cli._who import which_tool, who_answers
from steer_llm_sdk.cli.exits import errors_as_exits
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError, message_of
from steer_llm_sdk.orchestration.planning import RuleBasedPlanner
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry, installed_tools
from steer_llm_sdk.providers.discover import found_keys, local_servers, price_table_date
from steer_llm_sdk.providers.models import APIS, MODEL_VARIABLE, configured_model, resolve_model
from steer_llm_sdk.providers.simulated.recording import shipped_recording
from steer_llm_sdk.reliability.idempotency import PATIENCE
from steer_llm_sdk.reliability.stores import open_store

CLIENTS = ("pydantic-ai-slim", "openai", "anthropic", "httpx2", "genai-prices")
_TITLE = 17
MEMORY = (
    "memory: a program remembers results until it ends; `steer-llm run --idempotency-key` needs --store or STEER_STORE"
)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show what was found: keys (by name only), local servers, clients, prices; and what would answer a plain run.

    Nothing is sent to a provider and nothing is spent; servers on this machine are asked which models they have. The
    exit code is 0 whatever is found.
    """
    with errors_as_exits(as_json=as_json):
        found = _examined()
        if as_json:
            print(json.dumps(found, indent=2, ensure_ascii=False))
            return
        out = console()
        for title, said in _told(found):
            first, *more = wrap(printable(said), WIDTH - _TITLE, break_long_words=False, break_on_hyphens=False) or [""]
            out.print(Text(f"{title:<{_TITLE}}", style="bold") + Text(first), soft_wrap=True)
            for line in more:
                out.print(Text(" " * _TITLE + line), soft_wrap=True)


def _examined() -> dict[str, Any]:
    servers = asyncio.run(local_servers())
    prices, recording = price_table_date(), shipped_recording()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "keys": found_keys(),
        "endpoints": [api.url_variable for api in APIS.values() if os.environ.get(api.url_variable, "").strip()],
        "local_servers": [{"name": s.name, "base_url": s.base_url, "models": list(s.models)} for s in servers],
        "recorded": {"models": len(recording.models), "questions": len(recording.questions)},
        "plain_run": _plain_run(),
        "tools": {name: tool.version for name, tool in installed_tools().items()},
        "price_table": None if prices is None else prices.isoformat(),
        "idempotency_store": asyncio.run(_store()),
        "clients": {name: _version(name) for name in CLIENTS},
    }


def _plain_run() -> dict[str, Any]:
    """What `steer-llm run TEXT` would ask, and why that cannot be asked where it cannot."""
    model = configured_model()
    if model is not None:
        return {"by": model, "said": who_answers([model], MODEL_VARIABLE), "problem": _problem(model)}
    registry = ToolRegistry()
    name = RuleBasedPlanner().decide("a text", registry.planning_view()).selected_tool
    tool = registry.get_tool(name)
    assert tool is not None
    return {"by": name, "said": which_tool(tool, None), "problem": None}


async def _store() -> dict[str, Any]:
    """Where keyed runs are remembered, and whether that answers: one key that does not exist is looked for."""
    settings = configured()
    url = None if settings is None else settings.store
    if url is None:
        return {"store": "memory", "problem": None}
    store = open_store(url)
    try:
        async with asyncio.timeout(PATIENCE):
            await store.wanted("steer-llm doctor", 0)
        problem = None
    except (OrchestratorError, TimeoutError) as error:
        problem = message_of(error)
    finally:
        await store.aclose()
    return {"store": repr(store), "problem": problem}


def _told_of(store: Mapping[str, Any]) -> str:
    if store["store"] == "memory":
        return MEMORY
    return f"{store['store']}; but {store['problem']}" if store["problem"] else f"{store['store']}, which answers"


def _problem(model: str) -> str | None:
    try:
        resolve_model(model)
    except InvalidRequest as error:
        return str(error)
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _told(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    plain, servers, recorded = found["plain_run"], found["local_servers"], found["recorded"]
    yield "steer_llm_sdk", f"{found['version']}, Python {found['python']}"
    yield (
        "a plain run",
        plain["said"].removeprefix("answering: ") + (f"; but {plain['problem']}" if plain["problem"] else ""),
    )
    yield "keys found", _listed(found["keys"]) + ("; none is used unless you name a model" if found["keys"] else "")
    yield "endpoints set", _listed(found["endpoints"])
    for server in servers:
        yield "local server", f"{server['name']} at {server['base_url']}: {_listed(server['models'])}"
    if not servers:
        yield "local servers", "none answers"
    yield (
        "recorded:demo",
        f"answers of {recorded['models']} models to {recorded['questions']} questions, in the package",
    )
    yield "tools", ", ".join(f"{name} {number}" for name, number in found["tools"].items()) or "none"
    yield "prices", f"as of {found['price_table']}" if found["price_table"] else f"not installed: {install_line('llm')}"
    yield "idempotency", _told_of(found["idempotency_store"])
    for name, number in found["clients"].items():
        yield name, number or f"not installed: {install_line('llm')}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
