"""The file of results of a batch: one line for each, whole or not there, and never one that was paid for twice."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from steer_llm_sdk.cli._batch_lines import Line
from steer_llm_sdk.cli._show import is_simulated
from steer_llm_sdk.errors import InvalidRequest

_BEGINNING = b'{"position": '
"""How every line that is written begins: by it a torn one is told from somebody else's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is to be known of a result once it is written. `cost_usd` None: nobody said what it cost. It is 0 where
    nothing was sent, or the tool computes on this machine. `simulated` None: nothing was to be paid, whoever answered.
    """

    status: str
    cost_usd: float | None
    simulated: bool | None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Kept:
        output, status = result["output"], str(result["status"])
        if output is None:
            return cls(status=status, cost_usd=None, simulated=False)
        attempts = [line for entry in output["per_agent"].values() for line in entry.get("timeline", ())]
        free = output["metadata"].get("local") or (status == "failed" and not attempts and not output["usage"])
        cost = 0.0 if output["cost_usd"] is None and free else output["cost_usd"]
        return cls(
            status=status,
            cost_usd=cost,
            simulated=is_simulated(output["metadata"], attempts) if cost is None or cost else None,
        )


class Results:
    """The file, open for appending, and what is in it. One process at a time may write it.

    A result is written at once, so that a kill leaves whole lines and at most one torn one, which is cut off here.
    InvalidRequest where the file holds anything but results of these lines: then nothing in it is touched.
    """

    def __init__(self, path: str, batch: str, lines: Sequence[Line]) -> None:
        self.path = path
        if Path(path).resolve() == Path(batch).resolve():
            raise InvalidRequest("--out", path, "that is the file of requests; name another one for the results")
        self._by_id = {line.id: line for line in lines if line.id is not None}
        self._by_position = {line.position: line for line in lines if line.id is None}
        self._open()
        try:
            self._lines = self._read()
        except BaseException:
            self._file.close()
            raise
        self.done = {position: Kept.of(json.loads(raw)) for position, raw in self._lines.items()}

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, line: Line, result: Mapping[str, Any]) -> None:
        """OSError, with the name of the file, where the disk does not take it."""
        record = {"position": line.position, "id": line.id, "mark": line.mark, **result}
        self._write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.done[line.position] = Kept.of(record)

    def forget_failed(self) -> None:
        """Leave out what failed. The rest is written beside the file and takes its place: there is never half of it."""
        self.done = {position: kept for position, kept in self.done.items() if kept.status != "failed"}
        beside = Path(f"{self.path}.new")
        beside.write_bytes(b"".join(self._lines[position] + b"\n" for position in self.done))
        self._file.close()
        beside.replace(self.path)
        self._open()

    def _open(self) -> None:
        try:
            self._file = FileIO(self.path, "ab+")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequest("--out", self.path, f"name a file that can be written ({reason})") from error
        why = None
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            why = "name a file; what is there cannot be read again"
        elif not _locked(self._file):
            why = "another batch is writing it; wait for it, or name another file"
        if why is not None:
            self._file.close()
            raise InvalidRequest("--out", self.path, why)

    def _write(self, raw: bytes) -> None:
        try:
            while raw:
                raw = raw[self._file.write(raw) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def _read(self) -> dict[int, bytes]:
        """What is there, by the position of the line that it answers."""
        self._file.seek(0)
        *whole, last = self._file.readall().split(b"\n")
        found = {self._position(number, raw): raw for number, raw in enumerate(whole, start=1)}
        if last:
            self._mend(found, len(whole) + 1, last, sum(len(raw) + 1 for raw in whole))
        return found

    def _mend(self, found: dict[int, bytes], number: int, last: bytes, start: int) -> None:
        """The end of a file that somebody was killed over: a whole line without its end, or a torn one."""
        if _record(last) is not None:
            found[self._position(number, last)] = last
            self._write(b"\n")
        elif last.startswith(_BEGINNING) or _BEGINNING.startswith(last):
            self._file.truncate(start)
        else:
            self._refuse(number, "it is no result of a batch")

    def _position(self, number: int, raw: bytes) -> int:
        record = _record(raw)
        if record is None:
            self._refuse(number, "it is no result of a batch")
        name = record["id"]
        line = self._by_position.get(record["position"]) if name is None else self._by_id.get(name)
        if line is None:
            self._refuse(number, f"this batch has no {_named(record)} to which it is the answer")
        if line.mark != record["mark"]:
            self._refuse(number, f"{_named(record)} asks something else now, or asks it of other models")
        return line.position

    def _refuse(self, number: int, why: str) -> NoReturn:
        raise InvalidRequest("--out", self.path, f"its line {number} does not fit: {why}; name another file")


def _named(record: Mapping[str, Any]) -> str:
    return f"line {record['position']}" if record["id"] is None else f"line with the id {record['id']!r}"


def _record(raw: bytes) -> dict[str, Any] | None:
    """A line as it was written; None where it is none of ours."""
    try:
        record = json.loads(raw)
        Kept.of(record)
        known = isinstance(record["position"], int) and isinstance(record["mark"], str)
        return record if known and isinstance(record["id"], (str, type(None))) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _locked(file: FileIO) -> bool:
    """Whether nobody else has the file. The lock ends with the process; where the system knows none, it is had."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
