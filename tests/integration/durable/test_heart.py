"""Who takes over the runs of whom, and when: real hearts on the table in SQLite, and a clock that the test moves on."""

from __future__ import annotations

import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_llm_sdk.durable._heart import Heart
from steer_llm_sdk.durable._tables import Store, Workers

HEARTBEAT = 8.0
LOOKS = HEARTBEAT / 4
phase = st.floats(0, 1, exclude_max=True)


class Died(BaseException):
    """A process that is killed in the middle of something."""


class World:
    """Workers that beat and look four times in a heartbeat, each in its own phase, and the runs that they have."""

    def __init__(self, home: Path) -> None:
        self.now = 1000.0
        self.runs: dict[str, str] = {}
        self.taken: dict[str, float] = {}
        """When each run went to somebody else."""
        self.dies_with_it: set[str] = set()
        self._store = Store.of(f"sqlite:///{home}/runs.db")
        self._hearts: dict[str, Heart] = {}
        self._tables: list[Workers] = []
        self._due: list[tuple[float, int, str, Callable[[], None]]] = []
        self._number = itertools.count()

    def born(self, name: str, *, beats: float = 0.0, looks: float = 0.0) -> None:
        """It first beats, and looks, such a part of the time between two later."""
        workers = _Timed(self._store, lambda: self.now)
        self._tables.append(workers)
        heart = Heart(
            workers,
            name,
            "1",
            HEARTBEAT,
            at_work=lambda: set(self.runs.values()),
            adopt=lambda dead: self._adopt(dead, name),
            tidy=lambda: None,
            clock=lambda: self.now,
        )
        self._hearts[name] = heart
        heart.beat()
        self._plan(beats * LOOKS, name, heart.beat)
        self._plan(looks * LOOKS, name, heart.look)

    def dies(self, name: str) -> None:
        del self._hearts[name]

    def go_on(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due[0][0] <= end:
            due, _, name, work = heapq.heappop(self._due)
            self.now = max(self.now, due)  # What was due while nobody had a turn is done afterwards.
            if name in self._hearts:
                try:
                    work()
                except Died:
                    self.dies(name)
                else:
                    self._plan(LOOKS, name, work)
        self.now = max(self.now, end)

    def stand_still(self, seconds: float) -> None:
        """Nobody has a turn."""
        self.now += seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for table in self._tables:
            table.close()

    def _plan(self, later: float, name: str, work: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + later, next(self._number), name, work))

    def _adopt(self, dead: str, taker: str) -> int:
        if taker in self.dies_with_it:
            raise Died
        found = [run for run, worker in self.runs.items() if worker == dead]
        self.runs |= dict.fromkeys(found, taker)
        self.taken |= dict.fromkeys(found, self.now)
        return len(found)


class _Timed(Workers):
    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        super().__init__(store)
        self._clock = clock

    def _now(self, ask: object) -> float:
        return self._clock()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@settings(max_examples=60)
@given(st.tuples(phase, phase, phase, phase), st.floats(0, 3))
def test_the_runs_of_a_dead_worker_are_with_another_after_five_quarters_of_a_heartbeat(
    phases: tuple[float, float, float, float], lived: float
) -> None:
    with tempfile.TemporaryDirectory() as home, World(Path(home)) as world:
        world.born("w", beats=phases[0], looks=phases[1])
        world.born("survivor", beats=phases[2], looks=phases[3])
        world.runs["run"] = "w"
        world.go_on(lived * HEARTBEAT)
        world.dies("w")
        died = world.now
        world.go_on(1.25 * HEARTBEAT + 0.001)
        assert world.runs == {"run": "survivor"}
        assert world.taken["run"] - died >= 0.75 * HEARTBEAT - 0.001


@settings(max_examples=60)
@given(st.tuples(phase, phase, phase), st.floats(0, 3))
def test_where_the_one_who_takes_them_over_dies_too_the_next_has_them_after_two_heartbeats(
    phases: tuple[float, float, float], lived: float
) -> None:
    with tempfile.TemporaryDirectory() as home, World(Path(home)) as world:
        world.born("w", beats=phases[0])
        world.born("first", looks=0)
        world.born("next", beats=phases[1], looks=max(phases[2], 0.01))
        world.runs["run"] = "w"
        world.go_on(lived * HEARTBEAT)
        world.dies("w")
        world.dies_with_it = {"first"}
        world.go_on(2 * HEARTBEAT + 0.001)
        assert world.runs == {"run": "next"}


def test_a_machine_that_stood_still_costs_nobody_his_runs(world: World) -> None:
    world.born("w", beats=0.9, looks=0.3)
    world.born("other", beats=0.5, looks=0.1)
    world.runs["run"] = "w"
    world.go_on(HEARTBEAT)
    world.stand_still(5 * HEARTBEAT)
    world.go_on(3 * HEARTBEAT)
    assert (world.runs, world.taken) == ({"run": "w"}, {})


def test_who_died_while_the_machine_stood_still_is_taken_over_afterwards(world: World) -> None:
    world.born("w", beats=0.9)
    world.born("other", looks=0.1)
    world.runs["run"] = "w"
    world.go_on(HEARTBEAT)
    world.dies("w")
    world.stand_still(5 * HEARTBEAT)
    back = world.now
    world.go_on(HEARTBEAT)
    assert world.runs == {"run": "other"}
    assert world.taken["run"] - back <= 0.75 * HEARTBEAT
