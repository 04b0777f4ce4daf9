"""What the commands for durable runs share: the store, who works on it, and how a run is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from steer_llm_sdk.cli._settings import configured, orchestrator
from steer_llm_sdk.cli.exits import refuse
from steer_llm_sdk.errors import MISSING
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry

if TYPE_CHECKING:
    from steer_llm_sdk.durable._dbos import DbosRuns

STORE_VARIABLE = "STEER_STORE"


def store_option(of: str = "") -> Any:
    return typer.Option(
        metavar="URL",
        help=f"{of}sqlite:///file.db, or postgresql://user@host/database. By default what {STORE_VARIABLE} says.",
    )


def required_store(given: str | None) -> str:
    store = given or os.environ.get(STORE_VARIABLE)
    if not store:
        refuse(
            "--store", MISSING, f"say where the runs are kept, here or in {STORE_VARIABLE}: --store sqlite:///runs.db"
        )
    return store


def orchestrator_of(registry: ToolRegistry, store: str | None) -> ReliableOrchestrator:
    """A durable one where there is a store. It carries out its own run only: it is gone when that has ended."""
    if store is None:
        return orchestrator(registry)
    from steer_llm_sdk.durable import DurableOrchestrator

    settings = configured()
    reliability = None if settings is None else settings.reliability
    return DurableOrchestrator(store, reliability_config=reliability, registry=registry, works=False)


@contextmanager
def opened(store: str | None) -> Iterator[DbosRuns]:
    from steer_llm_sdk.durable import runs_of

    runs = runs_of(required_store(store))
    try:
        yield runs
    finally:
        runs.close()
