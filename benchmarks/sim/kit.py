"""What the experiments share: what a finding is, simulated model servers, load, and the contenders.

Every contender is a function `(send) -> call`: `send` makes one request to the provider and `call` is what an
application would await. It raises where there is no answer. `ours` is the library as it is, round a tool that does
nothing but `send`.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from unittest.mock import patch

from steer_llm_sdk.errors import ProviderTimeout
from steer_llm_sdk.orchestration import OrchestrationConfig, ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry

Send: TypeAlias = Callable[[], Awaitable[Any]]
Contender: TypeAlias = Callable[[Send], Send]

OURS = "steer_llm_sdk"
EPOCH = 1_800_000_000.0
"""The wall clock where the loop's is 0."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One row: who, its figures, whether they meet the mark. `ours` must meet it."""

    name: str
    cells: Sequence[str]
    held: bool
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one experiment has shown. `charts` are SVGs by file name. At least one arm that is not ours misses."""

    title: str
    setting: str
    mark: str
    columns: Sequence[str]
    arms: Sequence[Arm]
    charts: Mapping[str, str]

    @property
    def held(self) -> bool:
        return all(arm.held for arm in self.arms if arm.ours) and any(arm.ours for arm in self.arms)

    @property
    def can_fail(self) -> bool:
        return any(not arm.held for arm in self.arms if not arm.ours)


class Requests(Tool):
    """A tool that is one request to the provider."""

    name = "requests"
    provider = "simulated"

    def __init__(self, send: Send) -> None:
        self._send = send

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return await self._send()


def ours(config: ReliabilityConfig | None = None, options: OrchestrationConfig | None = None) -> Contender:
    """ReliableOrchestrator with `config`; a client of its own, with its own breaker and budget, for each `send`."""

    def contender(send: Send) -> Send:
        registry = ToolRegistry()
        registry.register_tool(Requests(send))
        orchestrator = ReliableOrchestrator(reliability_config=config, registry=registry)

        async def call() -> Any:
            return (await orchestrator.run("ask", "requests", options=options)).raise_for_status()

        return call

    return contender


def plain(send: Send) -> Send:
    """No help at all."""
    return send


def patient(send: Send, seconds: float) -> Send:
    """`send` that gives up after `seconds`."""

    async def call() -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await send()
        except TimeoutError as error:
            raise ProviderTimeout("no answer in time", "simulated") from error

    return call


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class Counted:
    """A `send` that notes when it is called."""

    send: Send
    times: list[float] = field(default_factory=list)

    async def __call__(self) -> Any:
        self.times.append(now())
        return await self.send()


class Queue:
    """A provider with `servers` that work off one queue, first come first served; `service()` is how long one takes.

    When a client leaves, its request is dropped, whether it waits or is being worked on. A `stubborn` provider works to
    its end on what it has begun; a `stale` queue also begins what nobody waits for any more. While `down` nothing is
    begun.
    """

    def __init__(
        self, servers: int, service: Callable[[], float], *, stubborn: bool = False, stale: bool = False
    ) -> None:
        self._free, self._service, self._stubborn, self._stale = servers, service, stubborn, stale
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ends: dict[asyncio.Future[None], asyncio.TimerHandle] = {}
        self.down = False

    async def send(self) -> str:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.serve()
        try:
            await answer
        finally:
            if answer in self._ends and not self._stubborn:
                self._ends[answer].cancel()
                self._finish(answer)
        return "ok"

    def serve(self) -> None:
        """Begin what can be begun."""
        while self._free and self._waiting and not self.down:
            answer = self._waiting.popleft()
            if answer.done() and not self._stale:
                continue
            self._free -= 1
            self._ends[answer] = asyncio.get_running_loop().call_later(self._service(), self._finish, answer)

    def _finish(self, answer: asyncio.Future[None]) -> None:
        del self._ends[answer]
        self._free += 1
        if not answer.done():
            answer.set_result(None)
        self.serve()


@dataclass(slots=True)
class Outcome:
    """One call of an application: when it was made, how long it took, and what it came to."""

    at: float
    took: float
    error: Exception | None


async def observed(call: Send) -> Outcome:
    start = now()
    try:
        await call()
    except Exception as error:
        return Outcome(start, now() - start, error)
    return Outcome(start, now() - start, None)


async def load(call: Send, rate: float, seconds: float, chance: random.Random) -> list[Outcome]:
    """Calls that come by themselves, `rate` a second, whether earlier ones are answered or not (Poisson)."""
    tasks: list[asyncio.Task[Outcome]] = []
    end = now() + seconds
    while (wait := chance.expovariate(rate)) + now() < end:
        await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(observed(call)))
    return list(await asyncio.gather(*tasks))


async def each_at(times: Iterable[float], call: Send) -> list[Outcome]:
    """One call at each of these times."""

    async def one(at: float) -> Outcome:
        await asyncio.sleep(at - now())
        return await observed(call)

    return list(await asyncio.gather(*(one(at) for at in times)))


def lognormal_with_stragglers(chance: random.Random, share: float = 0.02) -> Callable[[], float]:
    """Seconds: lognormal with median 1 s; `share` of them lognormal with median 16 s."""

    def draw() -> float:
        slow = chance.random() < share
        return chance.lognormvariate(math.log(16.0), 0.45) if slow else chance.lognormvariate(0.0, 0.35)

    return draw


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@contextmanager
def wall_clock_in_virtual_time() -> Iterator[None]:
    """HTTP dates and some breakers go by the wall clock; inside of this it runs with the loop's."""
    real = time.time

    def virtual() -> float:
        try:
            return EPOCH + asyncio.get_running_loop().time()
        except RuntimeError:
            return real()

    with patch.object(time, "time", virtual):
        yield


def seeded(seed: int) -> None:
    """The library draws its jitter from `random`."""
    random.seed(seed)
