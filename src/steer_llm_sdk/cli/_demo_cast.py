"""Who plays in the demo: two simulated providers, a naive loop, and the same job through this library."""

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
from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, ModelSpec
from steer_llm_sdk.providers.models import Model, Price
from steer_llm_sdk.providers.simulated import Question, SimulatedServer
from steer_llm_sdk.streaming.manager import EventManager

TOOL = "crux"
FIRST = "gpt-4o-2024-05-13"
SECOND = "claude-3-5-sonnet-20240620"
PRICES = {FIRST: Price(input=5.0, output=15.0), SECOND: Price(input=3.0, output=15.0)}
"""List prices in USD per million tokens; a test compares them with the price table."""

PACE = "slow:seconds=0.2"
"""Recorded answers come at once; real ones do not."""
GOOD_CALLS = 8
DYING = (f"503:after={GOOD_CALLS},first=2", f"silence:after={GOOD_CALLS + 2}", PACE)
"""How the first provider ends: some answers, two 503, and then it takes requests and says nothing."""

OPEN_FOR = 2.5
"""Seconds for which an open circuit keeps calls away before it lets probes through."""


QUESTIONS = ("crux-test-#24", "crux-test-#448", "crux-test-#264", "crux-test-#408", "crux-test-#272", "crux-test-#584")
"""Both models answered these in readable JSON. They differ on the second, and are wrong together on the fifth."""
CONTESTED = "crux-test-#768"
"""One on which the recorded models disagree."""


def bare(answer: str) -> str:
    """A Python string written with or without its quotes is the same answer."""
    return answer.strip().strip("'\"")


class Solved(BaseModel):
    """What the recorded questions ask for; of some models only the answer was kept."""

    reasoning: str = ""
    answer: Annotated[str, AfterValidator(bare)]


Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The servers. The naive loop has a first provider of its own, that dies in the same way."""

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
async def stage() -> AsyncIterator[Stage]:
    async with (
        SimulatedServer(faults=DYING) as first,
        SimulatedServer(faults=PACE) as second,
        SimulatedServer(faults=DYING) as naive,
    ):
        yield Stage(first=first, second=second, naive=naive)


@dataclass(slots=True)
class NaiveLoop:
    """How it is often written: one call after the other, with the official client as it comes."""

    url: str
    answers: list[str] = field(default_factory=list)
    patience: float = 0.0

    async def run(self, questions: Sequence[Question], k: int, tell: Tell) -> None:
        from openai import AsyncOpenAI, OpenAIError

        async with AsyncOpenAI(base_url=self.url, api_key="any") as client:
            self.patience = getattr(client.timeout, "read", None) or 0.0
            for number, question in enumerate(questions, start=1):
                for _ in range(k):
                    try:
                        reply = await client.chat.completions.create(
                            model=FIRST, messages=[{"role": "user", "content": question.text}]
                        )
                    except OpenAIError as error:
                        tell(f"gives up: {type(error).__name__}")
                        return
                    self.answers.append(reply.choices[0].message.content or "")
                tell(f"question {number}: {k}")


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
    return LLMBundleTool(TOOL, models, output_type=Solved, k=k, fields=["answer"])


async def solve(
    orchestrator: ReliableOrchestrator, question: Question, options: OrchestrationConfig, tell: Tell
) -> OrchestrationOutput:
    """One question. What the policies do on the way is told as it happens."""
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
    """The answer on which most agree; None where no two do, or nobody answered."""
    evidence = output.evidence
    consensus = None if evidence is None else evidence.summary.consensus
    return consensus["answer"] if isinstance(consensus, dict) else None


def is_right(output: OrchestrationOutput, question: Question) -> bool:
    return consensus_of(output) == bare(question.gold)
