"""`steer-llm serve`: the HTTP service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steer_llm_sdk.cli.exits import Group, OneCommand, errors_as_exits, refuse
from steer_llm_sdk.providers._endpoint import is_loopback

keys = typer.Typer(cls=Group, help="API keys of the service.", no_args_is_help=True)


def serve(
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes any free port.", min=0, max=65535)] = 8788,
    host: Annotated[str, typer.Option(help="Beyond loopback only with --keys.")] = "127.0.0.1",
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may ask; `steer-llm keys new TENANT` makes an entry.")
    ] = None,
    runs: Annotated[
        str, typer.Option(metavar="FILE", help="The SQLite file that ended runs are kept in.")
    ] = "steer-runs.db",
    simulated: Annotated[bool, typer.Option("--simulated", help="Let recorded: models answer.")] = False,
) -> None:
    """Serve runs, chat completions in OpenAI's format, and the web view.

    On loopback no key is needed. Ctrl-C lets the runs under way end, for ten seconds at most.
    """
    with errors_as_exits():
        if keys is None and not is_loopback(f"http://{f'[{host}]' if ':' in host else host}"):
            refuse("host", host, "beyond loopback everybody could spend your money; give --keys FILE, or leave it out")
        from steer_llm_sdk.service import KeyRing, create_app

        ring = None if keys is None else KeyRing.read(keys)
        from steer_llm_sdk.orchestration import ReliableOrchestrator

        app = create_app(ReliableOrchestrator(), keys=ring, runs=runs, simulated=simulated)
        _listen(app, host, port)


def _listen(app: object, host: str, port: int) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=host,
        port=port,
        log_level="warning",
        http="h11",
        h11_max_incomplete_event_size=65_536,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=15,
        server_header=False,
    )
    try:
        listener = config.bind_socket()
    except SystemExit:
        refuse("port", port, f"it cannot be had on {host}; give another")
    host, port = listener.getsockname()[:2]
    print(
        f"steer-llm serves on http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops it)", file=sys.stderr
    )
    uvicorn.Server(config).run([listener])


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
