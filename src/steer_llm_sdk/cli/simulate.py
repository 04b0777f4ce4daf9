"""`steer-llm simulate`: a server of recorded answers, or in front of any endpoint, with faults on request."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from steer_llm_sdk.cli._show import printable
from steer_llm_sdk.cli.exits import errors_as_exits
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers._endpoint import without_password
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.providers.simulated.faults import KINDS, Fault, FaultPlan, first_met
from steer_llm_sdk.providers.simulated.proxy import ProxyUpstream
from steer_llm_sdk.providers.simulated.recording import POOL
from steer_llm_sdk.providers.simulated.server import Call
from steer_llm_sdk.providers.simulated.sources import RECORDING, upstream_named
from steer_llm_sdk.providers.simulated.traffic import RecordedTraffic
from steer_llm_sdk.providers.simulated.upstream import Upstream

_WORDS = 9


def simulate(
    upstream: Annotated[
        str, typer.Option(help="'recording', an address (https://…), or a file made by steer-llm record.")
    ] = RECORDING,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="KIND[:KEY=VALUE,…], as 503:rate=0.2; see above. May be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same faults.")] = 0,
    host: Annotated[str, typer.Option(help="Where to listen. Loopback only, unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8787,
    speed: Annotated[
        float | None,
        typer.Option(help="Pace of recorded traffic: 1 as recorded, 10 ten times as fast, 0 without delays.", min=0.0),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="A line on stderr for each request, also where that is no terminal."),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the recorded questions and models, and stop.")] = False,
) -> None:
    """Serve recorded answers, recorded traffic or a real endpoint over the OpenAI and Anthropic wire formats.

    While it runs, GET /__calls counts the calls and DELETE /__calls starts counting again; GET /__faults shows the
    faults, and PUT /__faults with {"faults": ["503:rate=0.2"], "seed": 0} replaces them: [] is none, and request
    numbers and times start again.
    """
    if list_:
        typer.echo(listing())
        return
    with errors_as_exits():
        source = _source(upstream, speed)
        server = SimulatedServer(
            source, faults=fault or (), seed=seed, host=host, port=port, on_call=_show_call if _shown(verbose) else None
        )
        faults = [f"\n  fault {each}{_first_time(server.plan, each)}" for each in server.plan.faults]
        title = f"Simulating {without_password(upstream)}" + "".join(faults)
        # A recording takes any key, but the official clients want one before they start; an endpoint takes its own.
        serve(server, title, key=None if isinstance(source, ProxyUpstream) else "simulated")


simulate.__doc__ = f"""{simulate.__doc__}
A fault is KIND or KIND:KEY=VALUE,KEY=VALUE. The kinds are {", ".join(KINDS)}.

Which requests it meets: rate=0.2 (that share), first=10 (only so many), after=3 (not the first three), from=2,to=30
(seconds), model=gpt-* (for this model). How: retry-after=2, retry-after-ms=1500, should-retry=false, chunks=2,
seconds=1.5, status=529, requests=60; not every kind has each, and one that it has not is refused with those it has.

An outage is a kind between two times: outage:from=2,to=30,as=refuse. docs/testing.md has a table of all.
"""


def _source(upstream: str, speed: float | None) -> Upstream:
    source = upstream_named(upstream, speed=1.0 if speed is None else speed)
    if speed is not None and not isinstance(source, RecordedTraffic):
        raise InvalidRequest("speed", speed, "only a file of traffic has a pace; leave it out")
    return source


def _first_time(plan: FaultPlan, fault: Fault) -> str:
    """When a fault with a rate is met first, so that nobody waits for it in vain."""
    number = first_met(plan, fault) if fault.rate < 1 else None
    return "" if number is None else f"  (with seed {plan.seed} the first comes at request {number})"


def _shown(verbose: bool) -> bool:
    return verbose or sys.stderr.isatty()


def _show_call(call: Call) -> None:
    came = "no answer" if call.status is None else str(call.status)
    fault = "" if call.fault is None else f"  fault {call.fault}"
    typer.echo(f"{call.number:>5}  {came:<9}  {printable(call.model or '(no model named)')}{fault}", err=True)


def serve(server: SimulatedServer, title: str, *, key: str | None = None) -> None:
    """Run until interrupted. `key` is what the environment lines give the clients, None where they have their own."""
    try:
        asyncio.run(_run(server, f"{title}\n\n", key))
    except OSError as error:
        raise InvalidRequest("port", server.port, f"it cannot be had ({error.strerror}); give another") from error


async def _run(server: SimulatedServer, title: str, key: str | None) -> None:
    async with server:
        typer.echo(f"{title}{_addresses(server)}\n\n{_environment(server, key)}\n\nCtrl-C stops it.")
        await asyncio.Event().wait()


def _addresses(server: SimulatedServer) -> str:
    return (
        f"OpenAI's format     {server.base_url}/v1\n"
        f"Anthropic's format  {server.base_url}\n"
        f"Control             {server.control_url}/__faults and /__calls\n"
        "                    (on a port of its own: it answers while the other refuses)"
    )


def _environment(server: SimulatedServer, key: str | None) -> str:
    """The lines that point the official clients here."""
    lines = {"OPENAI_BASE_URL": f"{server.base_url}/v1", "ANTHROPIC_BASE_URL": server.base_url}
    if key is not None:
        lines |= {"OPENAI_API_KEY": key, "ANTHROPIC_API_KEY": key}
    return "\n".join(f"  export {name}={value}" for name, value in lines.items())


def listing() -> str:
    """The shipped recording: each question's id and the first words that are its own, and who answers."""
    recording = shipped_recording()
    common = _common_beginning([question.text for question in recording.questions])
    rows = [
        f"  {question.id:16} {' '.join(question.text.removeprefix(common).split()[:_WORDS])[:60]}"
        for question in recording.questions
    ]
    models = [f"  {model:42} {recording.kind_of(model)}" for model in recording.models]
    return "\n".join(
        (
            f"{len(rows)} questions, from {recording.source.replace(' at ', chr(10) + '  at ')}.",
            f"Each begins: {' '.join(common.split()[:_WORDS])} …",
            *rows,
            "",
            f"{len(models)} models, and {POOL}: all of them in turn.",
            "raw: the reply as it was given; extracted: only its answer was kept.",
            *models,
        )
    )


def _common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    return first[
        : next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    ]
