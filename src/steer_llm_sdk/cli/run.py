"""`steer-llm run`: one request, or a file of them, answered by the model or tool that was named, or by what the planner
finds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._command import Command, Form, check, command_of, config_of
from steer_llm_sdk.cli._complete import model_names, tool_names
from steer_llm_sdk.cli._live import Live
from steer_llm_sdk.cli._runs import orchestrator_of, remembering_store, required_store, store_option
from steer_llm_sdk.cli._settings import default_options
from steer_llm_sdk.cli._show import console, remarks, show_output, write
from steer_llm_sdk.cli._stdout import OutputLost, forget_stdout, refuse_closed, stdout_of
from steer_llm_sdk.cli._who import which_tool
from steer_llm_sdk.cli.batch import MAX_PARALLEL, Files, carry_out
from steer_llm_sdk.cli.exits import MEANING, Exit, code_of, complain, errors_as_exits, refuse
from steer_llm_sdk.errors import MISSING, BudgetExceeded
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.providers.models import configured_model
from steer_llm_sdk.streaming.manager import EventManager


def run(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT|-|@FILE",
            help="The question or text; - reads standard input, @FILE a file.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Who answers: openai:NAME, ollama:NAME, recorded:demo. Again: tried in order.",
            autocompletion=model_names,
        ),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|MODULE:NAME",
            help="A tool by its name, as `steer-llm tools` lists them; or one of yours, in a module that is imported "
            "from here: then TEXT may be a JSON object with its parameters.",
            autocompletion=tool_names,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", metavar="1..10", help="Ask so many times and report where the answers agree."),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="With -k: compare the answers by this field, such as answer or person.name; again for more. Without "
            "--schema the model is asked for an object that has them.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the tool; again for more."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NUMBER", help="tokens=1000, cost_usd=0.05 or ms=5000; again for more."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="The time for all of it. Loading what talks to models is not counted."),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="FILE|{...}", help="A JSON Schema, in a file or as it is, that the answer must have."),
    ] = None,
    calibrator: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With -k: what `steer-llm calibrate` made of labelled answers. Confidence is then how likely the "
            "answer is right.",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Two requests with one key are one request, for 15 minutes; with --durable, for good. Needs a store.",
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it comes.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="The whole output as JSON; with --stream one event per line, the output last."),
    ] = False,
    durable: Annotated[
        bool,
        typer.Option(
            "--durable",
            help="Record each answer in --store as it comes: after a kill, the same command with its --idempotency-key "
            "goes on from there, or a `steer-llm worker` does.",
        ),
    ] = False,
    store: Annotated[
        str | None,
        store_option(
            "Where keys are remembered, and what --durable records: sqlite:///file.db, "
            "postgresql://user@host/database; without --durable redis://host:6379/0 too."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help='Many requests: one JSON text a line, or an object with "request" and what it needs of "tool_name", '
            '"tool_options", "options", "id". All are checked before the first is asked. - reads standard input.',
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the results of --batch are appended as they come, one JSON line each. After a kill the same "
            "command goes on from there.",
        ),
    ] = None,
    max_parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"Lines of --batch at a time. By default {MAX_PARALLEL}.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Of --out, forget the lines that failed, and ask them again.")
    ] = False,
) -> None:
    with stdout_of(as_json=as_json) as stdout, errors_as_exits(as_json=as_json, out=stdout):
        if batch is None or as_json:
            refuse_closed(stdout)
        given = {"budget": inputs.read_budget(budget or []), "timeout_ms": inputs.read_timeout(timeout)}
        limits = {**default_options(), **{name: limit for name, limit in given.items() if limit is not None}}
        single = {**limits, "idempotency_key": idempotency_key, "streaming": stream}
        if batch is None:
            _refuse_given("it belongs to --batch FILE", out=out, max_parallel=max_parallel, retry_failed=retry_failed)
            request = inputs.read_request(text) if ":" in (tool or "") else inputs.read_text(text)
        else:
            _refuse_given(
                "it belongs to a single request",
                TEXT=text,
                idempotency_key=idempotency_key,
                stream=stream,
                durable=durable,
            )
        options = single if batch is None else limits
        form = Form.of(schema, fields or [], calibrator)
        command = command_of(model or [], tool, k, inputs.read_options(option or []), form, options)
        if batch is None:
            config = config_of(options)
            kept_in = required_store(store) if durable else remembering_store(store, idempotency_key)
            if durable or idempotency_key:
                command = command.pinned()
            registry = command.registry()
            check(request, command.tool_name, command.tool_options, registry)
            command.announce()  # Before there is a loop, in which Ctrl-C would have to wait until all is loaded.
            asking = _carry_out(
                request, command, registry, config, kept_in, stdout, durable=durable, stream=stream, as_json=as_json
            )
            raise typer.Exit(asyncio.run(asking))
        if not out:
            refuse(
                "--out",
                MISSING if out is None else out,
                "name a file: the results of --batch are appended there as they come",
            )
        files = Files(batch=batch, out=out, retry_failed=retry_failed)
        kept_in = remembering_store(store)
        raise typer.Exit(carry_out(command, files, max_parallel or MAX_PARALLEL, kept_in, stdout, as_json=as_json))


run.__doc__ = f"""Ask a model or a tool, and see the answer, what it cost, and what went wrong on the way.

Who answers: the tool named by --tool, else the model named by --model or by the environment variable STEER_MODEL, else
what the planner finds among the installed tools. A key in the environment alone never spends anything. With --batch,
--budget and --timeout hold for each line.

{MEANING}"""


def _refuse_given(why: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            refuse(name if name.isupper() else f"--{name.replace('_', '-')}", value, why)


async def _carry_out(
    request: Any,
    command: Command,
    registry: ToolRegistry,
    config: OrchestrationConfig,
    kept_in: str | None,
    stdout: TextIO,
    *,
    durable: bool,
    stream: bool,
    as_json: bool,
) -> Exit:
    asked_for = command.tool_name if durable else command.asked_for
    with Live(console(stderr=True), spinner=not stream) as live:
        watcher = _Watcher(command, registry, live, stdout, stream=stream, as_json=as_json)
        with watcher.until_lost():
            async with orchestrator_of(registry, kept_in, durable=durable) as runner:
                try:
                    output = await runner.run(request, asked_for, command.tool_options, config, watcher.events)
                except BudgetExceeded as error:
                    live.stop()
                    if not as_json:
                        watcher.show(error.output, said=str(error))
                    raise
    watcher.show(output)
    return code_of(output)


class _Watcher:
    """What the terminal is told while the run goes on."""

    def __init__(
        self, command: Command, registry: ToolRegistry, live: Live, stdout: TextIO, *, stream: bool, as_json: bool
    ) -> None:
        self._command = command
        self._registry = registry
        self._live = live
        self._stdout = stdout
        self._stream = stream
        self._as_json = as_json
        self._run = asyncio.current_task()
        self.printed = ""
        self._lost: OSError | None = None

    @property
    def events(self) -> EventManager:
        delta = self._text if self._stream and not self._as_json else None
        return EventManager(on_create_event=self._any, on_start=self._say_who, on_delta=delta)

    def _any(self, event: StreamEvent) -> None:
        self._live.on_event(event)
        if self._stream and self._as_json:
            self._line(event)

    def _say_who(self, event: StreamEvent) -> None:
        tool = self._registry.get_tool(str(event.metadata["tool_name"]))
        if self._command.who is None and tool is not None:
            complain(which_tool(tool, configured_model(), self._command.named, self._command.source))

    def _text(self, event: StreamDeltaEvent) -> None:
        if isinstance(event.delta, str):
            self.printed += event.delta
            with self._stop_without_reader():
                write(event.delta)
        elif event.delta.get("event_type") == "restart" and self.printed:
            self.printed = ""
            with self._stop_without_reader():
                write("\n")
            complain("the text so far does not count; the answer begins anew")

    def _line(self, event: StreamEvent) -> None:
        line = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        with self._stop_without_reader():
            print(json.dumps({"event": line}, ensure_ascii=False, default=str), file=self._stdout, flush=True)

    @contextmanager
    def until_lost(self) -> Iterator[None]:
        """BrokenPipeError or OutputLost where a stream could not go on: then nothing more is bought for it."""
        try:
            yield
        except asyncio.CancelledError:
            if self._lost is None:
                raise
        if self._lost is not None:
            raise self._lost

    @contextmanager
    def _stop_without_reader(self) -> Iterator[None]:
        try:
            yield
        except (BrokenPipeError, OutputLost) as error:
            forget_stdout(self._stdout)
            self._lost = error
            if self._run is not None:
                self._run.cancel()

    def show(self, output: OrchestrationOutput | None, *, said: str = "") -> None:
        """The finished output; None where a budget left nothing to show. `said` is the error that is told anyway."""
        if output is None:
            return
        if not self._as_json:
            show_output(output, printed=self.printed, said=said)
            return
        remarked = [] if output.status == "failed" else list(remarks(output, output.evidence))
        if remarked:
            more = f" (and {len(remarked) - 1} more, in the JSON)" if len(remarked) > 1 else ""
            complain(f"{output.status}: {remarked[0]}{more}")
        if self._stream:
            print(json.dumps({"output": output.model_dump(mode="json")}, ensure_ascii=False), file=self._stdout)
        else:
            print(output.model_dump_json(indent=2), file=self._stdout)
