"""A scenario played on virtual time: several orchestrators, a shared store, providers at fault, and a record of it all.

What the providers saw is kept by themselves and shares nothing with the library: it is what the library is held to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

from contract.kit import Fixed
from invariants.scenario import LENGTH, TOOLS, CallerPlan, ProviderPlan, Scenario
from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationOutput, ReliableOrchestrator, Tool
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.reliability import IdempotencyManager
from steer_llm_sdk.reliability.budget import BudgetAccounts
from steer_llm_sdk.reliability.idempotency import Hangar
from steer_llm_sdk.reliability.stores import Changed, Claim, Store
from steer_llm_sdk.reliability.stores.memory import MemoryStore

WORST = Amount(20, 0.02)
LONGEST = LENGTH + 300.0
"""Seconds after which no caller still waits, with or without a deadline of his own: all faults are over by then."""


@dataclass(slots=True)
class Sent:
    """One call as the provider saw it. `run` is the number of the caller in whose task it was made."""

    number: int
    provider: str
    tool: str
    orchestrator: int
    run: int
    start: float
    end: float | None = None
    outcome: str = "running"
    asked: float | None = None
    tokens: int = 0
    cost_usd: float = 0.0
    cancelled_at: float | None = None


@dataclass(slots=True)
class Ran:
    """One run as its caller saw it."""

    plan: CallerPlan
    start: float
    end: float = 0.0
    output: OrchestrationOutput | None = None
    error: BaseException | None = None

    @property
    def succeeded(self) -> bool:
        return self.output is not None and self.output.status == "succeeded"

    @property
    def came_to(self) -> str:
        if self.output is not None:
            return self.output.status + (", replayed" if self.output.replayed else "")
        return type(self.error).__name__


caller: ContextVar[int] = ContextVar("caller", default=-1)


@dataclass(slots=True)
class World:
    scenario: Scenario
    sent: list[Sent] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    orchestrators: list[ReliableOrchestrator] = field(default_factory=list)
    left: int = 0
    """Tasks that were still there when all was over."""

    def tell(self, what: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time():10.4f}  {what}")


class Provider:
    def __init__(self, plan: ProviderPlan, world: World) -> None:
        self.plan, self._world = plan, world
        self._rng = Random(f"provider {plan.name} {world.scenario.seed}")

    async def answer(self, tool: str, orchestrator: int) -> Any:
        world, loop = self._world, asyncio.get_running_loop()
        number = len(world.sent)
        call = Sent(number, self.plan.name, tool, orchestrator, caller.get(), loop.time())
        world.sent.append(call)
        kind, until = self._weather(tool, call.start)
        world.tell(f"call {number} of run {call.run} to {tool}: meets {kind}")
        try:
            return await self._play(call, kind, until)
        except asyncio.CancelledError:
            call.outcome, call.cancelled_at = "cancelled", loop.time()
            raise
        except Exception:
            call.outcome = kind
            raise
        finally:
            call.end = loop.time()
            world.tell(f"call {number} of run {call.run}: {call.outcome}")

    def _weather(self, tool: str, now: float) -> tuple[str, float]:
        drawn = self._rng.random()
        if now >= LENGTH:
            return "fine", 0.0
        for outage in self.plan.outages:
            if outage.start <= now < outage.end and self.plan.only in (None, tool):
                return outage.kind, outage.end
        for kind, share in self.plan.faults.items():
            drawn -= share
            if drawn < 0:
                return kind, 0.0
        return "fine", 0.0

    async def _play(self, call: Sent, kind: str, until: float) -> Any:
        rng = self._rng
        latency = self.plan.latency * rng.lognormvariate(0, 0.5)
        tokens = rng.randint(1, WORST.tokens)
        asked = rng.choice((0.5, 1.5, 90.0))
        if kind == "silence":
            await asyncio.sleep(until - call.start)
            raise ConnectionResetError("hung up")
        if kind == "deaf":
            await self._deaf(call, latency + 0.5)
        else:
            await asyncio.sleep(latency * (20 if kind == "drip" else 1))
        match kind:
            case "503" | "500" | "400" | "429":
                raise ProviderError(kind, call.provider, status_code=int(kind))
            case "429 asks":
                call.asked = asked
                raise ProviderError(kind, call.provider, status_code=429, retry_after=asked)
            case "reset":
                raise ConnectionResetError("reset")
        call.outcome, call.tokens, call.cost_usd = "answered", tokens, tokens / 1000
        return {
            "content": f"answer {call.number}",
            "usage": {"total_tokens": tokens},
            "cost_usd": call.cost_usd,
        }

    async def _deaf(self, call: Sent, seconds: float) -> None:
        """Work on, whoever cancels."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            try:
                await asyncio.sleep(end - loop.time())
            except asyncio.CancelledError:
                call.cancelled_at = call.cancelled_at or loop.time()


class WorldTool(Tool):
    def __init__(self, name: str, provider: Provider, orchestrator: int) -> None:
        self._name, self._provider, self._orchestrator = name, provider, orchestrator
        self.provider = provider.plan.name

    @property
    def name(self) -> str:
        return self._name

    def worst_case(self, request: Any, options: Any) -> Amount:
        return WORST

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return await self._provider.answer(self._name, self._orchestrator)


class FlakyStore(Store):
    """The memory store behind a bad line: an action is slow, or fails before or after it was done."""

    def __init__(self, store: MemoryStore, share: float, seed: int) -> None:
        self._store, self._share = store, share
        self._rng = Random(f"store {seed}")

    def __repr__(self) -> str:
        return "a bad line"

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        return await self._line(self._store.claim(key, fingerprint, lease, ttl))

    async def renew(self, key: str, token: int, lease: float) -> bool:
        return await self._line(self._store.renew(key, token, lease))

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        return await self._line(self._store.settle(key, token, result))

    async def release(self, key: str, token: int) -> bool:
        return await self._line(self._store.release(key, token))

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        async with self._store.watch(key, seconds) as changed:
            yield changed

    async def wanted(self, key: str, token: int) -> float:
        return await self._line(self._store.wanted(key, token))

    async def _line(self, action: Any) -> Any:
        drawn = self._rng.random() / self._share
        try:
            await asyncio.sleep(self._rng.choice((0.001, 0.02, 1.0)) if drawn < 0.5 else 0.001)
            if 0.5 <= drawn < 0.75:
                raise ConnectionError("the store cannot be reached")
        except BaseException:
            action.close()
            raise
        result = await action
        if 0.75 <= drawn < 1:
            raise ConnectionError("the store's answer was lost")
        return result


async def play(scenario: Scenario) -> World:
    world = World(scenario)
    loop = asyncio.get_running_loop()
    mine = asyncio.current_task()
    memory = MemoryStore(clock=loop.time)
    store: Any = FlakyStore(memory, scenario.store_faults, scenario.seed) if scenario.store_faults else memory
    providers = {plan.name: Provider(plan, world) for plan in scenario.providers}
    accounts = BudgetAccounts(clock=loop.time)
    for n, config in enumerate(scenario.configs):
        registry = ToolRegistry()
        for name in scenario.order:
            registry.register_tool(WorldTool(name, providers[TOOLS[name]], n))
        manager = IdempotencyManager()
        manager.hangar = Hangar(store)
        world.orchestrators.append(
            ReliableOrchestrator(Fixed(*scenario.order), config, manager, registry=registry, budget_accounts=accounts)
        )
    async with asyncio.timeout(LONGEST):
        await asyncio.gather(*(_call(world, plan) for plan in scenario.callers))
    await _until_all_is_well(world)
    await asyncio.sleep(60)  # What was left behind ends, and so do the leases.
    world.left = len([task for task in asyncio.all_tasks() if task is not mine])
    return world


async def _call(world: World, plan: CallerPlan) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(plan.at)
    caller.set(plan.number)
    ran = Ran(plan, loop.time())
    world.ran.append(ran)
    wanted = plan.tool or "the plan"
    world.tell(f"run {plan.number}: {wanted} by orchestrator {plan.orchestrator}, {plan.request}, {plan.options}")
    run = loop.create_task(world.orchestrators[plan.orchestrator].run(plan.request, plan.tool, options=plan.options))
    timer = None if plan.cancel_after is None else loop.call_later(plan.cancel_after, run.cancel)
    try:
        ran.output = await run
    except (Exception, asyncio.CancelledError) as error:
        ran.error = error
    if timer is not None:
        timer.cancel()
    ran.end = loop.time()
    world.tell(f"run {plan.number}: {ran.came_to}")


async def _until_all_is_well(world: World) -> None:
    """Callers keep coming, and every provider answers: each tool is to be served again by each orchestrator."""
    await asyncio.sleep(max(0.0, LENGTH - asyncio.get_running_loop().time()))
    for n, orchestrator in enumerate(world.orchestrators):
        for _ in range(120):
            outputs = [await orchestrator.run("well?", tool, options={"max_retries": 0}) for tool in TOOLS]
            if all(output.status == "succeeded" for output in outputs) and _all_closed(orchestrator):
                break
            await asyncio.sleep(5)
        else:
            world.tell(f"orchestrator {n} is not well again: {orchestrator.breakers}")


def _all_closed(orchestrator: ReliableOrchestrator) -> bool:
    return all(stats["state"] == "closed" and not stats["narrowed"] for stats in orchestrator.breakers.values())
