"""`steer-llm record`: a proxy that records your own traffic, for `steer-llm simulate` to replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steer_llm_sdk.cli.exits import complain, errors_as_exits
from steer_llm_sdk.cli.simulate import serve
from steer_llm_sdk.providers._endpoint import without_password
from steer_llm_sdk.providers.simulated import SimulatedServer
from steer_llm_sdk.providers.simulated.proxy import ProxyUpstream
from steer_llm_sdk.providers.simulated.traffic import TrafficRecorder


def record(
    upstream: Annotated[str, typer.Option(help="The endpoint to pass requests on to: https://api.openai.com")],
    out: Annotated[Path, typer.Option(help="The file to append to, one JSON object per line.", dir_okay=False)],
    redact: Annotated[
        list[str] | None,
        typer.Option(help="A JSON field whose values are not kept, at any depth, in any case. May be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen. Loopback only, unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8788,
) -> None:
    """Pass requests on to an endpoint and keep them, with what came back and how fast. Keys are never kept.

    Replay: steer-llm simulate --upstream FILE, with --fault if wanted. Text that streams piece by piece is kept as it
    is; to leave it out, redact the field it comes in (content for OpenAI, text for Anthropic).

    While it runs, GET /__calls counts the calls, and PUT /__faults with {"faults": ["503:rate=0.2"], "seed": 0} makes
    some of them fail.
    """
    with errors_as_exits():
        recorder = TrafficRecorder(ProxyUpstream(upstream), out, redact or ())
        try:
            serve(SimulatedServer(recorder, host=host, port=port), f"Recording {without_password(upstream)} to {out}")
        except KeyboardInterrupt:
            complain(f"kept {recorder.kept} exchange{'' if recorder.kept == 1 else 's'} in {out}")
            raise
