"""Hedging: a second attempt beside one that was sent and is slower than it should be; the first answer wins.

How slow that is, the attempts before say: a quantile of how long the recent ones took. After "The Tail at Scale" (Dean
and Barroso, 2013): hedging after the 95th percentile cuts the tail for a twentieth of extra calls.
"""

from __future__ import annotations

import asyncio
import math
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.reliability._kept import Kept
from steer_llm_sdk.reliability.deadline import a_turn_is_due, new_task, turn
from steer_llm_sdk.reliability.retry_budget import RetryBudget, RetryBudgetConfig
from steer_llm_sdk.reliability.silence import Life, answers_all_the_same, at_work, first_of, result_of

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next
    from steer_llm_sdk.reliability.retry import AttemptLimit

KEPT = 256
"""So many recent latencies of one part of a provider are known."""
STEP = 16
"""The lowest median is looked for once in so many latencies, the first time after as many."""
FORGET = 1.02 ** (STEP / KEPT)
"""A provider that has become slower for good is as before when some thousand calls have passed, if by a tenth."""
_MINUTE = 60.0


class HedgingPolicy(BaseModel):
    """A second attempt is sent when the first took longer than `quantile` of the recent ones, so about 1 - `quantile`
    of the calls are hedged.

    None is sent with fewer than `min_samples` known, or where the quantile is more than `slow_factor` x the median:
    then it lies among the slow ones, and a hedge would come too late to help; nor while the median is more than
    `busy_factor` x the lowest that was seen: then calls queue at the provider, and a hedge would make the queue longer
    (as TCP Vegas takes the lowest round trip for the one without a queue). Hedges are at most `max_ratio` of the
    calls to a provider, within a minute, plus one; and they draw from the retry budget as retries do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    quantile: float = Field(default=0.95, gt=0.5, lt=1)
    min_samples: int = Field(default=20, ge=2, le=KEPT)
    slow_factor: float = Field(default=3.0, ge=1, allow_inf_nan=False)
    busy_factor: float = Field(default=1.15, ge=1, allow_inf_nan=False)
    max_ratio: float = Field(default=0.055, ge=0, le=1)

    def delay(self, latencies: Latencies) -> float | None:
        """Seconds after which a second attempt is sent; None: there is none."""
        if len(latencies.ordered) < self.min_samples:
            return None
        delay, median = latencies.quantile(self.quantile), latencies.quantile(0.5)
        busy = median > self.busy_factor * latencies.lowest
        return delay if delay <= self.slow_factor * median and not busy else None


class Latencies:
    """The last KEPT latencies in seconds, as they came and in order. It is changed in place: a new one costs two
    searches, where copies of what is kept would cost as much as all the rest of a call.

    `lowest` is the lowest median that was seen at every STEP of them, and is forgotten by a fiftieth with each KEPT.
    """

    __slots__ = ("lowest", "ordered", "recent", "seen")

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []
        self.lowest = math.inf
        self.seen = 0

    def add(self, seconds: float) -> None:
        recent, ordered = self.recent, self.ordered
        if len(recent) == KEPT:
            del ordered[bisect_left(ordered, recent.popleft())]
        recent.append(seconds)
        insort(ordered, seconds)
        self.seen += 1
        if self.seen % STEP == 0:
            self.lowest = min(self.lowest * FORGET, ordered[len(ordered) // 2])

    def quantile(self, share: float) -> float:
        """The smallest latency that at least `share` of them do not exceed. There must be one."""
        return self.ordered[math.ceil(share * len(self.ordered)) - 1]


class Hedge:
    """The policy. Latency counts from when an attempt was sent to its first sign of life, else to its end. One that has
    shown a sign of life is not hedged."""

    def __init__(self, policy: HedgingPolicy, *, limit: AttemptLimit, budget: RetryBudget | None = None) -> None:
        self._policy = policy
        self._limit = limit
        self._budget = budget
        self._share = RetryBudget(RetryBudgetConfig(ratio=policy.max_ratio, minimum=1, window=_MINUTE))
        self._latencies: dict[tuple[str, str], Latencies] = Kept(lambda _: True)
        self._last: Latencies | None = None
        self._lock = threading.Lock()

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        loop = asyncio.get_running_loop()
        if call.attempts == 0:
            self._share.first(call.target, loop.time())
        key = call.target, call.part
        latencies = self._latencies.get(key)
        if latencies is None:
            latencies = self._latencies.setdefault(key, Latencies())
        with self._lock:
            if latencies is not self._last:  # The last to be used is the last to be forgotten.
                self._last = self._latencies[key] = self._latencies.pop(key, latencies)
            delay = self._policy.delay(latencies)
        parent, failed = call.life, False
        life = call.life = Life(delay, None, parent, watching=False)
        task: asyncio.Task[Any] | None = None
        try:
            if delay is None:
                answer = await next(call)
            else:
                task = new_task(loop, at_work(next, call, life))
                try:
                    if a_turn_is_due(loop, task):
                        await turn()
                except BaseException:
                    if not await answers_all_the_same(task):
                        raise
                if task.done():  # Work that never waits needs no timer.
                    answer = result_of(task)
                else:
                    answer, failed = await _Hedged(self, call, next).answer(delay, task, life, parent)
        finally:
            del task  # See `result_of`.
            call.life = parent
            ended = call.ended = loop.time()
        if not failed and life.sent_at is not None:
            # Of the first of two only. One that was stopped counts with the time it had: left out, the slow ones would
            # vanish from memory, and the quantile sink call by call.
            with self._lock:
                latencies.add((life.sign_at or ended) - life.sent_at)
        return answer

    def refusal(self, call: Call, attempts: int) -> str | None:
        """Why there is no second attempt; None: there is one, and it counts as made."""
        if attempts >= call.max_attempts or not self._limit.left_for_another(call):
            return "attempts"
        if not self._share.draw(call.target):
            return "max_ratio"
        return None if self._budget is None or self._budget.draw(call.target) else "retry_budget"


class _Hedged:
    """One call of which there may be two attempts: the call itself, and then a copy of it."""

    __slots__ = ("_call", "_failures", "_hedge", "_next", "_second")

    def __init__(self, hedge: Hedge, call: Call, next: Next[Any, Any]) -> None:
        self._hedge = hedge
        self._call = call
        self._next = next
        self._second: Call | None = None
        self._failures: dict[int, Exception] | None = None

    async def answer(self, delay: float, first: asyncio.Task[Any], life: Life, parent: Life | None) -> tuple[Any, bool]:
        """The answer, and whether the first attempt failed; it is under way, and `life` watches it."""
        call = self._call
        try:
            won = await first_of(
                (self._primary, self._hedged),
                after=delay,
                may_start=self._may_hedge,
                failed=self._failed,
                parent=parent,
                answers_silence=False,
                begun=(first, life),
            )
        finally:
            del first
            if self._second is not None:
                call.attempts = max(call.attempts, self._second.attempts)
        failures = self._failures
        if won is None:
            assert failures is not None
            raise failures[0]
        return won[1], failures is not None and 0 in failures

    def _primary(self, life: Life) -> Coroutine[Any, Any, Any]:
        return self._next(self._call)

    def _hedged(self, life: Life) -> Coroutine[Any, Any, Any]:
        second = self._second = self._call.watched(life)
        second.attempts = self._call.attempts
        return self._next(second)

    def _may_hedge(self, number: int, beside: bool) -> bool:
        """Asked only beside the first: where that has failed, `_failed` says that none follows."""
        attempts = self._call.attempts
        refusal = self._hedge.refusal(self._call, attempts)
        told = {"provider": self._call.target, "part": self._call.part, "attempt": attempts + 1}
        if refusal is None:
            self._call.emit("hedge", told)
        else:
            self._call.emit("hedge_refused", {**told, "reason": refusal})
        return refusal is None

    def _failed(self, number: int, error: Exception) -> bool:
        self._failures = {**(self._failures or {}), number: error}
        return False
