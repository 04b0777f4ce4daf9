"""Ends spans beside the loop: some processors export within `end`, and an exporter may hang."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from opentelemetry.trace import Span

from steer_llm_sdk.reliability.deadline import watch

Ends = Sequence[tuple[Span, int]]
"""Spans and when they ended, in nanoseconds since 1970."""
PATIENCE = 0.05
"""Seconds that a run waits for its spans to be ended; with an exporter that is well they are by then."""
MOST = 1_000
"""Runs whose spans wait to be ended; those of further ones are lost, and the log says so."""
_log = logging.getLogger(__name__)


class Closer:
    """After an exporter has hung, no run waits for it until it goes on."""

    def __init__(self) -> None:
        self._thread = _Thread()
        self._hangs = False

    def end(self, spans: Ends) -> asyncio.Future[None] | None:
        """Have them ended. Done when they are; None where they are lost."""
        try:
            return asyncio.get_running_loop().run_in_executor(self._thread, self._end, spans)
        except queue.Full:
            _log.warning("an exporter hangs: the spans of a run are lost")
            return None

    async def wait(self, ended: asyncio.Future[None]) -> None:
        """Until they are ended, if that is soon."""
        if not self._hangs:
            await watch(ended, ended.get_loop().time() + PATIENCE)
            self._hangs = not ended.done()

    def _end(self, spans: Ends) -> None:
        for span, at in spans:
            try:
                span.end(at)
            except Exception:
                _log.warning("telemetry failed", exc_info=True)
        self._hangs = False


class _Thread(Executor):
    """One thread, begun with the first work. The process does not wait for it to end."""

    def __init__(self) -> None:
        self._work: queue.Queue[tuple[Future[Any], Callable[[], Any]]] = queue.Queue(MOST)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """Raises queue.Full."""
        future: Future[Any] = Future()
        self._work.put_nowait((future, lambda: fn(*given, **named)))
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # A process that was forked has no threads.
                self._thread = threading.Thread(target=self._run, name="steer-llm-spans", daemon=True)
                self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            future, work = self._work.get()
            if future.set_running_or_notify_cancel():
                future.set_result(work())
