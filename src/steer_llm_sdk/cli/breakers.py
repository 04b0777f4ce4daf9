"""`steer-llm breakers`: the circuit breakers that instances share, seen and moved from outside."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from steer_llm_sdk.cli._show import console, table_of
from steer_llm_sdk.cli.exits import Group, OneCommand, complain, errors_as_exits, flowing, refuse

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.shared.operate import Seen

STORE_VARIABLE = "STEER_STORE"

breakers = typer.Typer(cls=Group, help="See and move the circuit breakers that instances share.", no_args_is_help=True)

Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar=STORE_VARIABLE,
        help="redis://… or postgresql://…: the store of the instances.",
        show_default=False,
    ),
]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="As `list` shows it: the provider, or provider/model.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@breakers.callback()
def common() -> None:
    """See and move the circuit breakers that instances share.

    What is changed holds for every running instance within a second, and for those that start later.
    """


def list_breakers(store: Store = None, as_json: AsJson = False) -> None:
    """List the breakers that any instance has used."""
    from steer_llm_sdk.reliability.shared import operate

    with errors_as_exits(as_json=as_json):
        found = asyncio.run(operate.breakers(_required(store)))
        if as_json:
            print(json.dumps([seen._asdict() for seen in found], indent=2, ensure_ascii=False))
            return
        if not found:
            complain("no instance has used a breaker in this store yet")
            return
        table = table_of("breaker", "state", "why", "cut off alone")
        for seen in found:
            parts = ", ".join(f"{part} ({state})" for part, state in seen.parts.items())
            table.add_row(*(Text(cell) for cell in (seen.name, _state(seen), _why(seen), parts)))
        console().print(table)


def open_breaker(name: Name, store: Store = None, as_json: AsJson = False) -> None:
    """Refuse every call to NAME in every instance, until it is closed."""
    from steer_llm_sdk.reliability.shared import operate

    with errors_as_exits(as_json=as_json):
        asyncio.run(operate.hold_open(_required(store), name))
        _say(name, "open", as_json, f"{name} is held open; `steer-llm breakers close {name}` closes it")


def close_breaker(
    name: Name,
    store: Store = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep it closed whatever fails, until it is closed again without --hold.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Close NAME with nothing remembered; from then on it opens by itself again."""
    from steer_llm_sdk.reliability.shared import operate

    with errors_as_exits(as_json=as_json):
        asyncio.run(operate.close(_required(store), name, hold=hold))
        _say(name, "closed", as_json, f"{name} is held closed" if hold else f"{name} is closed")


def _required(store: str | None) -> str:
    if not store:
        refuse(
            "--store", store, f"say where the instances share them, here or in {STORE_VARIABLE}: redis://127.0.0.1:6379"
        )
    return store


def _say(name: str, state: str, as_json: bool, sentence: str) -> None:
    print(json.dumps({"name": name, "state": state})) if as_json else print(sentence)


def _state(seen: Seen) -> str:
    return {"forced_open": "open", "forced_closed": "closed"}.get(seen.mode or "", seen.state).replace("_", "-")


def _why(seen: Seen) -> str:
    if seen.mode is not None:
        return f"{seen.mode.replace('_', ' ')} by an operator; by itself {seen.state.replace('_', '-')}"
    if seen.retry_after:
        return f"the next probe in {seen.retry_after:.0f} s"
    return f"{seen.failures} failed in a row" if seen.failures else ""


for _name, _command in (("list", list_breakers), ("open", open_breaker), ("close", close_breaker)):
    breakers.command(name=_name, cls=OneCommand, help=flowing(_command.__doc__))(_command)
