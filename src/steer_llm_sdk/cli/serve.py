"""`steer-llm serve`: the HTTP service."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer_llm_sdk.cli._command import Form, command_of
from steer_llm_sdk.cli.exits import Group, OneCommand, errors_as_exits, refuse
from steer_llm_sdk.cli.worker import durable_of, orchestrator_of
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.providers._endpoint import is_loopback
from steer_llm_sdk.providers.pydantic_ai_adapter import LOADER

if TYPE_CHECKING:
    from fastapi import FastAPI

IN_MEMORY = ":memory:"
keys = typer.Typer(cls=Group, help="API keys of the service.", no_args_is_help=True)


def serve(
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes any free port.", min=0, max=65535)] = 8788,
    host: Annotated[str, typer.Option(help="Beyond loopback only with --keys.")] = "127.0.0.1",
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may ask; `steer-llm keys new TENANT` makes an entry.")
    ] = None,
    runs: Annotated[
        str,
        typer.Option(
            metavar="FILE|URL", help="What runs are kept in: a SQLite file, or postgresql://… together with --durable."
        ),
    ] = "steer-runs.db",
    durable: Annotated[
        bool, typer.Option("--durable", help="Runs outlive their process: another one goes on with them.")
    ] = False,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Your tools: a ToolRegistry, or a ReliableOrchestrator with its planner and configuration.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that serve the port together.", min=1, max=64)] = 1,
    simulated: Annotated[bool, typer.Option("--simulated", help="Let recorded: models answer.")] = False,
) -> None:
    """Serve runs, the formats of OpenAI and Anthropic, and the web view.

    On loopback no key is needed. Ctrl-C lets the runs under way end, for ten seconds at most.
    """
    with errors_as_exits():
        if keys is None and not is_loopback(f"http://{f'[{host}]' if ':' in host else host}"):
            refuse("host", host, "beyond loopback everybody could spend your money; give --keys FILE, or leave it out")
        if runs == IN_MEMORY and (durable or workers > 1):
            refuse("--runs", runs, "what several processes are to know is kept in a file; name one")
        served = _Served(None if keys is None else str(keys), runs, durable, app, simulated)
        if workers > 1:
            served.made()  # What is wrong with it is told here, and not by each process.
        _listen(served if workers > 1 else served(), host, port, workers)


@dataclass(frozen=True)
class _Served:
    """What is served, as each of several processes makes it for itself."""

    keys: str | None
    runs: str
    durable: bool
    app: str | None
    simulated: bool

    def __call__(self) -> FastAPI:
        return _loaded(self.made)

    def made(self) -> FastAPI:
        from steer_llm_sdk.orchestration import ReliableOrchestrator
        from steer_llm_sdk.service import KeyRing, create_app

        ring = None if self.keys is None else KeyRing.read(Path(self.keys))
        remembered = None if self.durable else self._remembered()
        if self.app is None:
            made = ReliableOrchestrator(registry=_recorded() if self.simulated else None, store=remembered)
        else:
            made = orchestrator_of(self.app, remembered)
        if self.durable:
            made = durable_of(self.runs if "://" in self.runs else f"sqlite:///{self.runs}.durable", made)
        return create_app(made, keys=ring, runs=self.runs, simulated=self.simulated)

    def _remembered(self) -> str | None:
        """Where keyed runs are remembered: beside the others, so that all processes know them, unless STEER_STORE says
        where."""
        beside = None if self.runs == IN_MEMORY or "://" in self.runs else f"sqlite:///{self.runs}"
        return os.environ.get("STEER_STORE") or beside


COLLECTED = (10_000, 20, 50)
"""Objects made and not gone again after which the young ones are looked at; so many times that, the older ones."""


def _loaded(made: Callable[[], FastAPI]) -> FastAPI:
    """What is made, once the libraries of models are there as well, whose loading would hold up everybody for seconds.
    The garbage collector is spared all that was loaded, which takes it a fifth of a second each time that it looks. It
    looks seldom: a run leaves no cycles behind, and a look at those under way holds up all of them."""
    gc.disable()
    app = made()
    for thread in threading.enumerate():
        if thread.name == LOADER:
            thread.join()
    gc.freeze()
    gc.set_threshold(*COLLECTED)
    gc.enable()
    return app


def _recorded() -> ToolRegistry:
    """The tools that are there without any of one's own, and one that asks the recording five times."""
    registry = ToolRegistry()
    for name in registry.names():
        if (tool := registry.get_tool(name)) is not None:
            registry.register_tool(tool)
    asked = command_of(["recorded:demo"], None, 5, {}, Form.of(None, ["answer"]), {})
    for tool in asked.registry():
        registry.register_tool(tool)
    return registry


def _listen(app: object, host: str, port: int, workers: int) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from steer_llm_sdk.service._listener import Listener
    from steer_llm_sdk.service._server import MOST_CONNECTIONS, PatientProtocol
    from steer_llm_sdk.service.app import DRAIN

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=workers > 1,
        workers=workers,
        host=host,
        port=port,
        log_level="warning",
        http=PatientProtocol,
        loop="asyncio",  # The clock of uvloop stands still between two turns, and knows whole milliseconds only.
        ws="none",
        proxy_headers=False,  # Nobody asks who is behind a proxy: a key says who it is.
        backlog=1,  # Of a Listener: connections taken in one turn.
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        # Connections that wait for a run are open as long as the run has time to end.
        timeout_graceful_shutdown=int(DRAIN),
        timeout_worker_healthcheck=60,
        server_header=False,
    )
    try:
        bound = config.bind_socket()
    except SystemExit:
        refuse("port", port, f"it cannot be had on {host}; give another")
    listener = Listener(bound.family, bound.type, bound.proto, bound.detach())
    host, port = listener.getsockname()[:2]
    print(
        f"steer-llm serves on http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops it)", file=sys.stderr
    )
    if workers == 1:
        uvicorn.Server(config).run([listener])
    else:
        Multiprocess(config, [listener]).run()


def new(
    tenant: Annotated[str, typer.Argument(help="On whose behalf runs are made with it.", show_default=False)],
    admin: Annotated[bool, typer.Option("--admin", help="It may force breakers.")] = False,
) -> None:
    """Make an API key: it is shown once, on stderr; the entry for the file of keys, with its hash, on stdout."""
    with errors_as_exits():
        from pydantic import ValidationError

        from steer_llm_sdk.service import Key, new_key

        secret, digest = new_key()
        try:
            Key(tenant=tenant, sha256=digest, admin=admin)
        except ValidationError:
            refuse("tenant", tenant, "give 1 to 64 letters, digits, '.', '_' or '-'")
        print(f"The key of {tenant}, which is not kept anywhere:\n\n  {secret}\n", file=sys.stderr)
        print(f'[[key]]\ntenant = "{tenant}"\nsha256 = "{digest}"' + ("\nadmin = true" if admin else ""))


keys.command(cls=OneCommand)(new)
