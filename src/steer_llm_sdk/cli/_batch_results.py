"""The file of results of a batch: one line for each, whole or not there, and never one that was paid for twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from steer_llm_sdk.cli._batch_lines import Line
from steer_llm_sdk.errors import InvalidRequest

_BEGINNING = b'{"position": '
"""How every line that is written begins: by it a torn one is told from somebody else's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is to be known of a result once it is written. `cost_usd` None: something was sent, at an unknown price."""

    status: str
    cost_usd: float | None
    simulated: bool

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Kept:
        output = result["output"]
        if output is None:
            return cls(status=str(result["status"]), cost_usd=None, simulated=False)
        sent = any(tool["attempts"] for tool in output["per_agent"].values())
        cost = output["cost_usd"]
        return cls(
            status=str(result["status"]),
            cost_usd=0.0 if cost is None and not sent else cost,
            simulated=bool(output["metadata"].get("simulated")),
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
            self._lines = dict(self._matched(self._whole_lines()))
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
        if not _locked(self._file):
            self._file.close()
            raise InvalidRequest("--out", self.path, "another batch is writing it; wait for it, or name another file")

    def _write(self, raw: bytes) -> None:
        try:
            while raw:
                raw = raw[self._file.write(raw) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def _whole_lines(self) -> list[tuple[bytes, Callable[[], object]]]: ...
