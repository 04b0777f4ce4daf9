"""The versions that a keyed run goes by, stored beside its claim: whoever takes the key over goes by the same ones.

They are no part of what tells requests apart, so a canary or a deploy is no conflict. The tools themselves are chosen
anew: a circuit may have opened meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from steer_llm_sdk.orchestration.fallback import ToolCall
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.reliability.idempotency import LEASE, IdempotencyManager
from steer_llm_sdk.reliability.stores.memory import MemoryStore

R = TypeVar("R")
_log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a store gets to answer; without an answer the run goes by the versions of now."""


def may_be_taken_over(manager: IdempotencyManager) -> bool:
    """Whether another process may go on with a key."""
    return type(manager.claims) is not MemoryStore


async def pinned(
    manager: IdempotencyManager, key: str, fingerprint: str, registry: ToolRegistry, make: Callable[[], Awaitable[Any]]
) -> Any:
    """A Plan, made by `make`, with the versions of whoever had the key before us; else its own, which are stored."""
    # A tenant is quoted in `key`, so no tenant's key begins with this.
    store, place = manager.claims, f"versions/{key}"
    claim = await _in_time(store.claim(place, fingerprint, LEASE, manager.ttl_seconds))
    if claim is not None and claim.kind == "settled" and claim.result is not None:
        return _by_versions(await make(), json.loads(claim.result), registry)
    stored = False
    try:
        plan = await make()
        if claim is not None and claim.kind == "ours":
            versions = {step.tool.name: step.tool.version for step in plan.steps}
            stored = bool(await _in_time(store.settle(place, claim.token, json.dumps(versions).encode())))
        return plan
    finally:
        if claim is not None and claim.kind == "ours" and not stored:
            await _in_time(store.release(place, claim.token))


def _by_versions(plan: Any, versions: Mapping[str, str], registry: ToolRegistry) -> Any:
    """The plan with the versions that are still registered. What it shows of the first tool follows. A strategy holds
    the tools that it was made of, and is left as it is."""
    if plan.strategy is not None:
        return plan
    steps = tuple(_at_version(step, versions, registry) for step in plan.steps)
    if steps == plan.steps:
        return plan
    shown, version = plan.shown, steps[0].tool.version
    return replace(plan, steps=steps, shown=None if shown is None else lambda: {**shown(), "tool_version": version})


def _at_version(step: ToolCall, versions: Mapping[str, str], registry: ToolRegistry) -> ToolCall:
    version = versions.get(step.tool.name)
    tool = None if version is None else registry.get_tool(step.tool.name, version)
    return step if tool is None or tool is step.tool else ToolCall.of(tool, step.planned)


async def _in_time(action: Awaitable[R]) -> R | None:
    try:
        async with asyncio.timeout(PATIENCE):
            return await action
    except Exception as error:
        _log.warning("the versions of a keyed run are not stored: %r", error)
        return None
