"""`steer-llm run --batch`: the lines of a file asked, a bounded number at a time, and what came of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from steer_llm_sdk.cli._batch_lines import Defaults, Line, read_lines
from steer_llm_sdk.cli._batch_results import Results
from steer_llm_sdk.cli._command import Command
from steer_llm_sdk.cli._settings import orchestrator
from steer_llm_sdk.cli._show import console, dollars
from steer_llm_sdk.cli.exits import Exit, complain
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry

MAX_PARALLEL = 10
PATIENCE = 600.0
"""Seconds that a line waits for an open circuit, in all; only then has it failed."""
_LEAST_WAIT = 0.5
_STATUSES = ("succeeded", "partial", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """`retry_failed`: what failed in `out` is forgotten and asked again."""

    batch: str
    out: str
    retry_failed: bool


def carry_out(
    command: Command, files: Files, max_parallel: int, store: str | None, stdout: TextIO, *, as_json: bool
) -> Exit:
    """Check all of the input, ask what is not done, and say what there is then. After Ctrl-C as well. `store` is where
    the keys of lines are remembered; None leaves it to the settings."""
    registry = command.registry()
    defaults = Defaults(
        tool_name=command.tool_name, tool_options=command.tool_options, options=command.options, made_of=command.made_of
    )
    lines = read_lines(files.batch, defaults, registry)
    with Results(files.out, files.batch, lines) as results:
        if files.retry_failed:
            results.forget_failed()
        batch = Batch(lines, results)
        if batch.todo:
            command.announce()
        try:
            asyncio.run(batch.ask(registry, max_parallel, store))
        except KeyboardInterrupt:
            show_account(batch, stdout, as_json=as_json)
            complain("interrupted; the same command goes on from here")
            return Exit.INTERRUPTED
        show_account(batch, stdout, as_json=as_json)
        return batch.code


class Batch:
    """The lines, and the results there are. `found` is how many were done before."""

    def __init__(self, lines: Sequence[Line], results: Results) -> None:
        self.lines = lines
        self.results = results
        self.found = len(results.done)

    @property
    def todo(self) -> list[Line]:
        return [line for line in self.lines if line.position not in self.results.done]

    async def ask(self, registry: ToolRegistry, max_parallel: int, store: str | None = None) -> None:
        """Ask what is not done, with a bar on a terminal. OSError where a result cannot be written."""
        async with orchestrator(registry, store) as runner:
            with _bar(self, console(stderr=True)) as tell:
                await self._work(runner, max_parallel, tell)

    async def _work(self, orchestrator: ReliableOrchestrator, max_parallel: int, tell: Callable[[], None]) -> None:
        waiting = deque(self.todo)

        async def work() -> None:
            while waiting:
                line = waiting.popleft()
                self.results.add(line, await _asked(orchestrator, line))
                tell()

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(max_parallel, len(waiting))):
                    workers.create_task(work())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    def account(self) -> dict[str, Any]:
        """Of the whole file. `cost_usd` is what is known, None where nothing is; `cost_unknown` counts the lines of
        which it is not. `simulated`: recordings answered, and nobody else who is to be paid."""
        done = self.results.done.values()
        statuses, costs = Counter(kept.status for kept in done), [kept.cost_usd for kept in done]
        known, paid = [cost for cost in costs if cost is not None], {kept.simulated for kept in done}
        return {
            "lines": len(self.lines),
            "found_done": self.found,
            **{status: statuses[status] for status in _STATUSES},
            "cost_usd": round(sum(known), 9) if known or not costs else None,
            "cost_unknown": costs.count(None),
            "simulated": True in paid and False not in paid,
            "out": self.results.path,
        }

    @property
    def code(self) -> Exit:
        account = self.account()
        if account["succeeded"] == len(self.lines):
            return Exit.OK
        return Exit.PARTIAL if account["succeeded"] + account["partial"] else Exit.FAILED


async def _asked(orchestrator: ReliableOrchestrator, line: Line) -> dict[str, Any]:
    """The result of one line, whatever becomes of it. One that an open circuit kept back was not asked: it waits."""
    clock = asyncio.get_running_loop().time
    give_up = clock() + PATIENCE
    while True:
        try:
            output = await orchestrator.run(line.request, line.tool_name, line.tool_options, line.options)
        except BudgetExceeded as error:
            return _result("failed", error.output, error)
        except Exception as error:
            return _result("failed", None, error)
        wait = _until_probe(output)
        if wait is None or clock() + wait > give_up:
            return _result(output.status, output)
        await asyncio.sleep(wait)


def _result(status: str, output: OrchestrationOutput | None, error: Exception | None = None) -> dict[str, Any]:
    return {
        "status": status,
        "output": None if output is None else output.model_dump(mode="json"),
        "error": None if error is None else describe_error(error),
    }


def _until_probe(output: OrchestrationOutput) -> float | None:
    """Seconds until a circuit lets calls through again; None where something was sent, or it was not the circuit."""
    errors = list((output.errors or {}).values())
    if output.attempts or not errors or any(error["type"] != "CircuitOpen" for error in errors):
        return None
    return max(min(error.get("retry_after") or 0.0 for error in errors), _LEAST_WAIT)


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _bar(batch: Batch, err: Console) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing where nobody looks; gives what is to be called after each line."""
    columns = (MofNCompleteColumn(), BarColumn(bar_width=30), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=len(batch.lines), completed=batch.found)

        def tell() -> None:
            done = batch.results.done.values()
            failed = sum(kept.status == "failed" for kept in done)
            bar.update(task, completed=len(done), description=f"{failed} failed" if failed else "")

        yield tell


def show_account(batch: Batch, stdout: TextIO, *, as_json: bool) -> None:
    """On stderr in one line; with --json on stdout as well."""
    account = batch.account()
    if as_json:
        print(json.dumps(account, ensure_ascii=False), file=stdout)
    counts = [f"{account[status]} {status}" for status in _STATUSES if account[status]]
    before = [f"{batch.found} of them were done before"] if batch.found else []
    done = f"{len(batch.results.done)} of {len(batch.lines)} lines"
    again = ["--retry-failed asks for those that failed once more"] if account["failed"] else []
    complain(" · ".join(part for part in (done, *counts, *before, _cost(account), account["out"], *again) if part))


def _cost(account: dict[str, Any]) -> str:
    unknown, cost = account["cost_unknown"], account["cost_usd"]
    if cost is None:
        return "cost unknown"
    known = f"{dollars(cost)} list price"
    if not unknown:
        return f"{known}, not spent" if account["simulated"] else known if cost else ""
    return f"{known}, and {unknown} line{'' if unknown == 1 else 's'} of unknown cost"
