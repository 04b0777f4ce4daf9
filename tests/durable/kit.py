"""An engine in memory, whose process can die at any step, and requests to run on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any

from contract.kit import STEADY, Fixed, registry
from steer_llm_sdk.durable import DurableOrchestrator, RunInfo
from steer_llm_sdk.durable.runner import CarryOut, Claim, State
from steer_llm_sdk.errors import BudgetExceeded, RateLimited
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationOutput, Planner, ReliabilityConfig, ReliableOrchestrator, Tool
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.reliability.budget import Budget
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err


class Crash(BaseException):
    """The process is dead: nothing that it does from here on has any effect."""


@dataclass
class Kept:
    asked: dict[str, Any]
    about: Mapping[str, Any]
    state: State = "running"
    ended: dict[str, Any] | None = None
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    bought: dict[str, dict[str, Any]] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


_run: ContextVar[str] = ContextVar("run")


class MemoryRunner:
    """What the Runner protocol says, in a dict that outlives its orchestrators.

    `dies_at` counts the steps of all runs, each at its beginning and at its end: when it comes to 0 the process dies,
    there and in everything else that it is doing.
    """

    def __init__(self, dies_at: int | None = None) -> None:
        self.runs: dict[str, Kept] = {}
        self.claims: dict[str, Claim] = {}
        self.dies_at = dies_at
        self.worker = "memory"
        self.dead = False
        self.recorded: list[str] = []
        self._carry_out: CarryOut | None = None

    def now(self) -> float:
        return 1_000_000 + asyncio.get_running_loop().time()

    async def open(self, carry_out: CarryOut) -> None:
        self._carry_out, self.dead = carry_out, False

    async def close(self) -> None:
        self._carry_out = None

    async def claim(self, key: str, fingerprint: str) -> Claim:
        return self.claims.setdefault(key, Claim(fingerprint, 1))

    async def renew(self, key: str, generation: int) -> Claim:
        known = self.claims[key]
        if known.generation == generation:
            self.claims[key] = known._replace(generation=generation + 1)
        return self.claims[key]

    async def execute(self, run_id: str, asked: dict[str, Any], about: dict[str, Any]) -> dict[str, Any] | None:
        if run_id in self.runs:
            return await self.wait(run_id)
        self.runs[run_id] = Kept(asked, about)
        return await self._through(run_id)

    async def enqueue(self, run_id: str, asked: dict[str, Any], about: dict[str, Any], queue: str | None) -> None:
        self.runs.setdefault(run_id, Kept({**asked, "queue": queue}, about, "waiting"))

    async def go_on(self, run_id: str) -> dict[str, Any]:
        """Carry it out again, as a process that has taken it over does: from what is recorded, and for no caller."""
        self.runs[run_id].state = "running"
        return await asyncio.get_running_loop().create_task(self._through(run_id), context=Context())

    async def _through(self, run_id: str) -> dict[str, Any]:
        assert self._carry_out is not None
        kept, token = self.runs[run_id], _run.set(run_id)
        for earlier in kept.asked.get("continues", ()):
            fine = {name: step for name, step in self.runs[earlier].steps.items() if "error" not in step}
            kept.bought = {**fine, **kept.bought}
        try:
            ended = await self._carry_out(run_id, kept.asked)
        finally:
            _run.reset(token)
        self._may_die()
        kept.ended, kept.state = ended, "finished"
        kept.over.set()
        return ended

    async def step(self, name: str, work: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        kept = self.runs[_run.get()]
        known = kept.bought.get(name) or kept.steps.get(name)
        if known is not None:
            await asyncio.sleep(0)
            return known
        self._may_die()
        record = await work()
        self._may_die()
        assert name not in kept.steps, "the name of a step is its own"
        kept.steps[name] = record
        self.recorded.append(name)
        return record

    def _may_die(self) -> None:
        if self.dead or self.dies_at == 0:
            self.dead = True
            raise Crash
        if self.dies_at is not None:
            self.dies_at -= 1

    async def wait(self, run_id: str) -> dict[str, Any] | None:
        await self.runs[run_id].over.wait()
        return self.runs[run_id].ended

    async def info(self, run_id: str) -> RunInfo | None:
        kept = self.runs.get(run_id)
        if kept is None:
            return None
        return RunInfo(
            id=run_id,
            state=kept.state,
            about=kept.about,
            created=0.0,
            finished=None,
            worker="w",
            version="1",
            queue=None,
            asked=kept.asked,
            ended=kept.ended,
        )

    async def list(self, state: State | None = None, limit: int = 100) -> Sequence[RunInfo]:
        found = [await self.info(run_id) for run_id in reversed(self.runs)]
        return [one for one in found if one is not None and state in (None, one.state)][:limit]

    async def steps(self, run_id: str) -> Mapping[str, dict[str, Any]]:
        return self.runs[run_id].steps

    async def cancel(self, run_id: str, why: str) -> None:
        kept = self.runs[run_id]
        if kept.state != "finished":
            kept.about = {**kept.about, "cancelled": why}
            kept.state = "cancelled"
            kept.over.set()

    async def resume(self, run_id: str) -> None:
        self.runs[run_id].state = "waiting"


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


class SeededModel:
    """A model whose answer is a function of the request: the same whoever asks, and in whatever order. `asked` lists
    the seeds."""

    def __init__(self, answers: Callable[[ModelRequest], Any], name: str = "test:m", after: float = 0.05) -> None:
        self.name = name
        self.target = name.partition(":")[0]
        self.after = after
        self.asked: list[int | None] = []
        self._answers = answers

    async def request(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        self.asked.append(request.seed)
        await asyncio.sleep(self.after)
        answer = self._answers(request)
        if isinstance(answer, BaseException):
            raise answer
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "details": {"cached": 2}}
        if on_text is not None:
            on_text(str(answer))
        return ModelReply(
            text=str(answer),
            model=self.name,
            usage=usage,
            cost_usd=0.01,
            request_id=f"req-{request.seed}",
            finish_reason="stop",
            ignored=("seed",),
        )

    async def prepare(self) -> None:
        """Always ready."""

    def worst_case(self, request: ModelRequest) -> Amount:
        return Amount(20, 0.02)

    async def aclose(self) -> None:
        """Nothing was opened."""


def replicate_of(request: ModelRequest) -> int:
    """Seeds follow each other; which one of a bundle this is, from 0."""
    return (request.seed or 0) % 5


def yes(request: ModelRequest) -> str:
    """Each replicate says it differently, so that no bundle is decided before it is whole."""
    return f"yes {replicate_of(request)}"


@dataclass(frozen=True)
class Case:
    """A request, and who is there to answer it; the tools are made anew for each run."""

    name: str
    tools: Callable[[], Sequence[Tool]]
    tool_name: str | None = None
    tool_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    planner: Callable[[], Planner] | None = None
    request: Any = "Why?"

    def parts(self) -> tuple[Any, Any, Any]:
        """Planner, configuration and registry."""
        planner = None if self.planner is None else self.planner()
        return planner, ReliabilityConfig(**{"retry_policy": STEADY, **self.config}), registry(*self.tools())

    def plain(self) -> ReliableOrchestrator:
        planner, config, tools = self.parts()
        return ReliableOrchestrator(planner, config, registry=tools)

    def durable(self, runner: Any, **given: Any) -> DurableOrchestrator:
        planner, config, tools = self.parts()
        return DurableOrchestrator(runner, planner, config, **{"registry": tools, **given})

    async def run(self, orchestrator: ReliableOrchestrator, **more: Any) -> tuple[Any, list[Any]]:
        """What comes of it, and the events, both without the times."""
        events = RecordedEvents()
        options = {**self.options, **more}
        try:
            output = await orchestrator.run(self.request, self.tool_name, self.tool_options, options, events)
        except Exception as error:
            return timeless_error(error), told(events)
        return timeless(output), told(events)


def pair() -> Planner:
    return Fixed("a", "b")


def bundle_tool(answers: Callable[[ModelRequest], Any] = yes, **given: Any) -> LLMBundleTool:
    return LLMBundleTool("facts", SeededModel(answers), k=5, **given)


def _third_fails(request: ModelRequest) -> Any:
    return RateLimited("slow down", "test", 429, 0.5) if replicate_of(request) == 2 else yes(request)


def _first_is_down(request: ModelRequest) -> Any:
    return RateLimited("busy", "one", 429)


class Lost(RuntimeError):
    """An exception that this library does not know."""


def _answers_when_told(request: ModelRequest) -> Any:
    return '{"n": 1}' if len(request.messages) > 1 else "?"


def _all_differ(request: ModelRequest) -> Any:
    return f"no. {replicate_of(request)}"


def _in_doubt() -> Planner:
    return Fixed("facts", "b")


def _scripted(*steps: Any, name: str = "a") -> Callable[[], Sequence[Tool]]:
    return lambda: [ScriptedTool(name, *steps)]


def _two(first: Any, second: Any) -> Callable[[], Sequence[Tool]]:
    return lambda: [ScriptedTool("a", first), ScriptedTool("b", second)]


_ONE_BY_ONE = {"max_parallel": 1}
_EVERYTHING = {
    "metadata": {"user": "u"},
    "request_id": "r",
    "trace_id": "t",
    "deterministic": True,
    "budget": {"cost_usd": 1.0},
    "budgets": (Budget("team", usd=5),),
}

STEADY_CASES = [
    Case("answer", _scripted(OK("yes", usage={"total_tokens": 7}, cost_usd=0.5)), "a"),
    Case("answer that is planned", _scripted(OK({"deep": [1, None, "ü"]}, metadata={"note": 1}))),
    Case("final failure", _scripted(err(400)), "a"),
    Case("own exception", _scripted(err(Lost("gone"))), "a"),
    Case("fallback", _two(err(400), OK("from b")), planner=pair),
    Case("all fail", _two(err(400), err(Lost("b"))), planner=pair),
    Case("no such tool", list, "ghost"),
    Case("nothing planned", _scripted(OK()), planner=lambda: Fixed("ghost")),
    Case("bundle", lambda: [bundle_tool()], "facts"),
    Case("bundle, one by one", lambda: [bundle_tool()], "facts", _ONE_BY_ONE),
    Case("bundle with a failure", lambda: [bundle_tool(_third_fails)], "facts", {"max_parallel": 2}),
    Case("bundle within a budget", lambda: [bundle_tool()], "facts", _ONE_BY_ONE, {"budget": {"tokens": 55}}),
    Case("budget exceeded", _scripted(OK("x", usage={"total_tokens": 90})), "a", {}, {"budget": {"tokens": 50}}),
    Case(
        "second model",
        lambda: [LLMTool("t", [SeededModel(_first_is_down, "one:m"), SeededModel(yes, "two:m")])],
        "t",
        {},
        {"retry_on_failure": False},
    ),
    Case("repair", lambda: [LLMTool("t", SeededModel(_answers_when_told), output_type={"type": "object"})], "t"),
    Case("text that streams", lambda: [LLMTool("t", SeededModel(yes))], "t", {}, {"streaming": True}),
    Case(
        "below min_confidence",
        lambda: [bundle_tool(_all_differ), ScriptedTool("b", OK("from b"))],
        options={"quality_requirements": {"min_confidence": 0.9}},
        planner=_in_doubt,
    ),
    Case("with all that is noted", _scripted(OK()), "a", {"x": [1]}, _EVERYTHING),
]
"""Those whose outcome does not depend on when and how often anything was tried."""

CASES = [
    *STEADY_CASES,
    Case("retry", _scripted(err(503), err(429), OK("yes")), "a"),
    Case("late", _scripted(OK("x", after=5.0)), "a", {}, {"timeout_ms": 150}),
    Case(
        "attempts that time out",
        _scripted(OK("x", after=5.0)),
        "a",
        {},
        {"per_agent_timeout_ms": 100, "max_retries": 1},
    ),
    Case(
        "bundle cut at its deadline",
        lambda: [LLMBundleTool("facts", SeededModel(yes, after=0.25), k=5)],
        "facts",
        {"max_parallel": 2},
        {"timeout_ms": 700},
    ),
]


def calls_of(tools: Iterable[Tool]) -> int:
    """How often the world outside was asked."""
    asked = 0
    for tool in tools:
        if isinstance(tool, ScriptedTool):
            asked += len(tool.calls)
        elif isinstance(tool, (LLMTool, LLMBundleTool)):
            asked += sum(len(route.adapter.asked) for route in tool._own_routes)  # type: ignore[attr-defined]
    return asked


def timeless(output: OrchestrationOutput) -> dict[str, Any]:
    shown = _timeless(output.model_dump(mode="json"))
    assert isinstance(shown, dict)
    return {**shown, "replayed": output.replayed}


def timeless_error(error: BaseException) -> dict[str, Any]:
    """What a caller may know of it."""
    own = {name: value for name, value in vars(error).items() if not name.startswith("__") and name != "output"}
    if isinstance(error, BudgetExceeded) and error.budget_type == "time":
        own.pop("actual")
    output = getattr(error, "output", None)
    return {
        "type": type(error).__name__,
        "text": "" if "ms >" in str(error) else str(error),
        **{name: value for name, value in own.items() if name != "original_error"},
        "output": None if output is None else timeless(output),
    }


def unordered(outcome: Any) -> Any:
    """Without what depends on the order in which the answers came: a call that is made again is made later."""
    shown = outcome.get("output") or outcome
    for entry in shown.get("per_agent", {}).values():
        entry["timeline"].sort(key=repr)
    shown.get("metadata", {}).pop("stopping", None)
    return outcome


_OF_TIME = {
    "elapsed_ms",
    "started_ms",
    "total_elapsed_ms",
    "queued_ms",
    "retry_after",
    "delay_ms",
    "estimated_duration_ms",
}
_OF_CHANCE = {"request_id", "trace_id"}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        gone = _OF_TIME | _OF_CHANCE
        return {key: _timeless(item) for key, item in value.items() if key not in gone}
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    # A deadline says when it was met, to the tenth of a millisecond.
    return "late" if isinstance(value, str) and " ms > " in value else value


def told(events: RecordedEvents) -> list[Any]:
    return [
        (kind, _timeless(getattr(event, "delta", None))) for kind, event in zip(events.types, events.all, strict=True)
    ]
