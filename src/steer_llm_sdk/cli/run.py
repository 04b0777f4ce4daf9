"""`steer-llm run`: one request, answered by the model or tool that was named, or by what the planner finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._clients import load_clients
from steer_llm_sdk.cli._show import console, show_output, write
from steer_llm_sdk.cli._who import configured_model, which_tool, who_answers
from steer_llm_sdk.cli.exits import MEANING, Exit, code_of, complain, errors_as_exits, refuse
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, LLMTool
from steer_llm_sdk.orchestration.tools.text_analyzer import MODEL_VARIABLE
from steer_llm_sdk.streaming.manager import EventManager

ASK = "ask"
"""The name of the tool that is made for --model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the command line asks for. `tool` is made here for a model; `tool_name` None leaves it to the planner."""

    text: str
    tool: Tool | None
    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: Mapping[str, Any]
    who: str | None


def run(
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT|-|@FILE", help="The question or text; - reads standard input, @FILE a file."),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Who answers: openai:NAME, ollama:NAME, recorded:demo. Again: tried in order."
        ),
    ] = None,
    tool: Annotated[str | None, typer.Option(help="A tool by its name; `steer-llm tools` lists them.")] = None,
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Ask so many times and report where the answers agree.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the tool; again for more."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NUMBER", help="tokens=1000, cost_usd=0.05 or ms=5000; again for more."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="The time for all of it.")] = None,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="A JSON Schema that the model's answer must have.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Two requests with one key are one request.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it comes.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="The whole output as JSON; with --stream one event per line, the output last."),
    ] = False,
) -> None:
    with errors_as_exits():
        config = {
            "budget": inputs.read_budget(budget or []),
            "timeout_ms": inputs.read_timeout(timeout),
            "idempotency_key": idempotency_key,
            "streaming": stream,
        }
        order = _order(inputs.read_text(text), model or [], tool, k, inputs.read_options(option or []), schema, config)
        raise typer.Exit(asyncio.run(_carry_out(order, stream=stream, as_json=as_json)))


run.__doc__ = f"""Ask a model or a tool, and see the answer, what it cost, and what went wrong on the way.

Who answers: the tool named by --tool, else the model named by --model or by the environment variable STEER_MODEL, else
what the planner finds among the installed tools. A key in the environment alone never spends anything.

{MEANING}"""


def _order(
    text: str,
    named: list[str],
    tool_name: str | None,
    k: int | None,
    tool_options: dict[str, Any],
    schema: str | None,
    config: Mapping[str, Any],
) -> Order:
    models, source = _models(named)
    if tool_name is None and models:
        made = _model_tool(models, k, inputs.read_schema(schema))
        who = who_answers(models, source)
        return Order(text=text, tool=made, tool_name=ASK, tool_options=tool_options, options=config, who=who)
    if schema is not None:
        refuse("--schema", schema, "it forms the answer of a model: name one with --model, and no --tool")
    asked = {**_given(k=k, model=_one_or_all(named)), **tool_options}
    named_who = who_answers(named, source) if named else None
    return Order(text=text, tool=None, tool_name=tool_name, tool_options=asked, options=config, who=named_who)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _one_or_all(named: list[str]) -> str | list[str] | None:
    return named if len(named) > 1 else next(iter(named), None)


def _models(named: list[str]) -> tuple[list[str], str]:
    """The models to try, in order, and who named them."""
    if named:
        return named, "--model"
    configured = configured_model()
    return ([] if configured is None else [configured]), MODEL_VARIABLE


def _model_tool(models: list[str], k: int | None, schema: dict[str, Any] | None) -> Tool:
    if k is None or k == 1:
        return LLMTool(ASK, models, output_type=schema)
    return LLMBundleTool(ASK, models, output_type=schema, k=k)


async def _carry_out(order: Order, *, stream: bool, as_json: bool) -> Exit:
    registry = ToolRegistry()
    if order.tool is not None:
        registry.register_tool(order.tool)
    if order.who is not None:
        complain(order.who)
    if order.who is not None or configured_model() is not None:
        load_clients(console(stderr=True))
    watcher = _Watcher(order, registry, stream=stream, as_json=as_json)
    async with ReliableOrchestrator(registry=registry) as orchestrator:
        try:
            output = await orchestrator.run(
                order.text, order.tool_name, order.tool_options, order.options, watcher.events
            )
        except BudgetExceeded as error:
            watcher.show(error.output)
            raise
    watcher.show(output)
    return code_of(output)


class _Watcher:
    """What the terminal is told while the run goes on."""

    def __init__(self, order: Order, registry: ToolRegistry, *, stream: bool, as_json: bool) -> None:
        self._order = order
        self._registry = registry
        self._stream = stream
        self._as_json = as_json
        self.printed = ""

    @property
    def events(self) -> EventManager:
        every = self._line if self._stream and self._as_json else None
        delta = self._text if self._stream and not self._as_json else None
        return EventManager(on_create_event=every, on_start=self._say_who, on_delta=delta)

    def _say_who(self, event: StreamEvent) -> None:
        tool = self._registry.get_tool(str(event.metadata["tool_name"]))
        if self._order.who is None and tool is not None:
            complain(which_tool(tool, configured_model()))

    def _text(self, event: StreamDeltaEvent) -> None:
        if isinstance(event.delta, str):
            self.printed += event.delta
            write(event.delta)

    def _line(self, event: StreamEvent) -> None:
        line = {field.name: getattr(event, field.name) for field in fields(event)}
        print(json.dumps({"event": line}, ensure_ascii=False, default=str), flush=True)

    def show(self, output: OrchestrationOutput | None) -> None:
        """The finished output; None where a budget left nothing to show."""
        if output is None:
            return
        if not self._as_json:
            show_output(output, printed=self.printed)
        elif self._stream:
            print(json.dumps({"output": output.model_dump(mode="json")}, ensure_ascii=False))
        else:
            print(output.model_dump_json(indent=2))
