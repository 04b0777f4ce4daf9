"""`steer-llm run --batch`: many requests from a file, their results to another, and no finished line bought twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._show import console, dollars
from steer_llm_sdk.cli.exits import Exit, complain
from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning import RuleBasedPlanner
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry

PATIENCE = 600.0
"""Seconds that a line waits for an open circuit, in all; only then has it failed."""
_LEAST_WAIT = 0.5
_KEYS = ("request", "tool_name", "tool_options", "options", "id")
_BEGINNING = b'{"position": '
"""How every line that is written begins: by it a torn one is told from somebody else's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the command line asks for; a line of the file goes before it. `made` goes into the line's mark: an answer
    of other models or of another schema is not the answer to the same line."""

    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: Mapping[str, Any]
    made: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request. `position` is the number of its line in the file; `mark` tells whether a result belongs to it."""

    position: int
    id: str | None
    request: Any
    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: OrchestrationConfig
    mark: str


# ── the input, read and checked in full before anything is spent ─────────────────────────────────────────────────────


def read_lines(path: str, defaults: Defaults, registry: ToolRegistry) -> list[Line]:
    """Every request of the file. InvalidRequest names the file, the line, the field, what was given and what would do.

    A line is a JSON text, or an object with `request` and what it has of `tool_name`, `tool_options`, `options`, `id`.
    Blank lines are passed over.
    """
    reader = _Reader(path, defaults, registry)
    raw = inputs.bytes_of(path, "--batch").removeprefix(b"\xef\xbb\xbf")
    lines = [reader.read(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise InvalidRequest("--batch", path, "there is no request in it; give one JSON text or object a line")
    return lines


class _Reader:
    def __init__(self, path: str, defaults: Defaults, registry: ToolRegistry) -> None:
        self._path = path
        self._defaults = defaults
        self._registry = registry
        self._planner = RuleBasedPlanner()
        self._seen: dict[str, int] = {}

    def read(self, number: int, raw: bytes) -> Line:
        where = f"{self._path}, line {number}"
        try:
            line = self._line(number, _object(raw))
            self._check(line)
        except InvalidRequest as error:
            field_name = f"{where}: {error.field}" if error.field else where
            raise InvalidRequest(field_name, error.given, error.remedy) from error
        except ValueError as error:  # A tool of somebody else's, or a planner, in words of its own.
            raise InvalidRequest(where, _Raw(raw), str(error)) from error
        return line

    def _line(self, number: int, given: Mapping[str, Any]) -> Line:
        defaults = self._defaults
        name = _text("tool_name", given.get("tool_name")) or defaults.tool_name
        request, tool_options = _request(given), {**defaults.tool_options, **_mapping(given, "tool_options")}
        return Line(
            position=number,
            id=self._id(number, given),
            request=request,
            tool_name=name,
            tool_options=tool_options,
            options=_options({**defaults.options, **_mapping(given, "options")}),
            mark=_mark([request, name, tool_options, defaults.made]),
        )

    def _id(self, number: int, given: Mapping[str, Any]) -> str | None:
        name = _text("id", given.get("id"))
        if name is None:
            return None
        if name in self._seen:
            raise InvalidRequest("id", name, f"line {self._seen[name]} has it already; give each line its own, or none")
        self._seen[name] = number
        return name

    def _check(self, line: Line) -> None:
        tool = self._tool(line)
        try:
            tool.validate_request({"query": line.request} if isinstance(line.request, str) else line.request)
            tool.validate_options(line.tool_options)
        except ValueError:
            raise
        except Exception:
            # A check that breaks says nothing of the line; what comes of it is told when it is asked.
            _log.debug("%r could not check line %d", tool, line.position, exc_info=True)

    def _tool(self, line: Line) -> Tool:
        name = line.tool_name
        if name is None:
            name = self._planner.decide(line.request, self._registry.planning_view()).selected_tool
        tool = self._registry.get_tool(name)
        if tool is None:
            raise InvalidRequest("tool_name", name, f"the tools are {', '.join(self._registry.names())}")
        return tool


class _Raw:
    """Bytes of a file, as an error shows them."""

    def __init__(self, raw: bytes) -> None:
        self._text = raw[:60].decode("utf-8", "replace").strip()

    def __repr__(self) -> str:
        return repr(self._text)


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        given = inputs.strict_json(raw)
    except ValueError as error:
        why = str(error).replace("line 1, ", "")
        raise InvalidRequest("", _Raw(raw), f"{why}; give a text in quotes, or an object, on one line") from error
    if isinstance(given, str):
        return {"request": given}
    if not isinstance(given, dict):
        raise InvalidRequest("", given, 'give a text, or an object such as {"request": "..."}')
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise InvalidRequest(unknown[0], given[unknown[0]], f"the keys of a line are {', '.join(_KEYS)}")
    return given


def _request(given: Mapping[str, Any]) -> Any:
    request = given.get("request")
    if isinstance(request, str):
        if not request.strip():
            raise InvalidRequest("request", request, "give a question or a text; what is there is empty")
        return request
    if not isinstance(request, dict):
        raise InvalidRequest("request", request, "give a text or an object")
    return request


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(key, value, "give an object")
    return value


def _text(key: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise InvalidRequest(key, value, "give a text that is not empty")


def _options(given: Mapping[str, Any]) -> OrchestrationConfig:
    try:
        return OrchestrationConfig.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(("options", *map(str, first["loc"])))
        raise InvalidRequest(place, first["input"], first["msg"].removeprefix("Value error, ")) from error


def _mark(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode("utf-8", "replace")).hexdigest()[:16]


# ── the output: one line for each result, whole or not there ─────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is to be known of a result once it is written. `cost_usd` None: somebody was asked, at an unknown price."""

    status: str
    cost_usd: float | None
    simulated: bool

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Kept:
        output = result["output"]
        if output is None:
            return cls(status=result["status"], cost_usd=None, simulated=False)
        sent = any(tool.get("timeline") for tool in output["per_agent"].values())
        cost = output["cost_usd"]
        return cls(
            status=result["status"],
            cost_usd=0.0 if cost is None and not sent else cost,
            simulated=bool(output["metadata"].get("simulated")),
        )


class Results:
    """The file of results, open for appending, and what is in it. One process at a time may write it.

    A result is one write, so that a kill leaves whole lines and at most one torn one, which is dropped here.
    """

    def __init__(self, path: str, batch: str, lines: Sequence[Line], *, retry_failed: bool) -> None:
        self._path = Path(path)
        self._check_place(Path(batch))
        self._file = self._opened()
        try:
            whole = self._without_torn_line()
            found = [self._found(number, raw, lines) for number, raw in enumerate(whole, start=1)]
            if retry_failed:
                self._leave_out([raw for raw, (_, kept) in zip(whole, found, strict=True) if kept.status == "failed"])
                found = [(position, kept) for position, kept in found if kept.status != "failed"]
        except BaseException:
            self._file.close()
            raise
        self.done: dict[int, Kept] = dict(found)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, line: Line, result: Mapping[str, Any]) -> None:
        """OSError, with the name of the file, where the disk does not take it."""
        record = {"position": line.position, "id": line.id, "mark": line.mark, **result}
        raw = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            while raw:
                raw = raw[self._file.write(raw) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.done[line.position] = Kept.of(result)

    def _check_place(self, batch: Path) -> None:
        if self._path.resolve() == batch.resolve():
            raise InvalidRequest("--out", str(self._path), "that is the file of requests; name another for the results")

    def _opened(self) -> FileIO:
        try:
            file = FileIO(self._path, "ab+")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequest("--out", str(self._path), f"name a file that can be written ({reason})") from error
        if _locked(file):
            return file
        file.close()
        raise InvalidRequest("--out", str(self._path), "another batch is writing it; wait for that, or name another")

    def _without_torn_line(self) -> list[bytes]:
        """The lines of the file. What a kill left of a last one is cut off, and the end of a line put where it lacks."""
        self._file.seek(0)
        *whole, last = self._file.readall().split(b"\n")
        if not last:
            return whole
        if _is_record(last):
            self._file.write(b"\n")
            return [*whole, last]
        if not (last.startswith(_BEGINNING) or _BEGINNING.startswith(last)):
            self._refuse(len(whole) + 1, "it is no result of a batch")
        self._file.truncate(sum(len(line) + 1 for line in whole))
        return whole

    def _found(self, number: int, raw: bytes, lines: Sequence[Line]) -> tuple[int, Kept]:
        if not _is_record(raw):
            self._refuse(number, "it is no result of a batch")
        result = json.loads(raw)
        line = self._asked(result, lines)
        if line is None or line.mark != result["mark"]:
            who = f"line {result['position']}" if result["id"] is None else f"the one with the id {result['id']!r}"
            self._refuse(number, f"it answers another request, or by other models, than {who} of this batch asks")
        return line.position, Kept.of(result)

    def _leave_out(self, gone: Sequence[bytes]) -> None:
        """What is left is written beside the file and then takes its place: there is never half of it."""

    def _refuse(self, number: int, why: str) -> NoReturn:
        raise InvalidRequest("--out", str(self._path), f"line {number}: {why}; name another file, or remove this one")


def _is_record(raw: bytes) -> bool:
    try:
        record = json.loads(raw)
        Kept.of(record)
        return isinstance(record["position"], int) and {"id", "mark"} <= record.keys()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _lock(file: BinaryIO, path: Path) -> None:
    """Held until the file is closed, also by a kill; nothing where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InvalidRequest(
            "--out", str(path), "another batch is writing it; wait for that, or name another"
        ) from None


# ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Batch:
    """Lines that are asked, at most `max_parallel` at a time, and their results."""

    lines: Sequence[Line]
    results: Results
    max_parallel: int
    found: int = field(init=False)

    def __post_init__(self) -> None:
        self.found = len(self.results.done)

    @property
    def todo(self) -> list[Line]:
        return [line for line in self.lines if line.position not in self.results.done]

    async def run(self, orchestrator: ReliableOrchestrator, tell: Callable[[], None]) -> None:
        """Ask what is not done. `tell` is called after each line. OSError where a result cannot be written."""
        waiting = deque(self.todo)

        async def work() -> None:
            while waiting:
                line = waiting.popleft()
                self.results.add(line, await _asked(orchestrator, line))
                tell()

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self.max_parallel, len(waiting))):
                    workers.create_task(work())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    @property
    def statuses(self) -> Counter[str]:
        return Counter(str(result["status"]) for result in self.results.done.values())

    @property
    def cost_usd(self) -> float | None:
        """Of the whole file; None where the price of anything in it is unknown."""
        costs = [(result.get("output") or {}).get("cost_usd") for result in self.results.done.values()]
        return None if None in costs else sum(costs)

    @property
    def code(self) -> Exit:
        statuses = self.statuses
        if statuses["succeeded"] == len(self.lines):
            return Exit.OK
        return Exit.PARTIAL if statuses["succeeded"] + statuses["partial"] else Exit.FAILED

    def account(self) -> dict[str, Any]:
        counts = {status: self.statuses[status] for status in ("succeeded", "partial", "failed")}
        done_before = {"lines": len(self.lines), "found_done": self.found}
        return {**done_before, **counts, "cost_usd": self.cost_usd, "out": str(self.results.path)}


async def _asked(orchestrator: ReliableOrchestrator, line: Line) -> dict[str, Any]:
    """The result of one line, whatever becomes of it. One that an open circuit kept back was not asked: it waits."""
    clock = asyncio.get_running_loop().time
    give_up = clock() + PATIENCE
    while True:
        try:
            output = await orchestrator.run(line.request, line.tool_name, line.tool_options, line.options)
        except BudgetExceeded as error:
            return _raised(error, error.output)
        except Exception as error:
            return _raised(error, None)
        wait = _until_probe(output)
        if wait is None or clock() + wait > give_up:
            return {"status": output.status, "output": output.model_dump(mode="json"), "error": None}
        await asyncio.sleep(wait)


def _raised(error: Exception, output: OrchestrationOutput | None) -> dict[str, Any]:
    finished = None if output is None else output.model_dump(mode="json")
    return {"status": "failed", "output": finished, "error": describe_error(error)}


def _until_probe(output: OrchestrationOutput) -> float | None:
    """Seconds until a circuit lets calls through again; None where something was sent, or it was not the circuit."""
    errors = list((output.errors or {}).values())
    refused = output.status == "failed" and not output.attempts
    if not refused or not errors or any(error["type"] != "CircuitOpen" for error in errors):
        return None
    return max(min(error.get("retry_after") or 0.0 for error in errors), _LEAST_WAIT)


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def progress_bar(batch: Batch, err: Console) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; nothing where nobody looks. Gives what is called after each line."""
    columns = (MofNCompleteColumn(), BarColumn(bar_width=30), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task: TaskID = bar.add_task(_described(batch), total=len(batch.lines), completed=batch.found)
        yield lambda: bar.update(task, completed=len(batch.results.done), description=_described(batch))


def _described(batch: Batch) -> str:
    failed = batch.statuses["failed"]
    return f"{failed} failed" if failed else ""


def show_account(batch: Batch, *, as_json: bool) -> None:
    account = batch.account()
    if as_json:
        print(json.dumps(account, ensure_ascii=False))
    counts = " · ".join(
        f"{account[status]} {status}" for status in ("succeeded", "partial", "failed") if account[status]
    )
    before = f" · {batch.found} of them found done" if batch.found else ""
    cost = "cost unknown" if account["cost_usd"] is None else f"{dollars(account['cost_usd'])} list price"
    complain(
        f"{len(batch.results.done)} of {len(batch.lines)} lines: {counts or 'none'}{before} · {cost} · {account['out']}"
    )


async def carry_out(batch: Batch, registry: ToolRegistry) -> None:
    """Ask what is left to ask, with a bar on a terminal."""
    async with ReliableOrchestrator(registry=registry) as orchestrator:
        with progress_bar(batch, console(stderr=True)) as tell:
            await batch.run(orchestrator, tell)
