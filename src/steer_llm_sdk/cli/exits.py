"""Exit codes, and which error leads to which."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from steer_llm_sdk.cli._show import printable
from steer_llm_sdk.cli._stdout import OutputLost, forget_stdout
from steer_llm_sdk.errors import BudgetExceeded, ConflictError, InvalidRequest, OrchestratorError, ProviderError
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration.output import OrchestrationOutput


class Exit(IntEnum):
    """The exit codes of `steer-llm`."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    BUDGET = 3
    CONFLICT = 4
    PARTIAL = 5
    OUTPUT_LOST = 74
    INTERRUPTED = 130
    NO_READER = 141


_WANTS_JSON = "steer_llm_sdk.wants_json"

MEANING = (
    "Exit codes: 0 answered; 1 no answer: every model or tool failed; "
    "2 the command, its input or a name cannot be used; 3 a budget or the time was exceeded; "
    "4 the idempotency key was used for another request; 5 a partial answer, or of a batch some lines without one; "
    "74 the output could not be written; 130 interrupted; 141 whoever read the output has left."
)

BAD_INPUT_CODES = frozenset({"validation", "not_found"})
"""Error codes of a failed output for which only another request can succeed."""


class Refused(typer.Exit):
    """Leaves with BAD_INPUT; what is wrong has been said on stderr."""

    def __init__(self, error: InvalidRequest) -> None:
        super().__init__(Exit.BAD_INPUT)
        self.error = error


def complain(message: object) -> None:
    """One line on stderr, without what would move a terminal's cursor: some of it is the words of others."""
    print(f"steer-llm: {printable(str(message))}", file=sys.stderr)


def refuse(field: str, given: object, remedy: str) -> NoReturn:
    """Leave with BAD_INPUT and one sentence: the field, what was given, and how to mend it."""
    error = InvalidRequest(field, given, remedy)
    complain(error)
    raise Refused(error)


def code_of(output: OrchestrationOutput) -> Exit:
    if output.status == "succeeded":
        return Exit.OK
    if output.status == "partial":
        return Exit.PARTIAL
    error = output.content.get("error", {}) if isinstance(output.content, dict) else {}
    # A ValueError out of a tool that was asked, and is not its word on the request, is a bug of the tool.
    of_input = not output.attempts or error.get("type") == "InvalidRequest" or error.get("status_code") is not None
    return Exit.BAD_INPUT if of_input and error.get("code") in BAD_INPUT_CODES else Exit.FAILED


@contextmanager
def errors_as_exits(*, as_json: bool = False, out: TextIO | None = None) -> Iterator[None]:
    """Turn every error that a caller can act on into one sentence on stderr and an exit code.

    With `as_json` the error is on `out` as well, by default stdout, as {"error": {...}}.
    """
    try:
        yield
    except Refused as refusal:
        if as_json:
            _print_json(refusal.error, out)
        raise
    except (BrokenPipeError, OutputLost):
        raise
    except (ValueError, ImportError, OrchestratorError, ProviderError, OSError) as error:
        complain(error)
        if as_json:
            _print_json(error, out)
        raise typer.Exit(_code_of_error(error)) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # A bug: its traceback is for whoever mends it.
        if as_json:
            _print_json(error, out)
        raise
    except KeyboardInterrupt as error:
        complain("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from error


def _code_of_error(error: Exception) -> Exit:
    if isinstance(error, BudgetExceeded):
        return Exit.BUDGET
    if isinstance(error, ConflictError):
        return Exit.CONFLICT
    return Exit.BAD_INPUT if isinstance(error, (ValueError, ImportError)) else Exit.FAILED


class UsageError(ValueError):
    """A command line that cannot be read."""


def _without_type_of_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def flowing(text: str | None) -> str:
    """Help whose paragraphs are filled by whoever shows them: a line of the source is no line of a terminal."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text or ""))


@contextmanager
def _quiet_without_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        forget_stdout()
        raise typer.Exit(Exit.NO_READER) from None


@contextmanager
def _quiet_help() -> Iterator[None]:
    try:
        yield
    except SystemExit:  # What shows the help leaves with 1 where its reader has left, as if the command had failed.
        raise typer.Exit(Exit.NO_READER) from None


class OneCommand(TyperCommand):
    """A command whose help does not say of a flag that it is a <bool>."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_type_of_flags(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _quiet_help():
            super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group whose help does not say so either."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_type_of_flags(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _quiet_help():
            super().format_help(ctx, formatter)


class Commands(Group):
    """The commands, with a wrong command line told as JSON as well where --json is in it.

    The contexts are typer's own, of a class that it does not make public.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Before parsing: a command line that cannot be parsed has no options that could be asked for.
        ctx.meta[_WANTS_JSON] = "--json" in args[: args.index("--") if "--" in args else None]
        with _quiet_without_reader():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _quiet_without_reader():
                return super().invoke(ctx)
        except typer.TyperException as error:
            said = error.format_message()
            if ctx.meta[_WANTS_JSON]:
                _print_json(UsageError(said))
            where = getattr(error, "ctx", None)
            if where is None or type(error).__name__ == "NoArgsIsHelpError":  # Which typer does not make public.
                raise
            complain(f"{' '.join(said.split()).rstrip('.')}; `{where.command_path} -h` says what can be given")
            raise typer.Exit(Exit.BAD_INPUT) from error


def _print_json(error: Exception, out: TextIO | None = None) -> None:
    """The error; beside it the output that a budget's excess left: what was finished, or what was tried."""
    output = error.output if isinstance(error, BudgetExceeded) else None
    told = {} if output is None else {"output": output.model_dump(mode="json")}
    print(json.dumps({"error": describe_error(error), **told}, ensure_ascii=False), file=out)
