"""`steer-llm simulate`: recorded answers, or any endpoint, behind a server with faults on request."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from steer_llm_sdk.cli.exits import errors_as_exits
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.providers.simulated.proxy import ProxyUpstream
from steer_llm_sdk.providers.simulated.recording import POOL
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
        typer.Option(help="KIND[:KEY=VALUE,…], as 503:rate=0.2 or outage:from=2,to=30,as=refuse. May be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same faults.")] = 0,
    host: Annotated[str, typer.Option(help="Where to listen. Loopback only, unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8787,
    speed: Annotated[
        float | None,
        typer.Option(help="Pace of recorded traffic: 1 as recorded, 10 ten times as fast, 0 without delays.", min=0.0),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the recorded questions and models, and stop.")] = False,
) -> None:
    """Serve recorded answers, recorded traffic or a real endpoint over the OpenAI and Anthropic wire formats.

    Faults can be switched while it runs, and calls counted: GET and PUT /__faults, GET and DELETE /__calls.
    """
    if list_:
        typer.echo(listing())
        return
    with errors_as_exits():
        source = _source(upstream, speed)
        server = SimulatedServer(source, faults=fault or (), seed=seed, host=host, port=port)
        title = f"Simulating {upstream}" + "".join(f"\n  fault {each}" for each in server.plan.faults)
        # A recording takes any key, but the official clients want one before they start; an endpoint takes its own.
        serve(server, title, key=None if isinstance(source, ProxyUpstream) else "simulated")


def _source(upstream: str, speed: float | None) -> Upstream:
    source = upstream_named(upstream, speed=1.0 if speed is None else speed)
    if speed is not None and not isinstance(source, RecordedTraffic):
        raise InvalidRequest("speed", speed, "only a file of traffic has a pace; leave it out")
    return source


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
        f"Control             {server.control_url}/__faults and /__calls"
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
