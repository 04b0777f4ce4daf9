"""The heart of a worker: a thread that says that the process lives, and one that finds the runs of those that do not.

Threads, so that an event loop which is busy is not taken for a dead process; and two, because to take over is work, for
which no beat may wait. A worker beats four times in `heartbeat` seconds and is dead when it gave no sign for as long;
the others look as often. So its runs are with another worker 1.25 heartbeats after its last sign at the latest, or 2
where that one dies with them in its hands, and under way when one next looks into its queue. Each worker has said what
its heartbeat is, so that those of one store need not have the same.

Whoever had no turn itself, because the machine or the store stood still, takes nobody over for half a heartbeat: nobody
else may have been able to say that it lives.

Who is at work and on no list is put on it: a process that was slow was taken for dead when it had nothing, forgotten,
and has begun something before it died.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection

from steer_llm_sdk.durable._tables import Workers

_log = logging.getLogger(__name__)
TIDY_EVERY = 60.0
"""Seconds between two looks for what is too old to be kept."""


class Heart:
    """`at_work` names the workers that have runs under way. `adopt` gives the runs of a dead worker to those who live,
    and says how many there were. `tidy` forgets what is too old. All are called in the second thread. `clock` gives
    seconds; one that goes on while the machine sleeps, as those of the stores do."""

    def __init__(
        self,
        workers: Workers,
        worker: str,
        version: str,
        heartbeat: float,
        at_work: Callable[[], Collection[str]],
        adopt: Callable[[str], int],
        tidy: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._worker = worker
        self._version = version
        self._heartbeat = heartbeat
        self._at_work = at_work
        self._adopt = adopt
        self._tidy = tidy
        self._clock = clock
        self._ended = threading.Event()
        self._looked = self._tidied = clock()
        self._judges_from = self._looked
        self._threads: list[threading.Thread] = []

    def start_beating(self) -> None:
        """Say that this worker lives, from now on."""
        self.beat()
        self._begin("steer-heart", self.beat)

    def start_watching(self) -> None:
        self._looked = self._clock()
        self._begin("steer-watch", self.look)

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True))
        self._threads[-1].start()

    def beat(self) -> None:
        """Say once that this worker lives."""
        self._workers.beat(self._worker, self._heartbeat, socket.gethostname(), os.getpid(), self._version)

    def stop(self) -> None:
        """Nobody is taken over from here on. The worker still counts as alive, until it is forgotten."""
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._heartbeat)

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._ended.is_set():
            try:
                work()
                pause = self._heartbeat / 4
            except Exception as error:
                # Whoever cannot reach the store may be taken for dead; what it then writes is refused by the engine.
                _log.warning("worker %s could not reach the store: %r", self._worker, error)
                pause = self._heartbeat / 8
            self._ended.wait(pause)

    def look(self) -> None:
        """Look once who is dead, and take over what it had."""
        self._workers.watch(self._at_work(), self._heartbeat)
        now, last = self._clock(), self._looked
        self._looked = now
        if now - last > self._heartbeat / 2:
            self._judges_from = now + self._heartbeat / 2
        if now >= self._judges_from:
            for dead in self._workers.take_dead(self._worker):
                self._take_over(dead)
        if now - self._tidied > TIDY_EVERY:
            self._tidied = now
            self._tidy()

    def _take_over(self, dead: str) -> None:
        """One that has nothing left is forgotten. One that had is looked at once more half a heartbeat later: it may
        have begun something between being taken for dead and dying."""
        found = self._adopt(dead)
        if found:
            _log.warning("worker %s is dead: its %d runs go on elsewhere", dead, found)
        else:
            self._workers.forget(dead, self._worker)
