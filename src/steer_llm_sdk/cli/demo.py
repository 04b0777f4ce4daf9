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
from rich.table import Table
from rich.text import Text

from steer_llm_sdk.cli import _demo_cast as cast
from steer_llm_sdk.cli._clients import load_clients
from steer_llm_sdk.cli._demo_cast import NaiveLoop, Stage
from steer_llm_sdk.cli._show import agreement_line, attempts_table, console, show_evidence, summary_line
from steer_llm_sdk.cli._who import who_answers
from steer_llm_sdk.cli.exits import complain, errors_as_exits
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.providers.simulated import Question, shipped_recording

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
    load_clients(console(stderr=True))
    out.print(INTRO.format(good=cast.GOOD_CALLS))
    questions = _questions(cast.QUESTIONS)
    async with cast.stage() as stage:
        naive = cast.NaiveLoop(f"{stage.naive.base_url}/v1")
        log = Log(out)
        outputs = await _race(stage, naive, questions, log)
        _show_results(out, questions, outputs)
        _show_account(out, stage, naive, outputs, log.elapsed)
    await _show_disagreement(out)
    out.print(Text(_your_turn(), style="bold"), soft_wrap=True)


async def _race(stage: Stage, naive: NaiveLoop, questions: Sequence[Question], log: Log) -> list[OrchestrationOutput]:
    """Both at once. The naive loop is stopped when ours is done; it would wait for its client's timeout."""
    looping = asyncio.create_task(naive.run(questions, K, log.naive))
    try:
        outputs = await _answer_all(stage, questions, log)
        if not looping.done():
            log.naive(f"waits for answer {len(naive.answers) + 1}")
        return outputs
    finally:
        looping.cancel()
        await asyncio.gather(looping, return_exceptions=True)


async def _answer_all(stage: Stage, questions: Sequence[Question], log: Log) -> list[OrchestrationOutput]:
    options = OrchestrationConfig(timeout_ms=20_000, per_agent_timeout_ms=1200)
    outputs = []
    async with cast.reliable(stage.models, K) as orchestrator:
        for number, question in enumerate(questions, start=1):
            if number == len(questions):
                await stage.first.set_faults(cast.PACE)
                log.ours("(the first provider is back)")
                await asyncio.sleep(cast.OPEN_FOR)
            output = await cast.solve(orchestrator, question, options, log.ours)
            log.ours(f"question {number}: {_answered(output)}", good=output.status == "succeeded")
            outputs.append(output)
    return outputs


class Log:
    """Two columns under one clock: what the naive loop does, what ours does."""

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
    """Who gave how many of the answers."""
    evidence = output.evidence
    if evidence is None:
        return "no answer"
    models = Counter(_short(r.model) for r in evidence.replicates if r.quality.valid and r.model)
    return ", ".join(f"{count} by {name}" for name, count in models.items())


def _short(model: str) -> str:
    """Without the date behind the name."""
    return model.rstrip("0123456789-") or model


def _show_results(out: Console, questions: Sequence[Question], outputs: Sequence[OrchestrationOutput]) -> None:
    table = _table("question", "consensus", "confidence", "right?")
    for question, output in zip(questions, outputs, strict=True):
        confidence = None if output.evidence is None else output.evidence.summary.confidence
        right = cast.is_right(output, question)
        table.add_row(
            Text(question.id),
            Text(str(cast.consensus_of(output))),
            "" if confidence is None else f"{confidence:.2f}",
            Text("yes" if right else "no", style="green" if right else "red"),
        )
    out.print()
    out.print(table)
    out.print("Confidence is the share of the votes: how stable an answer is, not how true.\n")
    out.print("Every call of the second question, during which the provider died:")
    out.print(attempts_table(outputs[1].attempts))


def _show_account(
    out: Console, stage: Stage, naive: NaiveLoop, outputs: Sequence[OrchestrationOutput], elapsed: float
) -> None:
    wanted = K * len(outputs)
    bundles = [output.evidence for output in outputs]
    valid = sum(bundle.meta.k_completed or 0 for bundle in bundles if bundle is not None)
    costs = [output.cost_usd for output in outputs]
    price = "unknown" if None in costs else f"${sum(cost or 0.0 for cost in costs):.4f}"
    table = _table("", "naive loop", "steer_llm_sdk")
    table.add_row("answers", f"{len(naive.answers)} of {wanted}", f"{valid} of {wanted}")
    table.add_row("calls to gpt-4o", str(stage.naive.requests), str(stage.first.requests))
    table.add_row("calls to claude-3.5-sonnet", "0", str(stage.second.requests))
    table.add_row("time", f"hung; would wait {naive.patience:.0f} s", f"{elapsed:.1f} s")
    table.add_row("at list price", "", price)
    out.print()
    out.print(table)
    out.print("Tokens are estimated from the recorded text; nothing was spent.\n")


# ── one question on which models disagree ────────────────────────────────────────────────────────────────────────────


async def _show_disagreement(out: Console) -> None:
    (question,) = _questions([cast.CONTESTED])
    out.rule(Text("Where real models disagree", style="bold"), characters="─")
    out.print(Text(question.text.partition("[PYTHON]")[2].partition("[/PYTHON]")[0].strip()), soft_wrap=True)
    out.print("\nTen of the 51 recorded models, one answer each:\n")
    async with cast.reliable(["recorded:demo"], 10) as orchestrator:
        output = await orchestrator.run(question.text, cast.TOOL, {"seeds": list(range(10))})
    if output.evidence is not None:
        show_evidence(output.evidence, out)
    out.print(Text(f"The right answer is {question.gold}.\n"))


# ── the reader's own model ───────────────────────────────────────────────────────────────────────────────────────────


async def _with_own(models: list[str]) -> None:
    out = console()
    complain(who_answers(models, "--model"))
    complain(f"{OWN_QUESTIONS} questions, {OWN_K} answers each, at most {OWN_TOKENS:,} tokens a question")
    load_clients(console(stderr=True))
    options = OrchestrationConfig(timeout_ms=120_000, budget={"tokens": OWN_TOKENS})
    async with cast.reliable([*models], OWN_K) as orchestrator:
        for question in _questions(cast.QUESTIONS[:OWN_QUESTIONS]):
            output = await cast.solve(orchestrator, question, options, complain)
            right = "right" if cast.is_right(output, question) else f"wrong, it is {question.gold}"
            said = "no answer" if output.evidence is None else agreement_line(output.evidence)
            out.print(Text(f"{question.id}: {cast.consensus_of(output)} ({right})\n  {said}\n  {summary_line(output)}"))


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _questions(ids: Sequence[str]) -> list[Question]:
    found = [shipped_recording().find(name) for name in ids]
    return [question for question in found if question is not None]


def _your_turn() -> str:
    """The one line that does it with a model of the reader's own."""
    beside = Path(sys.executable).with_name("steer-llm")
    command = "steer-llm" if shutil.which("steer-llm") or not beside.exists() else os.path.relpath(beside)
    model = "anthropic:claude-haiku-4-5" if _only_anthropic() else "openai:gpt-5-mini"
    return f"With your own key, or a local model (ollama:NAME):\n\n    {command} demo --model {model}"


def _only_anthropic() -> bool:
    return bool(os.environ.get("ANTHROPIC_API_KEY")) and not os.environ.get("OPENAI_API_KEY")


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
