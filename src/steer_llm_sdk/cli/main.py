"""The entry point of `steer-llm`. Each command has a module of its own."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from steer_llm_sdk import __version__
from steer_llm_sdk.cli._settings import name_the_model
from steer_llm_sdk.cli._stdout import OutputLost, forget_stdout, open_streams
from steer_llm_sdk.cli.breakers import breakers
from steer_llm_sdk.cli.calibrate import calibrate
from steer_llm_sdk.cli.demo import demo
from steer_llm_sdk.cli.doctor import doctor
from steer_llm_sdk.cli.evidence import evidence
from steer_llm_sdk.cli.exits import MEANING, Commands, Exit, OneCommand, complain, errors_as_exits, flowing
from steer_llm_sdk.cli.plan import plan
from steer_llm_sdk.cli.record import record
from steer_llm_sdk.cli.run import run
from steer_llm_sdk.cli.runs import runs
from steer_llm_sdk.cli.serve import keys, serve
from steer_llm_sdk.cli.simulate import simulate
from steer_llm_sdk.cli.tools import tools
from steer_llm_sdk.cli.worker import worker

app = typer.Typer(
    name="steer-llm",
    cls=Commands,
    help="Run LLM operations reliably: retries, fallbacks, budgets, and evidence from repeated answers.",
    epilog=MEANING,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (run, serve, doctor, simulate, record, calibrate, demo, worker):
    app.command(cls=OneCommand, help=flowing(_command.__doc__))(_command)
for _name, _group in (
    ("plan", plan),
    ("tools", tools),
    ("breakers", breakers),
    ("runs", runs),
    ("keys", keys),
    ("evidence", evidence),
):
    app.add_typer(_group, name=_name)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"steer-llm {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of the program itself."""
    with errors_as_exits():
        name_the_model()


def main() -> None:
    """Run the command line and leave with its exit code. What a terminal cannot print is replaced, never a crash."""
    open_streams()
    try:
        try:
            app(prog_name="steer-llm")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()
        sys.exit(Exit.NO_READER)
    except OutputLost as error:
        forget_stdout()
        complain(error)
        sys.exit(Exit.OUTPUT_LOST)
