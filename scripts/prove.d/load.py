"""The service under load: two processes of `steer-llm serve` on one file of runs, and whoever asks them.

For `--seconds`: 300 runs a second of a tool that takes 50 ms, 200 open streams of events, each of a run that tells
something twice a second, and, to compare, chat completions that are asked of the service and of the provider itself, in
turns. Then, for a quarter of that, while the streams go on: 50 runs a second of a model behind real HTTP (the simulated
provider). It is held to this:

- every run is answered once, with what it was asked; every stream has every event, in order, and its end; what the
  provider was asked is what was sent;
- the rates are kept;
- afterwards no task is left, beside those there were before;
- in the last half the memory of each process stays within 10 % of its mean;
- the first token of a stream comes at most 5 ms later than from the provider itself, in 99 of 100 cases.

Then defects are planted in the service, one at a time, for `--planted` seconds each, at a fifth of the rates: each must
break its promise, which is kept without it.

    sh scripts/prove load [--seconds 60] [--planted 8]

All of it shares the cores of one machine: who asks, the provider, and the service. Nothing else should run on it.
Chat completions are asked by a process of their own: the one that makes the load reads 600 answers and 400 events a
second, and what comes while it does so would wait for it, whoever sent it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from steer_llm_sdk.orchestration import Tool, ToolRegistry

RATE, WORK = 300, 0.05
PROVIDER_RATE = 50
BEGUN = 1.04
"""Times as many are begun: those of the last moments are not answered yet when the rate is taken."""
STREAMS, TICK = 200, 0.5
PAIRS = 10
"""Chat completions a second that are asked of the service and of the provider, each."""
FLAT = 0.10
FIRST_TOKEN_MS = 5.0
QUESTION = "crux-test-#0"
MODEL = "gpt-4o-2024-05-13"
IDLE = 10.0
"""Seconds for which who asks keeps a connection that he does not use; the service does so for 30."""
KEYED = 0.1
"""Of the runs that have an Idempotency-Key."""
WARM = 3.0
"""Seconds of the same load before anything is measured."""
PLANT = "STEER_PLANTED"
SHARE = 0.2
"""Of rates and streams, where a defect is planted: what is looked for there is no speed, and others may work then."""

# ── in the processes of the service ──────────────────────────────────────────────────────────────────────────────────


class Work(Tool):
    """Takes 50 ms, and gives back what it was asked."""

    name = "work"
    description = "takes 50 ms"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        await asyncio.sleep(WORK)
        return {"content": request["query"], "usage": {"total_tokens": 1}, "cost_usd": 0.0}


class Ticks(Tool):
    """Tells its number `ticks` times."""

    name = "ticks"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        from steer_llm_sdk.models.events import StreamDeltaEvent

        assert event_manager is not None
        for number in range(request["ticks"]):
            await event_manager.emit_delta(StreamDeltaEvent(delta={"event_type": "tick", "data": {"number": number}}))
            await asyncio.sleep(TICK)
        return request["ticks"]


class Probe(Tool):
    """What stands in the process that it happens to run in."""

    name = "probe"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        gc.collect()
        kinds = Counter(
            re.sub(r" at 0x.*|<|coroutine object ", "", str(task.get_coro())) for task in asyncio.all_tasks()
        )
        return {"pid": os.getpid(), "tasks": dict(kinds)}


def __getattr__(name: str) -> ToolRegistry:
    """`--app load:registry`; nobody else needs what it needs."""
    if name != "registry":
        raise AttributeError(name)
    from steer_llm_sdk.orchestration.tools import LLMTool

    registry = ToolRegistry()
    for tool in (Work(), Ticks(), Probe(), LLMTool("ask", model=f"openai:{MODEL}")):
        registry.register_tool(tool)
    return registry


# ── defects ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def a_task_is_left_of_each_run() -> None:
    kept = Work.execute

    async def leaks(self: Work, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        left.add(asyncio.get_running_loop().create_task(asyncio.Event().wait()))
        return await kept(self, request, options, event_manager)

    left: set[Any] = set()
    Work.execute = leaks  # type: ignore[method-assign]  # the defect


def a_list_grows_with_each_run() -> None:
    from steer_llm_sdk.service.view import Weather

    kept, seen = Weather.note, []

    def note(self: Weather, output: Any) -> None:
        seen.append(bytearray(b"x" * 1_000_000))
        kept(self, output)

    Weather.note = note  # type: ignore[method-assign]  # the defect


def one_run_in_a_hundred_gets_the_answer_of_another() -> None:
    kept = Work.execute
    last: list[Any] = [None]

    async def mixes(self: Work, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        found = await kept(self, request, options, event_manager)
        given = last[0] if random.random() < 0.01 and last[0] is not None else found
        last[0] = found
        return given

    Work.execute = mixes  # type: ignore[method-assign]  # the defect


def one_event_in_a_hundred_is_dropped() -> None:
    from steer_llm_sdk.service.runs import Run

    kept = Run.tell

    def tell(self: Run, event: Any) -> None:
        if event["type"] != "delta" or random.random() >= 0.01:
            kept(self, event)

    Run.tell = tell  # type: ignore[method-assign]  # the defect


def one_run_in_a_hundred_is_not_answered() -> None:
    kept = Work.execute

    async def fails(self: Work, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        if random.random() < 0.01:
            raise asyncio.CancelledError
        return await kept(self, request, options, event_manager)

    Work.execute = fails  # type: ignore[method-assign]  # the defect


def a_request_is_sent_to_the_provider_twice() -> None:
    from steer_llm_sdk.providers.pydantic_ai_adapter import PydanticAIAdapter

    kept = PydanticAIAdapter.request

    async def twice(self: Any, request: Any, on_text: Any = None) -> Any:
        if random.random() < 0.05:
            await kept(self, request, on_text)
        return await kept(self, request, on_text)

    PydanticAIAdapter.request = twice  # type: ignore[method-assign]  # the defect


def each_piece_of_a_stream_is_held_back() -> None:
    from steer_llm_sdk.service import chat

    kept = chat._Exchange.show

    async def late(*given: Any, more: bool = True) -> None:
        await asyncio.sleep(0.2)
        await kept(*given, more=more)

    chat._Exchange.show = late  # type: ignore[method-assign]  # the defect


def the_loop_is_held_up_by_each_run() -> None:
    kept = Work.execute

    async def busy(self: Work, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        end = time.perf_counter() + 0.06
        while time.perf_counter() < end:
            pass
        return await kept(self, request, options, event_manager)

    Work.execute = busy  # type: ignore[method-assign]  # the defect


PLANTED: dict[Callable[[], None], str] = {
    a_task_is_left_of_each_run: "tasks",
    a_list_grows_with_each_run: "memory",
    one_run_in_a_hundred_gets_the_answer_of_another: "lost",
    one_run_in_a_hundred_is_not_answered: "lost",
    one_event_in_a_hundred_is_dropped: "lost",
    a_request_is_sent_to_the_provider_twice: "lost",
    each_piece_of_a_stream_is_held_back: "first token",
    the_loop_is_held_up_by_each_run: "rate",
}
"""With the promise that each must break."""

if planted := os.environ.get(PLANT):
    {defect.__name__: defect for defect in PLANTED}[planted]()

# ── who asks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Lost(Exception):
    """No answer came. It says on what kind of connection."""


class Connections:
    """Plain HTTP/1.1 to one place, on connections that are kept open: what it costs is what asking has to cost.

    What got no answer is sent again only if it has an Idempotency-Key, and is counted in `resent`.
    """

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host, self._port = str(place.hostname), int(place.port or 80)
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.resent = 0

    @asynccontextmanager
    async def asked(
        self, method: str, path: str, body: Any = None, more: str = "", key: str = ""
    ) -> AsyncIterator[Answer]:
        said = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{more}"
        head += f"Idempotency-Key: {key}\r\n" if key else ""
        sent = f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said
        while True:
            since, reader, writer = await self._connection()
            try:
                writer.write(sent)
                told = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                break
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                writer.close()
                if not key:
                    kind = "a new connection" if since is None else f"one unused for {time.monotonic() - since:.3f} s"
                    raise Lost(f"{method} {path} on {kind}: {error!r}") from error
                self.resent += 1
        try:
            answer = Answer(int(told.split(" ", 2)[1]), told, reader)
            yield answer
            await answer.rest()
        except BaseException:
            writer.close()
            raise
        if "connection: close" in told:
            writer.close()
        else:
            self._idle.append((time.monotonic(), reader, writer))

    async def json(self, method: str, path: str, body: Any = None, more: str = "", key: str = "") -> tuple[int, Any]:
        async with self.asked(method, path, body, more, key) as answer:
            return answer.status, json.loads(await answer.rest() or b"null")

    async def _connection(self) -> tuple[float | None, asyncio.StreamReader, asyncio.StreamWriter]:
        """Since when nobody has used it, None for a new one; and its two ends. Any of them, so that each process gets
        its share, but none that the server is about to close."""
        while self._idle:
            at = random.randrange(len(self._idle))
            self._idle[at], self._idle[-1] = self._idle[-1], self._idle[at]
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < IDLE and not (reader.at_eof() or writer.is_closing()):
                return since, reader, writer
            writer.close()
        return None, *await asyncio.open_connection(self._host, self._port, limit=1 << 20)

    def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()


class Answer:
    def __init__(self, status: int, head: str, reader: asyncio.StreamReader) -> None:
        self.status = status
        self._reader = reader
        self._chunked = "transfer-encoding: chunked" in head
        length = re.search(r"\r\ncontent-length: (\d+)", head)
        self._left = int(length[1]) if length else 0

    async def piece(self) -> bytes:
        """The next one; b"" at the end."""
        if not self._chunked:
            found, self._left = await self._reader.readexactly(self._left), 0
            return found
        if self._left < 0:
            return b""
        size = int(await self._reader.readline(), 16)
        found = await self._reader.readexactly(size)
        await self._reader.readexactly(2)
        if not size:
            self._left = -1
        return found

    async def rest(self) -> bytes:
        found = b""
        while piece := await self.piece():
            found += piece
        return found


@dataclass
class Seen:
    """What was sent, and what came back."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds."""
    added: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    """Milliseconds that a pair differed by, streamed or whole."""
    measured: bool = False

    def add(self, other: Mapping[str, Any]) -> None:
        """What another process saw, as `told` gives it."""
        self.sent.update(other["sent"])
        self.answered.update(other["answered"])
        self.wrong += other["wrong"]
        self.took |= other["took"]
        for streamed, differed in self.added.items():
            differed += other["added"]["streamed" if streamed else "whole"]

    def told(self) -> dict[str, Any]:
        added = {"streamed": self.added[True], "whole": self.added[False]}
        return {"sent": self.sent, "answered": self.answered, "wrong": self.wrong, "took": self.took, "added": added}

    def note(self, kind: str, seconds: float) -> None:
        self.answered[kind] += 1
        if self.measured:
            self.took.setdefault(kind, []).append(seconds * 1000)


class Asking:
    def __init__(self, service: str, provider: str) -> None:
        self.service, self.provider = Connections(service), Connections(provider)
        self.seen = Seen()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def at_a_rate(self, rate: float, seconds: float, one: Callable[[], Any]) -> None:
        """Begins one after the other at their times, whether or not those before have ended."""
        loop = asyncio.get_running_loop()
        start = loop.time() + random.random() / rate
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
            task = loop.create_task(self._careful(one()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _careful(self, work: Any) -> None:
        try:
            await asyncio.wait_for(work, 12)
        except Exception as error:
            self.seen.wrong.append(repr(error)[:200])

    async def settled(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=15)

    async def run(self) -> None:
        await self._run("work", f"{random.getrandbits(64):x}")

    async def ask(self) -> None:
        await self._run("ask", QUESTION)

    async def _run(self, tool: str, query: str) -> None:
        self.seen.sent[tool] += 1
        began = time.perf_counter()
        body = {"request": query, "tool_name": tool}
        key = query if tool == "work" and random.random() < KEYED else ""
        status, told = await self.service.json("POST", "/v1/runs", body, key=key)
        took = time.perf_counter() - began
        right = told.get("content") == query if tool == "work" else bool(told.get("content"))
        if (status, told.get("status"), right) == (200, "succeeded", True):
            self.seen.note(tool, took)
        else:
            self.seen.wrong.append(f"{tool}: {status} {json.dumps(told)[:200]}")

    async def pair(self) -> None:
        """The same question to the service and to the provider, one after the other, streamed and whole."""
        ways = [("through", self.service), ("direct", self.provider)]
        random.shuffle(ways)
        for stream in (True, False):
            times: dict[str, float] = {}
            for name, place in ways:
                body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
                kind = f"{name} {'stream' if stream else 'whole'}"
                self.seen.sent[kind] += 1
                began = time.perf_counter()
                async with place.asked("POST", "/v1/chat/completions", body) as answer:
                    first = await answer.piece()
                    took = time.perf_counter() - began
                    said = first + await answer.rest()
                if answer.status == 200 and (b"[DONE]" in said or not stream):
                    self.seen.note(kind, took)
                    times[name] = took
                else:
                    self.seen.wrong.append(f"{kind}: {answer.status} {said[-200:]!r}")
            if self.seen.measured and len(times) == 2:
                self.seen.added[stream].append(1000 * (times["through"] - times["direct"]))

    async def follow(self, ticks: int) -> None:
        """A run that goes on for the whole time, and every event of it."""
        self.seen.sent["stream"] += 1
        body = {"request": {"ticks": ticks}, "tool_name": "ticks", "options": {"streaming": True}}
        status, told = await self.service.json("POST", "/v1/runs", body, "Prefer: respond-async\r\n")
        assert status == 202, told
        async with self.service.asked("GET", told["events"]) as answer:
            text = (await answer.rest()).decode()
        numbers = [int(number) for number in re.findall(r'"number": ?(\d+)', text)]
        ended = json.loads(text.rstrip().rpartition("data: ")[2]) == {"state": "succeeded", "error": None}
        if numbers == list(range(ticks)) and ended:
            self.seen.note("stream", 0.0)
        else:
            missing = sorted(set(range(ticks)) - set(numbers))
            self.seen.wrong.append(f"a stream has {len(numbers)} of {ticks} events, not {missing[:5]}, ended: {ended}")


# ── what is found ────────────────────────────────────────────────────────────────────────────────────────────────────


def rss(pid: int) -> float:
    """MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def cpu(pid: int) -> float:
    """Seconds of CPU so far."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


async def stands(asking: Asking, processes: int) -> dict[int, dict[str, int]]:
    """The tasks of each process."""
    found: dict[int, dict[str, int]] = {}
    for _ in range(400):
        # Connections of their own: whoever takes one keeps it.
        fresh = Connections(f"http://{asking.service._host}:{asking.service._port}")
        _, told = await fresh.json("POST", "/v1/runs", {"request": "x", "tool_name": "probe"})
        fresh.close()
        found[told["content"]["pid"]] = told["content"]["tasks"]
        if len(found) == processes:
            return found
    raise SystemExit(f"load: of {processes} processes only {list(found)} answer")


@dataclass
class Found:
    """`broken`: promises, with the reason."""

    broken: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def say(self, promise: str, kept: bool, words: str) -> None:
        self.lines.append(f"  {'kept  ' if kept else 'BROKEN'} {promise}: {words}")
        if not kept:
            self.broken[promise] = words


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def loaded(
    service: str, provider: str, serves_as_provider: int, seconds: float, processes: int, share: float
) -> Found:
    """`serves_as_provider`: the process that does."""
    asking = Asking(service, provider)
    seen, found = asking.seen, Found()
    for _ in range(20):  # So that each process has met all of it once: a new connection is either's.
        first = Asking(service, provider)
        await asyncio.wait_for(asyncio.gather(first.run(), first.ask(), first.pair()), 90)
        seen.wrong += first.seen.wrong  # A planted defect may strike already.
        first.service.close()
        first.provider.close()
    earlier = await calls(provider)
    before = await stands(asking, processes)
    loop = asyncio.get_running_loop()
    then = max(4.0, seconds / 4)
    ticks = round((WARM + seconds + then) / TICK)
    streams = []
    for _ in range(round(STREAMS * share)):
        streams.append(loop.create_task(asking.follow(ticks)))
        await asyncio.sleep(TICK / STREAMS)  # Begun at once, all of them would tell something in the same moment.
    memory: dict[int, list[tuple[float, float]]] = {pid: [] for pid in before}

    comparing = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--compare", service, provider, str(seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    assert comparing.stdin is not None
    assert comparing.stdout is not None
    await comparing.stdout.readline()  # It is there.

    async def watch() -> None:
        began = loop.time()
        while loop.time() - began < seconds:
            for pid, line in memory.items():
                line.append((loop.time() - began, rss(pid)))
            await asyncio.sleep(0.5)

    async def stage(seconds: float, *rates: tuple[float, Callable[[], Any]], beside: Any = None) -> tuple[float, ...]:
        """What was answered in a second of each, on time: in the stage, or as soon as a run takes."""
        had, began = Counter(seen.answered), loop.time()
        await asyncio.gather(
            *(asking.at_a_rate(rate, seconds, one) for rate, one in rates), *([beside] if beside else [])
        )
        await asyncio.sleep(max(0.0, began + seconds + 3 * WORK - loop.time()))
        got = seen.answered - had
        took = max(seconds, loop.time() - began - 3 * WORK)
        return tuple(got[kind] / took for kind in ("work", "ask"))

    comparing.stdin.write(b"begin\n")
    await stage(WARM, (RATE * share, asking.run))
    gc.collect()
    gc.freeze()
    used = {pid: cpu(pid) for pid in (*before, os.getpid(), comparing.pid, serves_as_provider)}
    seen.measured = True
    in_process, _ = await stage(seconds, (RATE * share, asking.run), beside=watch())
    seen.measured = False
    busy = {pid: 100 * (cpu(pid) - was) / seconds for pid, was in used.items()}
    seen.add(json.loads(await asyncio.wait_for(comparing.stdout.readline(), 30)))
    comparing.stdin.close()
    await comparing.wait()
    _, at_provider = await stage(then, (BEGUN * PROVIDER_RATE * share, asking.ask))
    await asking.settled()
    done, late = await asyncio.wait(streams, timeout=15)
    for stream in late:
        stream.cancel()
    seen.wrong += [repr(stream.exception()) for stream in done if stream.exception()]
    seen.wrong += ["a stream has no end"] * len(late)
    asking.service.close()
    asking.provider.close()

    lost = seen.sent - seen.answered
    sent = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.sent.items()))
    asked = await calls(provider) - earlier
    wanted = seen.sent["ask"] + sum(
        count for kind, count in seen.sent.items() if kind.startswith(("through", "direct"))
    )
    kept = not lost and not seen.wrong and asked == wanted
    found.say(
        "lost",
        kept,
        f"{sum(lost.values())} of {sum(seen.sent.values())} ({sent}){f', of these {dict(lost)}' if lost else ''}; "
        f"{asking.service.resent} of those with a key sent again; "
        f"the provider was asked {asked} times for {wanted}"
        + (f"; {len(seen.wrong)} wrong, such as {seen.wrong[0]}" if seen.wrong else ""),
    )
    least = 0.99 * share if share == 1 else 0.8 * share
    enough = in_process >= RATE * least and at_provider >= PROVIDER_RATE * least
    found.say("rate", enough, f"{in_process:.1f} runs/s in the process, {at_provider:.1f} runs/s at the provider")
    after = await quiet(asking, before, processes)
    more = {pid: Counter(after[pid]) - Counter(before[pid]) for pid in before}
    found.say(
        "tasks",
        not any(more.values()),
        ", ".join(f"{sum(before[pid].values())} before, {sum(after[pid].values())} after" for pid in before)
        + "".join(f"; left {dict(each)}" for each in more.values() if each),
    )
    for line in memory.values():
        last = [mb for at, mb in line if at >= seconds / 2]
        mean = sum(last) / len(last)
        swing = max(abs(mb - mean) for mb in last) / mean
        found.say("memory", swing <= FLAT, f"{line[0][1]:.0f} MB at first, then {mean:.1f} MB ± {100 * swing:.1f} %")
    for kind, promise in (("stream", "first token"), ("whole", "whole answer")):
        ways = [seen.took.get(f"{way} {kind}", []) for way in ("direct", "through")]
        pairs = seen.added[kind == "stream"]
        (d50, d99), (t50, t99), (a50, a99) = (
            [quantile(each, share) for share in (0.5, 0.99)] for each in (*ways, pairs)
        )
        found.say(
            promise,
            kind == "whole" or (t99 - d99 <= FIRST_TOKEN_MS if share == 1 else t50 - d50 <= 20 * FIRST_TOKEN_MS),
            f"direct {d50:.1f} ms, p99 {d99:.1f}; through the service {t50:.1f} ms, p99 {t99:.1f}; "
            f"added {t50 - d50:.1f} ms, p99 {t99 - d99:.1f}; "
            f"pair by pair {a50:.1f} ms, p99 {a99:.1f} ({len(pairs)} pairs)",
        )
    runs = seen.took.get("work", [])
    found.lines.append(
        f"         a run of {1000 * WORK:.0f} ms: {quantile(runs, 0.5):.1f} ms, p99 {quantile(runs, 0.99):.1f} ms"
    )
    *cores, asks, pairs_ask, provides = (f"{part:.0f} %" for part in busy.values())
    each = 10 * sum(busy[pid] for pid in before) / (RATE * share)
    found.lines.append(
        f"         of a core each: the service {', '.join(cores)}, who asks {asks}, {pairs_ask}, "
        f"the provider {provides}; for each run {each:.2f} ms of the service, with all that it does beside"
    )
    return found


async def compared(service: str, provider: str, seconds: float) -> None:
    """Asks for chat completions, and prints what it saw. In a process of its own."""
    asking = Asking(service, provider)
    await asking.pair()
    print("there", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asking.at_a_rate(PAIRS, WARM, asking.pair)
    gc.collect()
    gc.freeze()
    asking.seen.measured = True
    await asking.at_a_rate(PAIRS, seconds, asking.pair)
    asking.seen.measured = False
    await asking.settled()
    print(json.dumps(asking.seen.told()), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # So that it can be seen how much of a core it had.


async def quiet(asking: Asking, before: dict[int, dict[str, int]], processes: int) -> dict[int, dict[str, int]]:
    """The tasks once what has ended has been put away."""
    for _ in range(20):
        after = await stands(asking, processes)
        if not any(Counter(after[pid]) - Counter(before[pid]) for pid in before):
            break
        await asyncio.sleep(0.25)
    return after


async def calls(provider: str) -> int:
    """How often the provider was asked, by its own count."""
    _, told = await Connections(provider).json("GET", "/__calls")
    return int(told["requests"])


# ── one after the other ──────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(plant: str | None, provider: str, processes: int) -> Iterator[tuple[str, list[str]]]:
    """Its URL, and afterwards what it has logged."""
    said: list[str] = []
    folder = tempfile.mkdtemp(prefix="steer-load-")
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("STEER_")}
    surroundings |= {
        "PYTHONPATH": str(Path(__file__).parent),
        "OPENAI_BASE_URL": f"{provider}/v1",
        "OPENAI_API_KEY": "none",
        "PYTHONWARNINGS": "ignore",
    }
    if plant is not None:
        surroundings[PLANT] = plant
    asked = ["serve", "--port", "0", "--runs", "runs.db", "--app", "load:registry", "--workers", str(processes)]
    with subprocess.Popen(
        [sys.executable, "-m", "steer_llm_sdk.cli", *asked],
        cwd=folder,
        env=surroundings,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            reading = threading.Thread()
            assert process.stderr is not None
            found = re.search(r"http://\S+", process.stderr.readline())
            assert found is not None, process.stderr.read()
            reading = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
            reading.start()
            yield found[0], said
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            reading.join(5)
            shutil.rmtree(folder, ignore_errors=True)


async def ready(url: str) -> None:
    for _ in range(2400):
        with contextlib.suppress(OSError):
            status, _ = await Connections(url).json("GET", "/readyz")
            if status == 200:
                return
        await asyncio.sleep(0.05)
    raise SystemExit("load: the service does not get ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--planted", type=float, default=8.0, help="seconds for each planted defect; 0 for none of them"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compare", nargs=3, metavar=("SERVICE", "PROVIDER", "SECONDS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.compare:
        asyncio.run(compared(*asked.compare[:2], float(asked.compare[2])))
        return
    found = once(None, asked.seconds, asked.processes)
    print(
        f"{asked.processes} processes on {os.cpu_count()} cores, {STREAMS} streams, {RATE} runs/s, "
        f"then {PROVIDER_RATE} at the provider, {asked.seconds:g} s, load {os.getloadavg()[0]:.1f}"
    )
    print("\n".join(found.lines), flush=True)
    if not asked.planted:
        raise SystemExit(1 if found.broken else 0)
    control = once(None, asked.planted, asked.processes, SHARE)
    print(f"with nothing planted, {asked.planted:g} s: broken {list(control.broken) or 'nothing'}")
    caught = 0
    for defect, promise in PLANTED.items():
        broken = once(defect.__name__, asked.planted, asked.processes, SHARE).broken
        seen = promise in broken and promise not in control.broken
        caught += seen
        words = broken.get(promise, "kept")
        print(
            f"  {'caught' if seen else 'MISSED'} {defect.__name__.replace('_', ' ')}: {promise}: {words[:160]}",
            flush=True,
        )
    print(f"caught/planted: {caught}/{len(PLANTED)}")
    raise SystemExit(0 if caught == len(PLANTED) and not found.broken else 1)


def once(plant: str | None, seconds: float, processes: int, share: float = 1.0) -> Found:
    """`share` of the rates and the streams. Of less than all, speeds are held to little, for others may work then."""
    with provided() as (provider, pid), serving(plant, provider, processes) as (service, said):

        async def all_of_it() -> Found:
            await ready(service)
            return await loaded(service, provider, pid, seconds, processes, share)

        found = asyncio.run(all_of_it())
    found.lines += [f"         the service said: {line.strip()[:200]}" for line in said[:5]]
    return found


@contextmanager
def provided() -> Iterator[tuple[str, int]]:
    """The simulated provider, in a process of its own: its URL, and the process."""
    with subprocess.Popen(
        [sys.executable, "-m", "steer_llm_sdk.cli", "simulate", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("Anthropic's format"):
                    yield line.split()[-1], process.pid
                    break
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
