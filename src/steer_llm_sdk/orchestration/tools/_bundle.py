"""Making a bundle: k replicates, a limited number at a time, and a report of all of them."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded, OrchestratorError
from steer_llm_sdk.evidence import Calibrator, summarize
from steer_llm_sdk.evidence.policy import Fields, Policies
from steer_llm_sdk.models.usage import add_usage
from steer_llm_sdk.orchestration._call import replicate, time_left
from steer_llm_sdk.orchestration.models.evidence_bundle import (
    BundleMetadata,
    BundleSummary,
    EvidenceBundle,
    Replicate,
    ReplicateQuality,
)
from steer_llm_sdk.orchestration.tools._progress import Progress, cost_saved
from steer_llm_sdk.orchestration.tools.base import BundleOptions, own_limit
from steer_llm_sdk.reliability.deadline import GRACE

_TICK: Final = 0.001
"""Seconds that a timer may fire early by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One replicate to be made; `number` counts from 1.

    `share` is the part of what is left of the run's budget that it may plan with.
    """

    number: int
    seed: int
    share: float

    @property
    def id(self) -> str:
        return f"r{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateOutcome:
    """The result of one slot. `error` makes the replicate invalid. `over_budget`: nothing more may be spent.

    `costs` is USD by model; `unpriced`: something was used at an unknown price. `notes` go into the bundle's metadata;
    lists of several replicates are joined.
    """

    data: Any = None
    error: Exception | None = None
    over_budget: BudgetExceeded | None = None
    warnings: Sequence[str] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    unpriced: bool = False
    model: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failure(self) -> Exception | None:
        return self.error or self.over_budget

    @property
    def spent(self) -> bool:
        return bool(self.usage) or bool(self.costs) or self.unpriced


class Tell(Protocol):
    async def __call__(self, event_type: str, data: Mapping[str, Any], /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be made. `listened`: the events are received, so that partial summaries are worth computing.

    `price` is what one replicate costs in USD, where nobody else keeps it within the run's budget. `calibrator` says
    how far to trust the answer, if it was made for this model, k and rule.
    """

    task: str
    model: str | None
    seeds: Sequence[int]
    options: BundleOptions
    produce: Callable[[Slot], Awaitable[ReplicateOutcome]]
    tell: Tell
    listened: bool = False
    fields: Fields | Policies | None = None
    accepts: Callable[[Any], bool] | None = None
    price: float | None = None
    calibrator: Calibrator | None = None


@dataclass(frozen=True, slots=True)
class _Made:
    slot: Slot
    outcome: ReplicateOutcome
    replicate: Replicate

    @classmethod
    def of(cls, slot: Slot, outcome: ReplicateOutcome, elapsed_ms: float) -> _Made:
        failure = outcome.failure
        quality = ReplicateQuality(
            valid=failure is None,
            errors=[f"{type(failure).__name__}: {failure}"] if failure else [],
            warnings=list(outcome.warnings),
        )
        replicate = Replicate(
            id=slot.id,
            data=None if failure else outcome.data,
            quality=quality,
            usage=dict(outcome.usage),
            elapsed_ms=round(elapsed_ms, 1),
            seed=slot.seed,
            model=outcome.model,
        )
        return cls(slot, outcome, replicate)


_Task: TypeAlias = asyncio.Task[_Made]


async def make_bundle(job: Job) -> EvidenceBundle:
    """Make the replicates and the bundle of them.

    A replicate that fails is invalid. When the budget is exceeded, no more are started. Shortly before the deadline of
    the run, if at least one replicate is valid, the others are cancelled and the valid ones reported. If none is valid:
    BudgetExceeded if it refused all, TimeoutError at the tool's own limit, else AllToolsFailed with every cause.
    No child task outlives this call, except one that ignores its cancellation.
    """
    return await _Making(job).make()


class _Making:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._k = job.options.k
        self._clock = asyncio.get_running_loop().time
        self._started = self._clock()
        self._own_limit = own_limit(job.options.timeout_ms)
        self._todo = deque(enumerate(job.seeds[: self._k], start=1))
        self._progress = Progress(job.options, job.fields)
        self._calibrator = job.calibrator
        self._refusal: str | None = None
        self._asked = 0
        self._running: dict[_Task, Slot] = {}
        self._done: dict[int, _Made] = {}
        self._refused: dict[str, BudgetExceeded] = {}
        self._cancelled: list[str] = []
        self._reason: str | None = None

    async def make(self) -> EvidenceBundle:
        await self._tell_start()
        try:
            await self._run()
        except asyncio.CancelledError:
            await self._stop_running()
            await self._job.tell("cancelled", {"completed": self._valid, "k": self._k})
            raise
        finally:
            await self._stop_running()
        if not self._valid:
            raise self._failure()
        bundle = self._bundle()
        await self._tell_end(bundle)
        return bundle

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        while await self._launch():
            done, _ = await asyncio.wait(self._running, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: self._running[task].number):
                await self._take(task)
            if self._running or self._todo:
                await self._mind_the_time()

    async def _launch(self) -> bool:
        """Start as many as may run at once and as can still be needed. Returns whether any is running."""
        most = min(self._job.options.max_parallel, self._progress.need)
        while self._todo and len(self._running) < most:
            if (over := self._over_price()) is not None:
                await self._stop_launching(over)
                if not self._done and not self._running:
                    self._refused["r1"] = over
                break
            self._asked += 1
            share = 1 / len(self._todo)
            number, seed = self._todo.popleft()
            slot = Slot(number=number, seed=seed, share=share)
            self._running[asyncio.get_running_loop().create_task(self._replicate(slot))] = slot
        return bool(self._running)

    async def _replicate(self, slot: Slot) -> _Made:
        replicate.set(slot.id)
        await self._job.tell("replicate_started", {"replicate_id": slot.id, "seed": slot.seed})
        started = self._clock()
        outcome = await _undisturbed(self._job.produce(slot))
        return _Made.of(slot, outcome, (self._clock() - started) * 1000)

    async def _take(self, task: _Task) -> None:
        slot = self._running.pop(task)
        made = task.result()
        over = made.outcome.over_budget
        if over is not None:
            await self._stop_launching(over)
        if over is not None and not made.outcome.spent:
            self._refused[slot.id] = over
        else:
            self._done[slot.number] = made
            self._count(made)
            await self._tell_done(made)

    def _count(self, made: _Made) -> None:
        """What runs when a rule says to stop is waited for, and counted: it may be the slower and other answer."""
        self._progress.add(made.replicate)
        if self._progress.reason is not None and self._reason is None and self._todo:
            self._reason = self._progress.reason
            self._todo.clear()

    def _over_price(self) -> BudgetExceeded | None:
        """The refusal of one more replicate at the declared price; those that run are paid for as well."""
        price, limit = self._job.price, (self._job.options.global_budget or {}).get("cost_usd")
        if price is None or limit is None:
            return None
        spent = math.fsum(cost for made in self._done.values() for cost in made.outcome.costs.values())
        after = spent + price * (len(self._running) + 1)
        return BudgetExceeded("cost", limit, after) if after > limit * (1 + 1e-9) else None

    async def _stop_launching(self, over: BudgetExceeded) -> None:
        self._todo.clear()
        if self._reason is None:
            self._reason = "budget"
            await self._job.tell("warning", {"message": f"no more replicates are started: {over}"})

    async def _stop_running(self) -> None:
        """Cancel every child and wait for it, at most GRACE seconds."""
        tasks, self._running = list(self._running), {}
        for task in tasks:
            task.cancel()
            task.add_done_callback(_retrieve)
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _left(self) -> float | None:
        """Seconds until the earlier deadline, of the run or the tool. The one of a keyed run may move."""
        limits = [limit for limit in (time_left(), self._own_left()) if limit is not None]
        return min(limits, default=None)

    def _own_left(self) -> float | None:
        return None if self._own_limit is None else self._started + self._own_limit - self._clock()

    def _patience(self) -> float | None:
        """Seconds to wait for the next replicate.

        Once one is valid, time must be left before the deadline to end the cancelled ones and make the summary. Before
        that the run ends the wait at its own deadline, and only the tool's own limit is enforced here.
        """
        left, spare = (self._left(), self._margin) if self._valid else (self._own_left(), 0.0)
        return None if left is None else max(0.0, left - spare)

    @property
    def _margin(self) -> float:
        return GRACE + 0.015 + 0.001 * self._k

    async def _mind_the_time(self) -> None:
        """At the end of the patience, as it is now: cut the work, unless the deadline has moved away."""
        patience = self._patience()
        if patience is None or patience > _TICK:
            return
        if self._valid:
            await self._cut()
        else:
            raise TimeoutError(f"no valid replicate within timeout_ms = {self._job.options.timeout_ms:g}")

    async def _cut(self) -> None:
        self._reason = "deadline"
        self._cancelled = [slot.id for slot in sorted(self._running.values(), key=lambda slot: slot.number)]
        self._todo.clear()
        await self._stop_running()
        await self._job.tell("timeout", {"completed": self._valid, "k": self._k})

    # ── the account ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _valid(self) -> int:
        return sum(made.outcome.failure is None for made in self._done.values())

    def _in_order(self) -> list[_Made]:
        return [self._done[number] for number in sorted(self._done)]

    def _failure(self) -> Exception:
        causes = {made.slot.id: made.outcome.failure for made in self._in_order()}
        failures = {name: error for name, error in causes.items() if error is not None}
        if not failures and self._refused:
            return next(iter(self._refused.values()))
        return AllToolsFailed({**failures, **self._refused})

    def _summary(self) -> BundleSummary:
        replicates = [made.replicate for made in self._in_order()]
        return summarize(
            replicates,
            fields=self._job.fields,
            accepts=self._job.accepts,
            limits=self._job.options.limits,
        )

    def _bundle(self) -> EvidenceBundle:
        outcomes = [made.outcome for made in self._in_order()]
        summary = self._summary()
        unpriced = any(outcome.unpriced for outcome in outcomes) or bool(self._cancelled)
        costs = _sum_by_model(outcomes)
        return EvidenceBundle(
            meta=self._meta(),
            replicates=[made.replicate for made in self._in_order()],
            summary=self._with_confidence(summary),
            usage_total=_sum_usage(outcomes),
            cost_total_usd=None if unpriced else math.fsum(costs.values()),
            cost_breakdown=costs,
            metadata={**_join_notes(outcomes), **self._own_notes(summary)},
        )

    def _meta(self) -> BundleMetadata:
        stopped = len(self._done) < self._k
        return BundleMetadata(
            task=self._job.task,
            k=self._k,
            k_completed=self._valid,
            min_valid=self._job.options.min_valid,
            model=self._job.model,
            seeds=list(self._job.seeds[: self._k]),
            early_stopped=stopped,
            early_stop_reason=self._reason if stopped else None,
            total_elapsed_ms=round((self._clock() - self._started) * 1000, 1),
            schema_uri=self._job.options.schema_uri,
        )

    def _with_confidence(self, summary: BundleSummary) -> BundleSummary:
        """Confidence as trust where it is known. No vote chose a whole answer: it keeps support."""
        if summary.confidence is None or summary.consensus_from is not None:
            return summary
        trust = None if self._calibrator is None else self._progress.trust(self._calibrator)
        if trust is None:
            return summary
        return summary.model_copy(update={"confidence": trust, "confidence_is": "trust", "trust": trust})

    def _stopping(self) -> dict[str, Any]:
        """How it came to its end: for whoever wants to see why there are so many replicates and no more."""
        options, outcomes = self._job.options, [made.outcome for made in self._done.values()]
        costs = [None if outcome.unpriced else math.fsum(outcome.costs.values()) for outcome in outcomes]
        saved = cost_saved(costs, self._k)
        return {
            "rule": None if options.latency == "min" else options.stop,
            "reason": self._reason or self._progress.reason,
            "k": self._k,
            "asked": self._asked,
            "cost_saved_usd": saved,
            "trace": self._progress.trace,
        }

    def _own_notes(self, summary: BundleSummary) -> dict[str, Any]:
        notes: dict[str, Any] = {"stopping": self._stopping()}
        if summary.consensus_from is not None:
            notes["consensus_from"] = summary.consensus_from
        if self._refusal is not None:
            notes["calibrator_refused"] = self._refusal
        if self._cancelled:
            notes["cancelled"] = self._cancelled
        return notes

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tell_start(self) -> None:
        job = self._job
        data = {"task": job.task, "k": self._k, "model": job.model, "seeds": list(job.seeds[: self._k])}
        await job.tell("bundle_started", {**data, "max_parallel": job.options.max_parallel})
        await self._check_calibrator()

    async def _check_calibrator(self) -> None:
        """One that was made of other answers says nothing of these; the bundle is made all the same."""
        job, calibrator = self._job, self._job.calibrator
        if calibrator is None or not calibrator.calibrated:
            self._calibrator = None
            return
        rule = None if job.options.latency == "min" else job.options.stop
        try:
            calibrator.check(k=self._k, model=job.model or job.task, rule=rule)
        except ValueError as error:
            self._calibrator = None
            self._refusal = str(error)
            await job.tell("warning", {"message": f"confidence is stability, not trust: {error}"})

    async def _tell_done(self, made: _Made) -> None:
        replicate, outcome = made.replicate, made.outcome
        for warning in outcome.warnings:
            await self._job.tell("warning", {"replicate_id": replicate.id, "message": warning})
        if not self._job.listened:  # A copy of an answer of many megabytes would be made for nobody.
            return
        data = replicate.model_dump(mode="json", include={"seed", "model", "elapsed_ms", "usage", "data"})
        verdict = {"replicate_id": replicate.id, "valid": replicate.quality.valid, "errors": replicate.quality.errors}
        cost = None if outcome.unpriced else math.fsum(outcome.costs.values())
        await self._job.tell("replicate_done", {**verdict, **data, "cost_usd": cost})
        if self._valid > 1 and (self._running or self._todo):
            now = self._with_confidence(self._summary())
            need = {"need": self._progress.decision.need}
            await self._job.tell("partial_summary", {**self._told(now), **need})

    async def _tell_end(self, bundle: EvidenceBundle) -> None:
        stopped = {"early_stopped": bundle.meta.early_stopped, "early_stop_reason": bundle.meta.early_stop_reason}
        cost = {"usage": bundle.usage_total, "cost_usd": bundle.cost_total_usd}
        await self._job.tell("bundle_ready", {**self._told(bundle.summary), **stopped, **cost})

    def _told(self, summary: BundleSummary) -> dict[str, Any]:
        return {
            "completed": self._valid,
            "k": self._k,
            "consensus": summary.consensus,
            "confidence": summary.confidence,
            "confidence_is": summary.confidence_is,
            "stability": self._progress.stability(),
            "disagreements": [disagreement.field for disagreement in summary.disagreements],
        }


async def _undisturbed(work: Awaitable[ReplicateOutcome]) -> ReplicateOutcome:
    """A cancellation that was not requested of this task counts as a failure of the replicate."""
    try:
        return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return ReplicateOutcome(error=OrchestratorError("the answer was cancelled from within"))


def _retrieve(task: _Task) -> None:
    """Mark what a cancelled child raises as seen, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def _sum_usage(outcomes: Sequence[ReplicateOutcome]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for outcome in outcomes:
        total = add_usage(total, outcome.usage)
    return total


def _sum_by_model(outcomes: Sequence[ReplicateOutcome]) -> dict[str, float]:
    models = dict.fromkeys(model for outcome in outcomes for model in outcome.costs)
    return {model: math.fsum(outcome.costs.get(model, 0.0) for outcome in outcomes) for model in models}


def _join_notes(outcomes: Sequence[ReplicateOutcome]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for outcome in outcomes:
        for name, note in outcome.notes.items():
            if isinstance(note, (list, tuple)):
                joined[name] = list(dict.fromkeys([*joined.get(name, ()), *note]))
            else:
                joined[name] = note
    return joined
