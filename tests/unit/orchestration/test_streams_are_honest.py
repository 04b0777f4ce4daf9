"""Whatever fails and is repeated: a reader has the beginning of one attempt, and at last the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_llm_sdk import LLMTool, OrchestrationOutput, ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.errors import BudgetExceeded, ConnectionFailed, ProviderError, TruncatedStream
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration.planning import PlanDecision
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.reliability.hedging import HedgingPolicy
from steer_llm_sdk.testing import run_in_virtual_time

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


@dataclass(frozen=True)
class Act:
    """One attempt: so many pieces, so many seconds apart, and how it ends. `deaf`: it does not stop when cancelled."""

    pieces: int
    pause: float
    ends: str
    deaf: bool = False


ENDS = {
    "well": lambda: None,
    "503": lambda: ProviderError("down", "p", status_code=503),
    "reset": lambda: ConnectionFailed("reset", "p"),
    "truncated": lambda: TruncatedStream("no end", "p"),
    "400": lambda: ProviderError("no", "p", status_code=400),
    "unknown": lambda: RuntimeError("?"),
}
ACTS = st.builds(
    Act,
    pieces=st.integers(0, 4),
    pause=st.sampled_from([0.0, 0.1, 0.6]),
    ends=st.sampled_from(list(ENDS)),
    deaf=st.booleans(),
)
SCRIPTS = st.lists(st.lists(ACTS, min_size=1, max_size=4), min_size=1, max_size=3)


class Script:
    """Plays its acts, the last one again and again. No piece is like another, so that a mixture would be seen."""

    def __init__(self, name: str, acts: Sequence[Act]) -> None:
        self.name, self.acts, self.played, self.texts = name, acts, 0, [""]

    async def play(self, show: Callable[[str], None]) -> str:
        number = self.played
        act = self.acts[min(number, len(self.acts) - 1)]
        self.played += 1
        text = ""
        self.texts.append("".join(self._piece(number, place) for place in range(act.pieces)))
        for place in range(act.pieces):
            await _pause(act)
            show(self._piece(number, place))
            text += self._piece(number, place)
        await _pause(act)
        error = ENDS[act.ends]()
        if error is not None:
            raise error
        return text

    def _piece(self, number: int, place: int) -> str:
        return f"{self.name}{number}.{place} "


async def _pause(act: Act) -> None:
    end = asyncio.get_running_loop().time() + act.pause
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            if not act.deaf:
                raise


class ScriptedModel:
    """A model that plays a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.name, self.target = f"test:{script.name}", script.name

    async def prepare(self) -> None:
        """Always ready."""

    async def request(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelReply:
        assert on_text is not None
        text = await self.script.play(on_text)
        return ModelReply(text=text, model=self.name, usage=USAGE, cost_usd=0.01, finish_reason="stop")

    def worst_case(self, request: ModelRequest) -> Amount:
        return Amount(100, 0.1)

    async def aclose(self) -> None:
        """Nothing is open."""


class Told(Tool):
    """A plain tool that tells its text as deltas of its own."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.provider = script.name

    @property
    def name(self) -> str:
        return self.script.name

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> str:
        return await self.script.play(lambda text: event_manager.tell(StreamDeltaEvent(text)))


class Planned:
    def __init__(self, *names: str) -> None:
        self.names = names

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        return PlanDecision(selected_tool=self.names[0], fallback_tools=list(self.names[1:]))


class Reader:
    """Goes by the rule, and sees after each event that it has the beginning of one attempt."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts, self.text = scripts, ""
        self.voided: list[str] = []

    def take(self, event: StreamEvent) -> None:
        if not isinstance(event, StreamDeltaEvent):
            return
        if isinstance(event.delta, str):
            self.text += event.delta
        elif event.delta["event_type"] == "restart":
            self.voided.append(self.text)
            self.text = ""
        texts = [text for script in self.scripts for text in script.texts]
        assert any(text.startswith(self.text) for text in texts), self.text


def runner(tools: Sequence[Tool], **config: Any) -> ReliableOrchestrator:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    planner: Any = Planned(*(tool.name for tool in tools))
    patience = RetryPolicy(initial_delay=0.1)
    return ReliableOrchestrator(
        planner=planner,
        registry=registry,
        reliability_config=ReliabilityConfig(retry_policy=patience, max_fallback_attempts=3, **config),
    )


async def streamed(
    scripts: Sequence[Script], orchestrator: ReliableOrchestrator, **options: Any
) -> tuple[OrchestrationOutput | None, Reader]:
    reader = Reader(scripts)
    stream = orchestrator.stream("q", options=options)
    with suppress(BudgetExceeded):
        async with stream as events:
            async for event in events:
                reader.take(event)
        return stream.output, reader
    return None, reader


def scripts_of(acts: Sequence[Sequence[Act]]) -> list[Script]:
    return [Script("abc"[place], each) for place, each in enumerate(acts)]


def holds(output: OrchestrationOutput | None, reader: Reader) -> None:
    if output is not None and output.status == "succeeded":
        # A model's text is an answer without the white space round it.
        assert reader.text.strip() == output.content.strip()


SILENCE = st.sampled_from([None, 0.05, 0.3])
LIMITS = st.sampled_from([{}, {"per_agent_timeout_ms": 500}, {"per_agent_timeout_ms": 1500}, {"timeout_ms": 2000}])


@settings(max_examples=60)
@given(SCRIPTS, LIMITS, SILENCE)
def test_of_a_model_tool_with_retries_and_other_models(
    acts: list[list[Act]], limits: dict[str, Any], silence: float | None
) -> None:
    scripts = scripts_of(acts)
    tool = LLMTool("t", [ScriptedModel(script) for script in scripts])
    holds(*run_in_virtual_time(streamed(scripts, runner([tool], silence_timeout=silence), **limits)))


@settings(max_examples=60)
@given(SCRIPTS, LIMITS, SILENCE)
def test_of_model_tools_that_are_each_other_s_fallback(
    acts: list[list[Act]], limits: dict[str, Any], silence: float | None
) -> None:
    scripts = scripts_of(acts)
    tools = [LLMTool(script.name, ScriptedModel(script)) for script in scripts]
    holds(*run_in_virtual_time(streamed(scripts, runner(tools, silence_timeout=silence), **limits)))


@settings(max_examples=60)
@given(SCRIPTS, LIMITS, SILENCE)
def test_of_plain_tools_that_tell_text_with_retries_and_fallbacks(
    acts: list[list[Act]], limits: dict[str, Any], silence: float | None
) -> None:
    scripts = scripts_of(acts)
    tools = [Told(script) for script in scripts]
    holds(*run_in_virtual_time(streamed(scripts, runner(tools, silence_timeout=silence), **limits)))


HEDGES = HedgingPolicy(quantile=0.6, min_samples=2, slow_factor=100.0, max_ratio=1.0)
QUICK = [Act(2, 0.3, "well"), Act(2, 0.1, "well"), Act(2, 0.1, "well")]


@settings(max_examples=60)
@given(st.lists(ACTS, min_size=1, max_size=8), st.booleans())
def test_of_hedged_calls_one_is_shown_at_a_time(acts: list[Act], by_model: bool) -> None:
    async def runs() -> None:
        script = Script("a", [*QUICK, *acts])
        tool = LLMTool("a", ScriptedModel(script)) if by_model else Told(script)
        orchestrator = runner([tool], hedging=HEDGES)
        for _ in range(6):
            holds(*await streamed([script], orchestrator))

    run_in_virtual_time(runs())


def test_a_hedge_that_wins_is_shown_after_a_restart() -> None:
    # The second attempt begins when the first is late; that one speaks first then, and ends last.
    async def runs() -> tuple[Any, Reader]:
        script = Script("a", [*QUICK, Act(3, 0.3, "well"), Act(1, 0.45, "well")])
        orchestrator = runner([Told(script)], hedging=HEDGES)
        for _ in range(3):
            await streamed([script], orchestrator)
        return await streamed([script], orchestrator)

    output, reader = run_in_virtual_time(runs())
    assert output.content == reader.text == "a4.0 "
    assert reader.voided == ["a3.0 a3.1 a3.2 "]
    assert [line["outcome"] for line in output.attempts] == ["cancelled", "succeeded"]


@settings(max_examples=40)
@given(SCRIPTS)
def test_of_a_tool_that_asks_a_model_tool_and_tells_text_of_its_own(acts: list[list[Act]]) -> None:
    scripts = scripts_of(acts)

    class Polite(Tool):
        composite = True
        name = "polite"  # type: ignore[assignment]

        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> str:
            event_manager.tell(StreamDeltaEvent("Hello, "))
            said = ""
            for script in scripts:
                with suppress(Exception):
                    answer = await LLMTool("in", ScriptedModel(script)).execute("q", {"streaming": True}, event_manager)
                    said = str(answer["content"])
                    break
            event_manager.tell(StreamDeltaEvent("!"))
            return f"Hello, {said}!"

    async def ran() -> tuple[str, Any]:
        registry = ToolRegistry()
        registry.register_tool(Polite())
        stream = ReliableOrchestrator(registry=registry).stream("q", "polite")
        text = ""
        async with stream as events:
            async for event in events:
                if isinstance(event, StreamDeltaEvent):
                    if isinstance(event.delta, str):
                        text += event.delta
                    elif event.delta["event_type"] == "restart":
                        text = ""
        return text, stream.output.content

    text, content = run_in_virtual_time(ran())
    assert text.replace(" ", "") == content.replace(" ", "")


# ── what it says on the way ──────────────────────────────────────────────────────────────────────────────────────────


def seen(tools: Sequence[Tool], **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        registry = ToolRegistry()
        for tool in tools:
            registry.register_tool(tool)
        orchestrator = ReliableOrchestrator(planner=Planned(*(tool.name for tool in tools)), registry=registry)  # type: ignore[arg-type]
        deltas: list[Any] = []
        async with orchestrator.stream("q", options=options) as events:
            async for event in events:
                if isinstance(event, StreamDeltaEvent):
                    text = isinstance(event.delta, str)
                    deltas.append(event.delta if text else (event.delta["event_type"], event.delta["data"]))
        return deltas

    return run_in_virtual_time(run())


def script(name: str, *acts: Act) -> Script:
    return Script(name, acts)


@pytest.mark.parametrize("failing", ["503", "truncated", "reset"])
def test_a_restart_stands_between_a_tool_that_failed_and_its_retry(failing: str) -> None:
    deltas = seen([Told(script("a", Act(2, 0.0, failing), Act(1, 0.0, "well")))])
    assert [delta if isinstance(delta, str) else delta[0] for delta in deltas] == [
        *("a0.0 ", "a0.1 ", "retry_attempt", "restart", "a1.0 ")
    ]
    assert deltas[3][1] == {"tool_name": "a", "chunks": 2}


def test_a_restart_stands_between_a_tool_and_its_fallback() -> None:
    broken = Act(1, 0.0, "400")
    deltas = seen([Told(script("a", broken)), LLMTool("b", ScriptedModel(script("b", Act(1, 0.0, "well"))))])
    assert [delta if isinstance(delta, str) else delta[0] for delta in deltas] == [
        "a0.0 ",
        "fallback",
        "restart",
        "b0.0 ",
    ]


def test_what_a_tool_said_before_it_failed_is_taken_back_also_for_a_silent_answer() -> None:
    deltas = seen([Told(script("a", Act(1, 0.0, "503"), Act(0, 0.0, "well")))])
    assert [delta if isinstance(delta, str) else delta[0] for delta in deltas] == ["a0.0 ", "retry_attempt", "restart"]


def test_what_is_said_first_after_the_end_of_an_attempt_is_not_heard() -> None:
    deltas = seen([Told(script("a", Act(2, 0.6, "well", deaf=True), Act(1, 0.1, "well")))], per_agent_timeout_ms=500)
    assert [delta for delta in deltas if isinstance(delta, str)] == ["a1.0 "]


def test_without_text_there_is_nothing_to_take_back() -> None:
    deltas = seen([Told(script("a", Act(0, 0.0, "503"), Act(1, 0.0, "well")))])
    assert [delta if isinstance(delta, str) else delta[0] for delta in deltas] == ["retry_attempt", "a1.0 "]


def test_an_attempt_that_was_left_behind_at_its_timeout_is_not_heard_any_more() -> None:
    deltas = seen(
        [Told(script("a", Act(4, 0.3, "well", deaf=True), Act(3, 0.1, "well")))],
        per_agent_timeout_ms=500,
    )
    texts = [delta for delta in deltas if isinstance(delta, str)]
    assert texts[-3:] == ["a1.0 ", "a1.1 ", "a1.2 "]
    assert [text for text in texts if text.startswith("a0")] == ["a0.0 "]
