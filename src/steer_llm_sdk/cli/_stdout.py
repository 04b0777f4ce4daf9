"""Standard output of the process: whole, apart from what tools print where that is asked for, and an error where it
cannot be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from errno import EBADF
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, TextIO


class OutputLost(OSError):
    """Standard output cannot be written: it is closed, or what it goes to is full. That its reader has left is a
    BrokenPipeError."""

    def __str__(self) -> str:
        return f"the output cannot be written: {'it is closed' if self.errno == EBADF else self.strerror}"


class _Raw(FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error


class Stdout(TextIOWrapper):
    """Text to a file descriptor, which stays open. Buffered also where Python is told not to: a pipe takes a long text
    in parts, and without a buffer all but the first are lost."""

    def __init__(self, descriptor: int, like: TextIO | None) -> None:
        super().__init__(
            BufferedWriter(_Raw(descriptor, "wb", closefd=False)),
            encoding=None if like is None else like.encoding,
            errors="replace",  # What a terminal cannot print is no crash.
            line_buffering=isinstance(like, TextIOWrapper) and (like.line_buffering or like.write_through),
        )


def open_streams() -> None:
    """Put `Stdout` in the place of stdout. A stream that the process was begun without gets one that gives nothing and
    takes nothing, so that no file is opened in its place; of stderr, all is taken and forgotten."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        _reopen(descriptor, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if sys.platform != "win32" and (sys.stdout is None or _is(sys.stdout, 1)):
        sys.stdout = sys.__stdout__ = Stdout(1, sys.stdout)  # type: ignore[misc]  # Typed as final.
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")


def refuse_closed(out: TextIO) -> None:
    """OutputLost where stdout was closed from the beginning, or takes nothing: then nothing need be bought for it."""
    if isinstance(out, Stdout):
        try:
            os.write(out.fileno(), b"")
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error


@contextmanager
def stdout_of(*, as_json: bool) -> Iterator[TextIO]:
    """Stdout, for what the command itself says. With `as_json` whatever else is printed goes to stderr, for a line of
    somebody else's would leave no JSON to be read: by tools, by the processes that they start, and by threads of theirs
    that are still there when the command has ended."""
    if not as_json:
        yield sys.stdout
        return
    stdout = _apart(sys.stdout)
    with redirect_stdout(sys.stderr):
        try:
            try:
                yield stdout
            finally:
                stdout.flush()
        except (BrokenPipeError, OutputLost):
            forget_stdout(stdout)
            raise


def forget_stdout(out: TextIO | None = None) -> None:
    """Nobody reads it any more, as behind `| head`: what is still printed goes nowhere, and nothing is said of it."""
    _reopen((out or sys.stdout).fileno(), os.O_WRONLY)


def _apart(stdout: TextIO) -> TextIO:
    """Stdout under another number, that no process inherits; under its own there is stderr from now on. Where `stdout`
    is not that of the process, as in a test, that is left as it is."""
    if not isinstance(stdout, Stdout):
        return stdout
    stdout.flush()
    apart = Stdout(os.dup(1), stdout)
    os.dup2(2, 1)
    return apart


def _is(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _reopen(descriptor: int, how: int) -> None:
    nowhere = os.open(os.devnull, how)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
