"""A process of its own that runs bundles durably, to be killed in the middle: `python process.py` and a line of JSON.

It prints one line of JSON for each thing that happens: {"ready": worker}, {"output": …} or {"error": …}. SIGTERM closes
what it runs with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any, Self

from steer_llm_sdk.durable import DurableOrchestrator, QueueLimits
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import ReliabilityConfig, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.reliability import RetryPolicy

sys.path.insert(0, str(Path(__file__).parents[2]))  # Also where it is run as a script.

from servers import dies_with_us

ANSWER = {"type": "object", "properties": {"answer": {}}, "required": ["answer"]}
QUESTION = shipped_recording().questions[3].text
MODEL = "gpt-4o-2024-05-13"
HEARTBEAT = 3.0
LOOKS = 6000
"""Times that a test looks whether another process has come so far, 10 ms apart, until it gives up: while the machine is
halted, nobody looks."""


class Wire:
    """A model behind OpenAI's wire format, asked without the client libraries: a process then starts in half a second
    and not in three."""

    name, target = f"openai:{MODEL}", "openai"

    def __init__(self, base_url: str) -> None:
        host, port = base_url.removeprefix("http://").split(":")
        self._host, self._port = host, int(port)

    async def request(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        messages = [{"role": one.role, "content": one.content} for one in request.messages]
        body = json.dumps({"model": MODEL, "messages": messages, "seed": request.seed}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            said = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        finally:
            writer.close()
        usage = {"total_tokens": said["usage"]["total_tokens"]}
        return ModelReply(text=said["choices"][0]["message"]["content"], model=MODEL, usage=usage, cost_usd=0.01)

    async def prepare(self) -> None:
        """Always ready."""

    def worst_case(self, request: ModelRequest) -> Amount:
        return Amount(1000, 0.02)

    async def aclose(self) -> None:
        """Each request has a connection of its own."""


@contextlib.contextmanager
def simulated(*options: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """`steer-llm simulate` as a process of its own: its base URL, and what asks it for the number of its calls."""
    command = [sys.executable, "-u", "-m", "steer_llm_sdk.cli", "simulate", "--port", "0", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=dies_with_us(signal.SIGKILL),
    ) as child:
        assert child.stdout is not None
        try:
            found: dict[str, str] = {}
            while "Control" not in found:
                if match := re.match(r"(OpenAI's format|Control) +(http://[^/]+)", child.stdout.readline()):
                    found[match[1]] = match[2]

            def asked() -> int:
                with urllib.request.urlopen(f"{found['Control']}/__calls", timeout=10) as answer:
                    count: int = json.load(answer)["requests"]
                    return count

            yield found["OpenAI's format"], asked
        finally:
            child.kill()


def bundle(name: str, base_url: str, version: str = "1.0.0") -> LLMBundleTool:
    """Of five replicates, all of which are asked for, though three that agree would decide it."""
    tool = LLMBundleTool(name, Wire(base_url), output_type=ANSWER, k=5, fields=["answer"], version=version)
    tool.default_options = {**tool.default_options, "latency": "min"}
    return tool


def registry(base_url: str, version: str = "1.0.0") -> ToolRegistry:
    made = ToolRegistry()
    made.register_tool(bundle("facts", base_url, version))
    return made


def orchestrator(store: str, base_url: str, **given: Any) -> DurableOrchestrator:
    version = given.pop("version", "1.0.0")
    queues = {name: QueueLimits(**limits) for name, limits in given.pop("queues", {}).items()}
    config = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.01, max_delay=0.05))
    given = {"heartbeat": HEARTBEAT, **given}
    return DurableOrchestrator(
        store, reliability_config=config, registry=registry(base_url, version), queues=queues, **given
    )


def until(there: Callable[[], Any]) -> Any:
    for _ in range(LOOKS):
        if found := there():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def main(store: str, base_url: str, runs: list[dict[str, Any]], serve: bool, given: dict[str, Any]) -> None:
    async with orchestrator(store, base_url, **given) as durable:
        runner: Any = await durable.started()
        stopping: list[asyncio.Future[None]] = []
        stop = lambda: stopping.append(asyncio.ensure_future(durable.aclose()))  # noqa: E731 - said once
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        say(ready=runner.worker)

        async def one(options: dict[str, Any]) -> None:
            try:
                output = await durable.run(QUESTION, "facts", {"max_parallel": 1, "k": 5}, options)
            except Exception as error:
                say(error=type(error).__name__, text=str(error))
            else:
                say(output=output.model_dump(mode="json"), replayed=output.replayed)

        await asyncio.gather(*(one(options) for options in runs))
        await asyncio.gather(*stopping)
        if serve:
            await asyncio.Event().wait()


class Process:
    """A child that runs this file, and the lines it has printed."""

    def __init__(
        self,
        store: str,
        base_url: str,
        *runs: dict[str, Any],
        serve: bool = False,
        **given: Any,
    ) -> None:
        order = {"store": store, "base_url": base_url, "runs": runs, "serve": serve, "given": given}
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__)), json.dumps(order)], stdout=subprocess.PIPE, text=True
        )
        self._lines: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def next(self) -> dict[str, Any]:
        """The next thing that it says."""
        until(lambda: not self._lines.empty())
        line = self._lines.get()
        assert line is not None, f"the child has ended with {self._child.wait()}"
        said: dict[str, Any] = json.loads(line)
        return said

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def signal(self, how: signal.Signals) -> None:
        self._child.send_signal(how)

    def wait(self) -> None:
        until(lambda: self._child.poll() is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._child.stdout is not None:
            self._child.stdout.close()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
