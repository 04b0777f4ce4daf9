"""What the demo runs: two simulated providers, a naive loop, and the same job through this library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from steer_llm_sdk.cli._live import in_words
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliability import CircuitBreakerConfig, ReliabilityConfig, RetryPolicy
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool
from steer_llm_sdk.providers.models import Model, ModelSpec, Price
from steer_llm_sdk.providers.simulated import Question, SimulatedServer
from steer_llm_sdk.providers.simulated.server import Call
from steer_llm_sdk.streaming.manager import EventManager

TOOL = "crux"
FIRST = "gpt-4o-2024-05-13"
SECOND = "claude-3-5-sonnet-20240620"
PRICES = {FIRST: Price(input=5.0, output=15.0), SECOND: Price(input=3.0, output=15.0)}
"""List prices in USD per million tokens; a test compares them with the price table."""

PACE = "slow:seconds=0.2"
"""Recorded answers come at once, those of a real model do not."""
GOOD_CALLS = 8
DYING = (f"503:after={GOOD_CALLS},first=2", f"silence:after={GOOD_CALLS + 2}", PACE)
"""How the first provider fails: after some answers two 503, and from then on requests are never answered."""

OPEN_FOR = 2.5
"""Seconds for which an open circuit keeps calls away before it lets probes through."""

QUESTIONS = ("crux-test-#24", "crux-test-#448", "crux-test-#264", "crux-test-#408", "crux-test-#272", "crux-test-#584")
"""Both models answered these in readable JSON. They differ on the second, and are wrong together on the fifth."""
CONTESTED = "crux-test-#768"
"""A question on which the recorded models disagree."""


def bare(answer: str) -> str:
    """A Python string written with or without its quotes is the same answer."""
    return answer.strip().strip("'\"")


class Solved(BaseModel):
    """The form that the recorded questions ask for. Of some models only the answer was recorded."""

    reasoning: str = ""
    answer: Annotated[str, AfterValidator(bare)]


Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """The simulated providers. `naive` is the naive loop's own; it fails in the same way as `first`."""

    first: SimulatedServer
    second: SimulatedServer
    naive: SimulatedServer

    @property
    def models(self) -> list[ModelSpec]:
        """First by OpenAI's wire format, second by Anthropic's."""
        return [
            Model(f"openai:{FIRST}", base_url=f"{self.first.base_url}/v1", price=PRICES[FIRST]),
            Model(f"anthropic:{SECOND}", base_url=self.second.base_url, price=PRICES[SECOND]),
        ]


@asynccontextmanager
async def providers(on_naive_call: Callable[[Call], None]) -> AsyncIterator[Providers]:
    async with (
        SimulatedServer(faults=DYING) as first,
        SimulatedServer(faults=PACE) as second,
        SimulatedServer(faults=DYING, on_call=on_naive_call) as naive,
    ):
        yield Providers(first=first, second=second, naive=naive)


@dataclass(slots=True)
class NaiveLoop:
    """One call after the other, with the official client and its default settings."""

    tell: Tell
    answers: list[str] = field(default_factory=list)
    patience: float = 0.0

    def on_call(self, call: Call) -> None:
        """What its provider knows of a request and it does not: that it is never going to be answered."""
        if call.fault == "silence":
            self.tell(f"asked for answer {len(self.answers) + 1}: silence …")

    async def run(self, url: str, questions: Sequence[Question], k: int) -> None:
        from openai import AsyncOpenAI, OpenAIError

        async with AsyncOpenAI(base_url=url, api_key="any") as client:
            self.patience = getattr(client.timeout, "read", None) or 0.0
            for number, question in enumerate(questions, start=1):
                for _ in range(k):
                    try:
                        reply = await client.chat.completions.create(
                            model=FIRST, messages=[{"role": "user", "content": question.text}]
                        )
                    except OpenAIError as error:
                        self.tell(f"gives up: {type(error).__name__}")
                        return
                    self.answers.append(reply.choices[0].message.content or "")
                self.tell(f"question {number}: {k}")


def reliable(models: list[ModelSpec], k: int) -> ReliableOrchestrator:
    """The same job through this library: k answers each, the models in order, a circuit breaker for each provider."""
    registry = ToolRegistry()
    registry.register_tool(solver(models, k))
    breaker = CircuitBreakerConfig(failure_threshold=3, success_threshold=2, timeout=OPEN_FOR)
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(initial_delay=0.2, max_attempts=3),
        circuit_breaker_configs={"openai": breaker, "anthropic": breaker},
    )
    return ReliableOrchestrator(reliability_config=config, registry=registry)


def solver(models: list[ModelSpec], k: int) -> LLMBundleTool:
    return LLMBundleTool(TOOL, models, output_type=Solved, k=k, fields=["answer"], options={"latency": "min"})


async def solve(
    orchestrator: ReliableOrchestrator, question: Question, options: OrchestrationConfig, tell: Tell
) -> OrchestrationOutput:
    """Ask one question; `tell` gets a line for each retry and each change of a circuit."""
    return await orchestrator.run(
        question.text, TOOL, options=options, event_manager=EventManager(on_delta=_teller(tell))
    )


def _teller(tell: Tell) -> Callable[[StreamDeltaEvent], None]:
    def on_delta(event: StreamDeltaEvent) -> None:
        if isinstance(event.delta, str):
            return
        data = event.delta["data"]
        if event.delta["event_type"] == "retry_attempt":
            tell(f"{in_words(data['error'])}, again in {data['delay_ms'] / 1000:.1f} s")
        elif event.delta["event_type"] == "circuit_breaker":
            tell(f"circuit of {data['provider'].partition('@')[0]} is {data['state']}")

    return on_delta


def consensus_of(output: OrchestrationOutput) -> str | None:
    """The answer that most replicates gave; None if no two agree, or none is valid."""
    evidence = output.evidence
    consensus = None if evidence is None else evidence.summary.consensus
    return consensus["answer"] if isinstance(consensus, dict) else None


def is_right(output: OrchestrationOutput, question: Question) -> bool:
    return consensus_of(output) == bare(question.gold)
