"""`steer-llm worker`: carries out the durable runs that were handed in, and those whose process has died."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._command import Form, command_of
from steer_llm_sdk.cli._complete import model_names
from steer_llm_sdk.cli._runs import required_store, store_option
from steer_llm_sdk.cli.exits import complain, errors_as_exits, refuse
from steer_llm_sdk.errors import MISSING, a_kind
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.reliability.budget import BudgetAccounts

if TYPE_CHECKING:
    from steer_llm_sdk.durable import DurableOrchestrator, QueueLimits

HEARTBEAT = 5.0
DRAIN = 10.0
"""Seconds that runs under way get to end when the worker is told to; the others go on elsewhere."""


def worker(
    store: Annotated[str | None, store_option()] = None,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="The tools: a ToolRegistry of yours, or a ReliableOrchestrator with its planner and configuration.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Instead of --app: the tool of `steer-llm run --durable` with the same --model, -k, --fields, "
            "--schema and --calibrator.",
            autocompletion=model_names,
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", metavar="1..10", help="As in steer-llm run.")] = None,
    fields: Annotated[list[str] | None, typer.Option(metavar="PATH", help="As in steer-llm run.")] = None,
    schema: Annotated[str | None, typer.Option(metavar="FILE|{...}", help="As in steer-llm run.")] = None,
    calibrator: Annotated[str | None, typer.Option(metavar="FILE", help="As in steer-llm run.")] = None,
    concurrency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROVIDER=N", help="At most so many handed-in runs of this provider at a time, over all workers."
        ),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="PROVIDER=N/SECONDS", help="At most so many of them begin in so many seconds."),
    ] = None,
    heartbeat: Annotated[
        float, typer.Option(metavar="SECONDS", help="The runs of a dead worker go on within twice this time.")
    ] = HEARTBEAT,
) -> None:
    """Carry out the runs of a store: those that were handed in, and those whose process has died.

    A worker goes on with runs of the same tools in the same versions only. On SIGTERM or Ctrl-C it takes no more, gives
    what is under way 10 s, and hands the rest to the other workers.
    """
    with errors_as_exits():
        kept_in = required_store(store)
        if app is None and not model:
            refuse("--app", MISSING, "name your tools, as in --app my_app:registry, or a model with --model")
        if app is not None and model:
            refuse("--app", app, "give either --app or --model")
        made = (
            orchestrator_of(app)
            if app is not None
            else _of_model(model or [], k, Form.of(schema, fields or [], calibrator))
        )
        limits = _limits(concurrency or [], rate or [])
        raise typer.Exit(asyncio.run(_work(durable_of(kept_in, made, limits, heartbeat))))


async def _work(orchestrator: DurableOrchestrator) -> int:
    stop = asyncio.Event()
    for how in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(how, stop.set)
    runner = await orchestrator.started()
    complain(f"worker {runner.worker} is ready, with the tools {orchestrator.application_version}; Ctrl-C stops it")
    await stop.wait()
    complain("no more runs are taken; those under way have 10 s")
    await orchestrator.aclose(DRAIN)
    return 0


def durable_of(
    store: str,
    made: ReliableOrchestrator,
    queues: dict[str, QueueLimits] | None = None,
    heartbeat: float = HEARTBEAT,
) -> DurableOrchestrator:
    """A durable one with the tools, the planner and the configuration of another."""
    from steer_llm_sdk.durable import DurableOrchestrator

    return DurableOrchestrator(
        store,
        made.planner,
        made.reliability_config,
        registry=made.registry,
        # Accounts in memory know one process only; those in the store know all.
        budget_accounts=None if type(made.budget_accounts) is BudgetAccounts else made.budget_accounts,
        shared=made.executor.shared,
        heartbeat=heartbeat,
        queues=queues,
    )


def orchestrator_of(path: str, store: str | None = None) -> ReliableOrchestrator:
    """What `--app` names. `store` is where one that is made of a registry remembers keyed runs."""
    found = inputs.imported(path, "--app", "my_app:registry")
    if isinstance(found, ReliableOrchestrator):
        return found
    if not isinstance(found, ToolRegistry):
        refuse("--app", path, f"it is {a_kind(found)}; name a ToolRegistry or a ReliableOrchestrator")
    return ReliableOrchestrator(registry=found, store=store)


def _of_model(model: list[str], k: int | None, form: Form) -> ReliableOrchestrator:
    command = command_of(model, None, k, {}, form, {}).pinned()
    command.announce()
    return ReliableOrchestrator(registry=command.registry())


def _limits(concurrency: list[str], rate: list[str]) -> dict[str, QueueLimits]:
    from steer_llm_sdk.durable import QueueLimits

    limits: dict[str, dict[str, float]] = {}
    for pair in concurrency:
        name, count = _pair("--concurrency", pair, "openai=4")
        limits.setdefault(name, {})["concurrency"] = _whole("--concurrency", pair, count)
    for pair in rate:
        name, given = _pair("--rate", pair, "openai=10/60")
        count, slash, seconds = given.partition("/")
        limits.setdefault(name, {})["rate"] = _whole("--rate", pair, count)
        limits[name]["per"] = float(_whole("--rate", pair, seconds)) if slash else 1.0
    return {name: QueueLimits(**found) for name, found in limits.items()}  # type: ignore[arg-type]


def _pair(option: str, pair: str, example: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not (equals and name.strip()):
        refuse(option, pair, f"write PROVIDER=N, as in {example}")
    return name.strip(), value


def _whole(option: str, pair: str, count: str) -> int:
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        refuse(option, pair, "give whole numbers from 1")
    return int(count)
