"""`steer-llm demo`: questions asked several times while a provider dies, by a naive loop and through this library."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from steer_llm_sdk.cli._clients import load_clients
from steer_llm_sdk.cli._demo_setup import (
    CONTESTED,
    FIRST,
    GOOD_CALLS,
    OPEN_FOR,
    PACE,
    QUESTIONS,
    SECOND,
    TOOL,
    NaiveLoop,
    Providers,
    consensus_of,
    is_right,
    providers,
    reliable,
    solve,
)
from steer_llm_sdk.cli._show import agreement_line, attempts_table, console, show_evidence, summary_line, table_of
from steer_llm_sdk.cli._who import who_answers
from steer_llm_sdk.cli.exits import complain, errors_as_exits
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.providers.simulated import Question, SimulatedServer, shipped_recording

K = 5
OWN_QUESTIONS = 3
OWN_K = 3
OWN_TOKENS = 20_000
NAIVE_COLUMN = 22

INTRO = """\
Two providers on this machine play back what real models answered: gpt-4o over
OpenAI's wire format, claude-3.5-sonnet over Anthropic's. Questions and answers
are those of ZeroEval's CRUX set. No key, no network, nothing is spent.

Six questions, five answers each. After {good} answers the first provider dies: two
503, then silence. Later it comes back. On the left the loop one writes first:

    client = AsyncOpenAI()
    for question in questions:
        for _ in range(5):
            answers.append(await client.chat.completions.create(...))

On the right an LLMBundleTool with both models behind a ReliableOrchestrator.
"""


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Your own: openai:NAME, anthropic:NAME, ollama:NAME. Again: tried in order."
        ),
    ] = None,
) -> None:
    """Watch questions being answered while a provider dies: recorded answers, no key, nothing spent.

    With --model the same questions go to your model: 3 questions, 3 answers each, at most 20,000 tokens a question.
    """
    with errors_as_exits():
        asyncio.run(_with_own(model) if model else _with_recorded())


# ── recorded answers, and a provider that dies ───────────────────────────────────────────────────────────────────────


async def _with_recorded() -> None:
    out = console()
    out.rule(Text("steer-llm demo", style="bold"), characters="─")
    load_clients([f"recorded:{FIRST}", f"recorded:{SECOND}"], console(stderr=True))
    out.print(INTRO.format(good=GOOD_CALLS))
    questions = _questions(QUESTIONS)
    log = Log(out)
    naive = NaiveLoop(log.naive)
    async with providers(naive.on_call) as servers:
        outputs = await _race(servers, naive, questions, log)
        _show_results(out, questions, outputs)
        _show_account(out, servers, naive, outputs, log.elapsed)
    await _show_disagreement(out)
    out.print(Text(_your_turn(), style="bold"), soft_wrap=True)


async def _race(
    servers: Providers, naive: NaiveLoop, questions: Sequence[Question], log: Log
) -> list[OrchestrationOutput]:
    """Run both at once. The naive loop, which would wait for its client's timeout, is stopped when ours is done."""
    looping = asyncio.create_task(naive.run(f"{servers.naive.base_url}/v1", questions, K))
    try:
        outputs = await _answer_all(servers, questions, log)
        if not looping.done():
            log.naive(f"still waits for answer {len(naive.answers) + 1}")
        return outputs
    finally:
        looping.cancel()
        await asyncio.gather(looping, return_exceptions=True)


async def _answer_all(servers: Providers, questions: Sequence[Question], log: Log) -> list[OrchestrationOutput]:
    options = OrchestrationConfig(timeout_ms=20_000, per_agent_timeout_ms=1200)
    outputs = []
    async with reliable(servers.models, K) as orchestrator:
        for number, question in enumerate(questions, start=1):
            if number == len(questions):
                await servers.first.set_faults(PACE)
                log.ours("(the first provider is back;")
                log.ours(f"the circuit lets a probe through in {OPEN_FOR:g} s)")
                await asyncio.sleep(OPEN_FOR)
            output = await solve(orchestrator, question, options, log.ours)
            log.ours(f"question {number}: {_answered(output)}", good=output.status == "succeeded")
            outputs.append(output)
    return outputs


class Log:
    """Prints what the naive loop and ours do, in two columns with the time."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._began = time.monotonic()
        self._row("time", "the naive loop", "through steer_llm_sdk", "bold")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def naive(self, said: str) -> None:
        self._row(f"{self.elapsed:.1f} s", said, "", "yellow")

    def ours(self, said: str, good: bool = False) -> None:
        style = "green" if good else "bold" if said.startswith("circuit") else ""
        self._row(f"{self.elapsed:.1f} s", "", said, style)

    def _row(self, at: str, left: str, right: str, style: str) -> None:
        self._out.print(Text(f"{at:>6}  {left:{NAIVE_COLUMN}}{right}".rstrip(), style=style), soft_wrap=True)


def _answered(output: OrchestrationOutput) -> str:
    """How many of the answers each model gave."""
    evidence = output.evidence
    if evidence is None:
        return "no answer"
    models = Counter(_short(r.model) for r in evidence.replicates if r.quality.valid and r.model)
    return ", ".join(f"{count} by {name}" for name, count in models.items())


def _short(model: str) -> str:
    """Without the date behind the name."""
    return model.rstrip("0123456789-") or model


def _show_results(out: Console, questions: Sequence[Question], outputs: Sequence[OrchestrationOutput]) -> None:
    table = table_of("question", "consensus", "confidence", "right?")
    for question, output in zip(questions, outputs, strict=True):
        confidence = None if output.evidence is None else output.evidence.summary.confidence
        right = is_right(output, question)
        table.add_row(
            Text(question.id),
            Text(str(consensus_of(output))),
            "" if confidence is None else f"{confidence:.2f}",
            Text("yes" if right else "no", style="green" if right else "red"),
        )
    out.print()
    out.print(table)
    out.print("Confidence is stability: how likely the consensus is what would be said most")
    out.print("often, were more answers asked for. It is not how true it is.\n")
    out.print("Every call of the second question, during which the provider died:")
    out.print(attempts_table(outputs[1].attempts))


def _show_account(
    out: Console, servers: Providers, naive: NaiveLoop, outputs: Sequence[OrchestrationOutput], elapsed: float
) -> None:
    wanted = K * len(outputs)
    bundles = [output.evidence for output in outputs]
    valid = sum(bundle.meta.k_completed or 0 for bundle in bundles if bundle is not None)
    costs = [output.cost_usd for output in outputs]
    price = "unknown" if None in costs else f"${sum(cost or 0.0 for cost in costs):.4f}"
    table = table_of("", "naive loop", "steer_llm_sdk")
    table.add_row("answers", f"{len(naive.answers)} of {wanted}", f"{valid} of {wanted}")
    table.add_row("gpt-4o", _calls(servers.naive), _calls(servers.first))
    table.add_row("claude-3.5-sonnet", "", _calls(servers.second))
    table.add_row("time", f"hung; would wait {naive.patience:.0f} s", f"{elapsed:.1f} s")
    table.add_row("at list price", "", price)
    out.print()
    out.print(table)
    out.print("Tokens are estimated from the recorded text; nothing was spent.\n")


def _calls(server: SimulatedServer) -> str:
    unanswered = server.requests - sum(row.count for row in server.calls() if row.status == 200)
    return f"{server.requests} calls ({unanswered} unanswered)" if unanswered else f"{server.requests} calls"


# ── one question on which models disagree ────────────────────────────────────────────────────────────────────────────


async def _show_disagreement(out: Console) -> None:
    (question,) = _questions([CONTESTED])
    out.rule(Text("Where real models disagree", style="bold"), characters="─")
    out.print(Text(question.text.partition("[PYTHON]")[2].partition("[/PYTHON]")[0].strip()), soft_wrap=True)
    out.print("\nTen of the 51 recorded models, one answer each:\n")
    async with reliable(["recorded:demo"], 10) as orchestrator:
        output = await orchestrator.run(question.text, TOOL, {"seeds": list(range(10))})
    if output.evidence is not None:
        show_evidence(output.evidence, out)
    out.print(Text(f"The right answer is {question.gold}.\n"))


# ── the reader's own model ───────────────────────────────────────────────────────────────────────────────────────────


async def _with_own(models: list[str]) -> None:
    out = console()
    orchestrator = reliable([*models], OWN_K)
    complain(who_answers(models, "--model"))
    complain(f"{OWN_QUESTIONS} questions, {OWN_K} answers each, at most {OWN_TOKENS:,} tokens a question")
    load_clients(models, console(stderr=True))
    options = OrchestrationConfig(timeout_ms=120_000, budget={"tokens": OWN_TOKENS})
    async with orchestrator:
        for question in _questions(QUESTIONS[:OWN_QUESTIONS]):
            output = await solve(orchestrator, question, options, complain)
            right = "right" if is_right(output, question) else f"wrong, it is {question.gold}"
            said = "no answer" if output.evidence is None else agreement_line(output.evidence)
            out.print(Text(f"{question.id}: {consensus_of(output)} ({right})\n  {said}\n  {summary_line(output)}"))


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _questions(ids: Sequence[str]) -> list[Question]:
    found = [shipped_recording().find(name) for name in ids]
    return [question for question in found if question is not None]


def _your_turn() -> str:
    """How to run the demo with a model of one's own."""
    beside = Path(sys.executable).with_name("steer-llm")
    command = "steer-llm" if shutil.which("steer-llm") or not beside.exists() else os.path.relpath(beside)
    model = "anthropic:claude-haiku-4-5" if _only_anthropic() else "openai:gpt-5-mini"
    return f"With your own key, or a local model (ollama:NAME):\n\n    {command} demo --model {model}"


def _only_anthropic() -> bool:
    return bool(os.environ.get("ANTHROPIC_API_KEY")) and not os.environ.get("OPENAI_API_KEY")
