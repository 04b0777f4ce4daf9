"""Exit codes, and which error ends in which."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

import typer

from steer_llm_sdk.errors import BudgetExceeded, ConflictError, InvalidRequest, OrchestratorError, ProviderError
from steer_llm_sdk.orchestration.output import OrchestrationOutput


class Exit(IntEnum):
    """What `steer-llm` says to the shell."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    BUDGET = 3
    CONFLICT = 4
    PARTIAL = 5
    INTERRUPTED = 130


MEANING = (
    "Exit codes: 0 answered; 1 no answer: every model or tool failed; "
    "2 the command, its input or a name cannot be used; 3 a budget or the time was exceeded; "
    "4 the idempotency key was used for another request; 5 a partial answer, or of a batch some lines without one; "
    "130 interrupted."
)

BAD_INPUT_CODES = frozenset({"validation", "not_found"})
"""Codes of a failed output that say: another request would do, the same one never will."""


def complain(message: object) -> None:
    print(f"steer-llm: {message}", file=sys.stderr)


def refuse(field: str, given: object, remedy: str) -> NoReturn:
    """Leave with BAD_INPUT and one sentence: the field, what was given, and what would do."""
    complain(InvalidRequest(field, given, remedy))
    raise typer.Exit(Exit.BAD_INPUT)


def code_of(output: OrchestrationOutput) -> Exit:
    if output.status == "succeeded":
        return Exit.OK
    if output.status == "partial":
        return Exit.PARTIAL
    error = output.content.get("error", {}) if isinstance(output.content, dict) else {}
    return Exit.BAD_INPUT if error.get("code") in BAD_INPUT_CODES else Exit.FAILED


@contextmanager
def errors_as_exits() -> Iterator[None]:
    """One sentence on stderr and the right code, for every error that a caller can do something about."""
    try:
        yield
    except BudgetExceeded as error:
        complain(error)
        raise typer.Exit(Exit.BUDGET) from error
    except ConflictError as error:
        complain(error)
        raise typer.Exit(Exit.CONFLICT) from error
    except (ValueError, ImportError) as error:
        complain(error)
        raise typer.Exit(Exit.BAD_INPUT) from error
    except (OrchestratorError, ProviderError, OSError) as error:
        complain(error)
        raise typer.Exit(Exit.FAILED) from error
    except KeyboardInterrupt as error:
        complain("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from error
