"""What needs the extra `durable` is loaded when it is first used."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from steer_llm_sdk._install import install_line
from steer_llm_sdk.durable._tables import Store

if TYPE_CHECKING:
    from steer_llm_sdk.durable._dbos import DbosRuns


def engine() -> ModuleType:
    """The module of the engine that comes with it. ImportError, with the extra's name, where that is missing."""
    try:
        from steer_llm_sdk.durable import _dbos
    except ImportError as error:
        raise ImportError(f"durable runs need the extra `durable` ({error}): {install_line('durable')}") from error
    return _dbos


def runs_of(store: str) -> DbosRuns:
    """The runs of a store, to look at, to cancel and to resume."""
    there = Store.of(store)  # First: a URL that is none is told before an extra that is missing.
    runs: DbosRuns = engine().DbosRuns(there)
    return runs
