"""What the commands for durable runs share: the store, who works on it, and how a run is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from steer_llm_sdk.cli._settings import configured, orchestrator
from steer_llm_sdk.cli.exits import refuse
from steer_llm_sdk.errors import MISSING, InvalidRequest
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.reliability.stores import kind_of, open_store

if TYPE_CHECKING:
    from steer_llm_sdk.durable._dbos import DbosRuns

STORE_VARIABLE = "STEER_STORE"


def store_option(help: str = "sqlite:///file.db, or postgresql://user@host/database.") -> Any:
    return typer.Option(metavar="URL", help=f"{help} By default what {STORE_VARIABLE} says.")


def required_store(given: str | None) -> str:
    store = given or os.environ.get(STORE_VARIABLE)
    if not store:
        refuse(
            "--store", MISSING, f"say where the runs are kept, here or in {STORE_VARIABLE}: --store sqlite:///runs.db"
        )
    return store


def remembering_store(given: str | None, key: str | None = None) -> str | None:
    """Where keyed runs are remembered: what --store names, else what the settings do. A `key` needs one that is there
    when the command has ended."""
    if given:
        try:
            open_store(given)
        except InvalidRequest as error:
            refuse("--store", error.given, error.remedy)
    settings = configured()
    store = given or (None if settings is None else settings.store)
    if key and (store is None or kind_of(store) == "memory"):
        refuse(
            "--idempotency-key",
            key,
            f"nothing remembers it when this command has ended; name a store, here or in {STORE_VARIABLE}: "
            "--store sqlite:///steer.db",
        )
    return store


def orchestrator_of(registry: ToolRegistry, store: str | None, *, durable: bool) -> ReliableOrchestrator:
    """A durable one carries out its own run only: it is gone when that has ended. Of another one, `store` None leaves
    it to the settings."""
    if not durable or store is None:
        return orchestrator(registry, store)
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
