"""A key is held for as long as its work takes, and for one lease where its owner is gone."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from contract.kit import reliable
from steer_llm_sdk.orchestration import ReliableOrchestrator
from steer_llm_sdk.reliability import IdempotencyManager
from steer_llm_sdk.reliability.idempotency import LEASE, Hangar
from steer_llm_sdk.reliability.stores import Claim
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.testing import OK, ScriptedTool, run_in_virtual_time

KEYED = {"idempotency_key": "k"}


def sharing(store: MemoryStore, tool: ScriptedTool) -> ReliableOrchestrator:
    manager = IdempotencyManager()
    manager.hangar = Hangar(store)
    return reliable(tool, manager=manager)


@pytest.mark.parametrize("leases", [0.5, 1.5, 4.2])
def test_work_that_takes_longer_than_a_lease_is_done_once(leases: float) -> None:
    async def main() -> None:
        store = MemoryStore(clock=asyncio.get_running_loop().time)
        tool = ScriptedTool("t", OK("first", after=leases * LEASE), OK("second"))
        one, other = sharing(store, tool), sharing(store, tool)
        first = asyncio.create_task(one.run("q", "t", options=KEYED))
        await asyncio.sleep(leases * LEASE - 0.1)
        outputs = [await other.run("q", "t", options=KEYED), await first]
        assert [output.content for output in outputs] == ["first", "first"]
        assert len(tool.calls) == 1

    run_in_virtual_time(main())


def test_the_key_of_an_owner_that_is_gone_is_free_after_one_lease() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        store = MemoryStore(clock=loop.time)
        tool = ScriptedTool("t", OK("x"))
        orchestrator = sharing(store, tool)
        claim = await store.claim("default:k", await _mark_of_the_run(), LEASE, 900)
        assert claim.kind == "ours"
        output = await orchestrator.run("q", "t", options=KEYED)
        assert output.content == "x"
        assert LEASE <= loop.time() <= LEASE + 0.1

    run_in_virtual_time(main())


async def _mark_of_the_run() -> str | bytes:
    """As the store sees it when the run asks for its key."""
    seen: list[str | bytes] = []
    asked = MemoryStore.claim_now

    def claim(self: MemoryStore, key: str, mark: str | bytes, lease: float, ttl: float) -> Claim:
        seen.append(mark)
        return asked(self, key, mark, lease, ttl)

    with patch.object(MemoryStore, "claim_now", claim):
        await sharing(MemoryStore(), ScriptedTool("t")).run("q", "t", options=KEYED)
    return seen[0]
