"""`steer-llm runs`: the durable runs of a store, to look at, to cancel and to resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.text import Text

from steer_llm_sdk.cli._runs import opened, store_option
from steer_llm_sdk.cli._show import console, printable, show_output, table_of
from steer_llm_sdk.cli.exits import Exit, Group, OneCommand, complain, errors_as_exits, flowing, refuse

if TYPE_CHECKING:
    from steer_llm_sdk.durable._dbos import DbosRuns
    from steer_llm_sdk.durable.runner import RunInfo

runs = typer.Typer(cls=Group, help="Durable runs: look at them, cancel and resume them.", no_args_is_help=True)

_Store = Annotated[str | None, store_option()]
_Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
_Id = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, as `steer-llm runs list` shows it.")]


@runs.callback()
def common() -> None:
    """Durable runs: look at them, cancel and resume them."""


def list_runs(
    store: _Store = None,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only waiting, running, finished, cancelled or broken ones.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many at most, the latest first.")] = 50,
    as_json: _Json = False,
) -> None:
    """The latest runs, and the workers that live."""
    from steer_llm_sdk.durable.runner import State

    with errors_as_exits(as_json=as_json):
        if state is not None and state not in get_args(State):
            refuse("--state", state, f"give one of {', '.join(get_args(State))}")
        with opened(store) as there:
            found, workers = there.list(state, limit), there.workers()  # type: ignore[arg-type]
        if as_json:
            told = [{name: value for name, value in asdict(run).items() if value is not None} for run in found]
            print(json.dumps({"runs": told, "workers": [worker._asdict() for worker in workers]}, ensure_ascii=False))
            return
        table = table_of("run", "state", "tool", "since", "worker")
        for run in found:
            table.add_row(*(Text(printable(cell)) for cell in _row(run)))
        console().print(table)
        for worker in workers:
            complain(f"worker {worker.id}, tools {worker.version}, gave a sign of life {worker.silent_for:.1f} s ago")


def show(run: _Id, store: _Store = None, as_json: _Json = False) -> None:
    """What a run was asked, what is recorded of it, and its output."""
    with errors_as_exits(as_json=as_json), opened(store) as there:
        found, steps = _found(there, run), there.steps(run)
        if as_json:
            print(json.dumps({**asdict(found), "steps": steps}, ensure_ascii=False))
            return
        _show(found, steps)


def cancel(run: _Id, store: _Store = None) -> None:
    """End a run. What it has bought stays recorded, and is not bought again when it is resumed or asked for again."""
    with errors_as_exits(), opened(store) as there:
        found = _found(there, run)
        if found.state in ("finished", "broken", "cancelled"):
            refuse("RUN", run, f"it is {found.state}: there is nothing to cancel")
        there.cancel(run)
        complain(f"{run} is cancelled")


def resume(run: _Id, store: _Store = None) -> None:
    """Let a worker go on with a run that was cancelled, or is stuck: what is recorded is not bought again."""
    with errors_as_exits(), opened(store) as there:
        found = _found(there, run)
        if found.state in ("finished", "broken"):
            refuse("RUN", run, f"it is {found.state}: there is nothing to go on with")
        there.resume(run)
        fit = [worker for worker in there.workers() if worker.version == found.version]
        if not fit:
            complain(f"no worker with its tools ({found.version}) is there yet: start one with steer-llm worker")
        complain(f"{run} waits for a worker")


_COMMANDS: Mapping[str, Callable[..., None]] = {"list": list_runs, "show": show, "cancel": cancel, "resume": resume}
for _name, _command in _COMMANDS.items():
    runs.command(_name, cls=OneCommand, help=flowing(_command.__doc__))(_command)


def _found(there: DbosRuns, run: str) -> RunInfo:
    found = there.info(run)
    if found is None:
        refuse("RUN", run, "there is none of that id in the store; steer-llm runs list shows them")
    return found


def _row(run: RunInfo) -> Sequence[str]:
    why = run.about.get("cancelled")
    state = f"{run.state} ({why})" if run.state == "cancelled" and why else run.state
    return run.id, state, str(run.about.get("tool") or "(planned)"), _at(run.created), run.worker or ""


def _show(run: RunInfo, steps: Mapping[str, Any]) -> None:
    out = console()
    for name, cell in zip(("run", "state", "tool", "since", "worker"), _row(run), strict=True):
        out.print(Text(f"{name:8}{printable(cell)}"), soft_wrap=True)
    out.print(Text(f"tools   {run.version}"))
    if run.asked is not None:
        out.print(Text(f"asked   {printable(json.dumps(run.asked['request'], ensure_ascii=False))}"), soft_wrap=True)
    table = table_of("step", "what came of it")
    for name, step in steps.items():
        table.add_row(Text(printable(name)), Text(printable(_came(step))))
    out.print(table)
    if run.ended is None:
        return
    if "raised" in run.ended:
        complain(run.ended["raised"]["message"])
        raise typer.Exit(Exit.FAILED)
    from steer_llm_sdk.orchestration.output import OrchestrationOutput

    show_output(OrchestrationOutput.model_validate(run.ended["output"]))


def _came(step: Mapping[str, Any]) -> str:
    if "error" in step:
        return f"{step['error']['type']}: {step['error']['message']}"
    if "steps" in step:
        return ", then ".join(name for name, *_ in step["steps"])
    return f"recorded, {sum(line['elapsed_ms'] for line in step.get('lines', ())) / 1000:.1f} s"


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
