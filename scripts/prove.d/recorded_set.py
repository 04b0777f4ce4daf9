"""The whole recording, once, over the real wire with faults on: every model's answer to every question.

Each question becomes one bundle with a replicate for each recorded model. Beside it stands an account of its own: what
each recorded reply holds, read by ten lines that share nothing with the library. Then defects are planted in the
library and in the server, one at a time, on a part of the questions; the same comparison must notice each.

    sh scripts/prove recorded-set [--questions N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from pydantic import BaseModel

from steer_llm_sdk.models.usage import tokens_of
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
)
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.providers._llm.exchange import Exchange
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.simulated import SimulatedServer
from steer_llm_sdk.providers.simulated.recording import Question, Recording, shipped_recording
from steer_llm_sdk.reliability import RetryPolicy

FAULTS = (
    "503:rate=0.03",
    "429:rate=0.03,retry-after-ms=50",
    "529:rate=0.01",
    "no-end:rate=0.02",
    "malformed:rate=0.02",
    "reset:rate=0.01",
    "html:rate=0.01",
    "empty:rate=0.01",
    "silence:rate=0.002",
)
PATIENCE_MS = 5_000
"""For one attempt; a silent server is given up after it."""


class Solved(BaseModel):
    """The form asked for. `reasoning` was kept of some models only."""

    reasoning: Any = None
    answer: str


@dataclass(slots=True)
class Tally:
    """What came back, and how often it was not what the recording holds."""

    bundles: Counter[str] = field(default_factory=Counter)
    replicates: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    by_model: dict[str, Counter[str]] = field(default_factory=dict)
    right: int = 0
    confidences: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    answered: int = 0
    tokens: int = 0


def readable(text: str) -> str | None:
    """The answer in a recorded reply by an account of its own: the first JSON object in it that has one.

    A line break inside a string is read as one: Claude 3 writes them so.
    """
    for start in (match.start() for match in re.finditer("{", text)):
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("answer"), str):
            return value["answer"]
    return None


def compare(question: Question, recording: Recording, output: OrchestrationOutput, tally: Tally) -> None:
    """Each replicate against the recorded reply of the model that is said to have given it."""
    tally.bundles[output.status] += 1
    bundle = output.evidence
    if bundle is None:
        tally.wrong["a bundle is missing"] += 1
        return
    seen = Counter(replicate.model for replicate in bundle.replicates if replicate.quality.valid)
    if any(count > 1 for count in seen.values()):
        tally.wrong["one model counted twice"] += 1
    expected = {model: readable(question.answers[model].text) for model in question.answers}
    for replicate in bundle.replicates:
        if replicate.quality.valid:
            _compare_valid(replicate, expected, tally)
        else:
            tally.replicates[_why(replicate.quality.errors)] += 1
    for model, answer in expected.items():
        outcome = "valid" if seen[model] else "not valid"
        tally.by_model.setdefault(model, Counter())[outcome] += 1
        if answer is not None and not seen[model]:
            tally.wrong["an answer that can be read was not counted"] += 1
    _add_up(question, output, tally)


def _compare_valid(replicate: Any, expected: dict[str, str | None], tally: Tally) -> None:
    tally.replicates["valid" + (", after repair" if _repaired(replicate) else "")] += 1
    recorded = expected.get(replicate.model)
    if recorded is None:
        tally.wrong["valid, but the recorded reply holds no answer"] += 1
    elif replicate.data["answer"] != recorded:
        tally.wrong["not the recorded answer"] += 1


def _repaired(replicate: Any) -> bool:
    return any("form" in warning for warning in replicate.quality.warnings)


def _why(errors: Sequence[str]) -> str:
    return (
        "invalid: not the form asked for" if any("answer" in error or "JSON" in error for error in errors) else "failed"
    )


def _add_up(question: Question, output: OrchestrationOutput, tally: Tally) -> None:
    bundle = output.evidence
    assert bundle is not None
    consensus = bundle.summary.consensus
    said = consensus.get("answer") if isinstance(consensus, dict) else None
    tally.right += said is not None and said.strip("'\"") == question.gold.strip("'\"")
    if bundle.summary.confidence is not None:
        tally.confidences.append(bundle.summary.confidence)
    tally.attempts += len(output.attempts)
    tally.errors.update(
        line["error"]["type"] + ": " + line["error"]["message"][:90] for line in output.attempts if "error" in line
    )
    tally.answered += sum(line["outcome"] == "succeeded" for line in output.attempts)
    tally.tokens += tokens_of(output.usage)


async def run(questions: Sequence[Question], recording: Recording, seed: int = 1) -> tuple[Tally, dict[str, int]]:
    """All models' answers to `questions`, and what the server says it was asked."""
    tally = Tally()
    count = len(recording.models)
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=6, initial_delay=0.02, max_delay=1.0),
        max_total_attempts=6 * count,
    )
    async with SimulatedServer(faults=FAULTS, seed=seed) as server:
        model = Model("openai:demo", base_url=f"{server.base_url}/v1")
        registry = ToolRegistry()
        registry.register_tool(
            LLMBundleTool("crux", model, output_type=Solved, k=count, max_k=count, fields=["answer"])
        )
        async with ReliableOrchestrator(reliability_config=config, registry=registry) as orchestrator:
            for question in questions:
                output = await orchestrator.run(
                    {"query": question.text},
                    "crux",
                    {"latency": "min"},  # Every answer is asked for, though fewer would decide.
                    # Twenty at once meet faults in a row by chance alone; this is about answers, not about breakers.
                    options=OrchestrationConfig(
                        max_parallel=20, per_agent_timeout_ms=PATIENCE_MS, max_retries=5, enable_circuit_breaker=False
                    ),
                )
                compare(question, recording, output, tally)
        asked = {f"{call.fault or 'no fault'} ({call.status or 'no answer'})": 0 for call in server.calls()}
        for call in server.calls():
            asked[f"{call.fault or 'no fault'} ({call.status or 'no answer'})"] += call.count
        if server.requests != tally.attempts:
            tally.wrong["attempts reported and requests served differ"] += abs(server.requests - tally.attempts)
        whole = sum(call.count for call in server.calls() if call.fault is None)
        if whole != tally.answered:
            tally.wrong["attempts that succeeded and answers left whole differ"] += abs(whole - tally.answered)
    return tally, asked


# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def truncated_streams_pass() -> Iterator[None]:
    """A stream that stops without its end marker is taken for a whole answer."""
    with patch.object(Exchange, "ended", property(lambda self: True)):
        yield


@contextmanager
def retries_are_lost() -> Iterator[None]:
    """No error is worth another attempt."""
    with patch.object(RetryPolicy, "allows", lambda self, error: False):
        yield


@contextmanager
def attempts_are_forgotten() -> Iterator[None]:
    """The output's timeline leaves out what failed."""
    whole = OrchestrationOutput.attempts.fget  # type: ignore[attr-defined]
    kept = property(lambda self: [line for line in whole(self) if line["outcome"] == "succeeded"])
    with patch.object(OrchestrationOutput, "attempts", kept):
        yield


@contextmanager
def invalid_counts_as_valid() -> Iterator[None]:
    """An answer that is not of the form asked for becomes an empty one."""
    from steer_llm_sdk.orchestration.tools import _model_call as tool
    from steer_llm_sdk.orchestration.tools.structured import InvalidAnswer

    strict = tool.read_answer

    def lax(text: str, output: Any) -> Any:
        try:
            return strict(text, output)
        except InvalidAnswer:
            return strict('{"answer": ""}', output)

    with patch.object(tool, "read_answer", lax):
        yield


@contextmanager
def server_ignores_seeds() -> Iterator[None]:
    """The pool answers every request with the same model."""
    with patch.object(Recording, "in_turn", lambda self, question: (self.models[0],)):
        yield


@contextmanager
def answers_are_cut() -> Iterator[None]:
    """What the models said loses its last letter on the way into the bundle."""
    from steer_llm_sdk.orchestration.tools import _model_call as tool

    whole = tool.read_answer

    def cut(text: str, output: Any) -> Any:
        return whole(text.replace('"\n}', ' "\n}').replace('"}', ' "}'), output)

    with patch.object(tool, "read_answer", cut):
        yield


DEFECTS: Sequence[Callable[[], Any]] = (
    truncated_streams_pass,
    retries_are_lost,
    attempts_are_forgotten,
    invalid_counts_as_valid,
    server_ignores_seeds,
    answers_are_cut,
)


def show(tally: Tally, asked: dict[str, int], questions: int, seconds: float) -> None:
    models = len(shipped_recording().models)
    print(f"{questions} questions × {models} models in {seconds:.0f} s, faults: {' '.join(FAULTS)}\n")
    for title, rows in (
        ("bundles", tally.bundles),
        ("replicates", tally.replicates),
        ("requests at the server, by fault and status", Counter(asked)),
    ):
        print(f"{title} ({sum(rows.values())})")
        for name, count in rows.most_common():
            print(f"  {name:<46}{count:>6}")
    print(
        f"\nconsensus right on {tally.right} of {questions} questions; "
        f"mean confidence {statistics.mean(tally.confidences or [0]):.2f} (stability, not truth)"
    )
    print(f"attempts {tally.attempts}, tokens {tally.tokens} (estimated: the recording has no counts)\n")
    print(f"{'model':<42}{'valid':>6}{'not':>6}")
    for model, outcomes in sorted(tally.by_model.items(), key=lambda row: -row[1]["not valid"])[:12]:
        print(f"{model:<42}{outcomes['valid']:>6}{outcomes['not valid']:>6}")
    print("(the twelve with most answers that are not valid; of the others, see the sum above)\n")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--questions", type=int, default=100)
    options.add_argument("--planted-on", type=int, default=6, help="questions for each planted defect")
    given = options.parse_args()
    recording = shipped_recording()
    questions = recording.questions[: given.questions]
    started = time.monotonic()
    tally, asked = asyncio.run(run(questions, recording))
    show(tally, asked, len(questions), time.monotonic() - started)
    print("not as recorded:", dict(tally.wrong) or "nothing")
    caught = 0
    for defect in DEFECTS:
        with defect():
            found, _ = asyncio.run(run(questions[: given.planted_on], recording))
        caught += bool(found.wrong)
        print(f"planted {defect.__name__}: {dict(found.wrong) or 'NOT NOTICED'}")
    print(f"caught/planted: {caught}/{len(DEFECTS)}")
    return 0 if not tally.wrong and caught == len(DEFECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
