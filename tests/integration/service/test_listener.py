"""Each of several processes that listen on one socket takes its share of the connections."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from steer_llm_sdk.service import _listener
from steer_llm_sdk.service._listener import EVEN, IN_A_ROW, Listener

SPAWN = multiprocessing.get_context("spawn")


def process(listener: Listener, pipe: Connection, patience: float) -> None:
    """Does what it is told: has so many connections, or takes one, and says whether it had one."""
    _listener.PATIENCE = patience
    listener.setblocking(False)
    assert listener.shares is _listener.shares is not None
    while (told := pipe.recv()) is not None:
        if told == "take":
            try:
                listener.accept()[0].close()
                pipe.send(True)
            except BlockingIOError:
                pipe.send(False)
        elif told == "close":
            listener.close()
            listener.shares.has(0)  # As its last connection is lost.
            pipe.send(None)
        else:
            listener.shares.has(told)
            pipe.send(None)


class Process:
    def __init__(self, listener: Listener, patience: float) -> None:
        self._pipe, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=process, args=(listener, other, patience), daemon=True)
        self._process.start()
        other.close()
        self.has(0)

    def has(self, connections: int) -> None:
        self._asked(connections)

    def closes(self) -> None:
        self._asked("close")

    def takes(self) -> bool:
        return bool(self._asked("take"))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _asked(self, what: Any) -> Any:
        self._pipe.send(what)
        assert self._pipe.poll(60)
        return self._pipe.recv()


@contextmanager
def processes(patience: float) -> Iterator[tuple[Listener, Process, Process]]:
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        both = Process(listener, patience), Process(listener, patience)
        try:
            yield listener, *both
        finally:
            for one in both:
                one.kill()


@contextmanager
def waiting(listener: Listener) -> Iterator[None]:
    """A connection that somebody is to take."""
    with socket.create_connection(listener.getsockname(), timeout=10):
        yield


def test_a_connection_is_left_to_the_process_that_has_fewer() -> None:
    with processes(patience=3600) as (listener, one, other):
        one.has(EVEN + 1)
        with waiting(listener):
            assert (one.takes(), other.takes()) == (False, True)
        other.has(1)
        with waiting(listener):
            assert one.takes()


def test_a_connection_that_nobody_else_takes_is_taken_after_all() -> None:
    with processes(patience=0.0) as (listener, one, other):
        one.has(EVEN + 1)
        other.kill()
        with waiting(listener):
            assert one.takes()


def test_nobody_waits_for_a_process_that_listens_no_more() -> None:
    with processes(patience=3600) as (listener, one, other):
        one.has(EVEN + 1)
        other.closes()
        with waiting(listener):
            assert one.takes()


def test_a_process_whose_turns_are_longer_than_its_patience_takes_one_all_the_same() -> None:
    with processes(patience=1e-6) as (listener, one, _):
        one.has(EVEN + 1)
        with waiting(listener):
            assert [one.takes() for _ in range(IN_A_ROW + 1)] == [*[False] * IN_A_ROW, True]


def test_who_comes_after_one_that_was_killed_has_its_place_and_begins_with_none() -> None:
    with processes(patience=3600) as (listener, one, other):
        other.has(100)
        other.kill()
        third = Process(listener, 3600)
        try:
            one.has(EVEN + 1)
            with waiting(listener):
                assert (one.takes(), third.takes()) == (False, True)
        finally:
            third.kill()


def test_one_process_alone_takes_whatever_comes() -> None:
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with waiting(listener), waiting(listener), waiting(listener):
            for _ in range(3):
                listener.accept()[0].close()


@pytest.mark.parametrize("asked", [0, 1])
def test_the_queue_is_long_however_short_it_is_asked_for(asked: int) -> None:
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(asked)
        found = [socket.create_connection(listener.getsockname(), timeout=10) for _ in range(50)]
        for each in found:
            each.close()
