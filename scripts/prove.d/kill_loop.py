"""Processes that share a store work on the same keyed runs while they are killed, stopped and continued at random, and
the server of the store is killed as well. What each did is in a log that no kill can undo. Afterwards:

- every key has been answered, and all its callers, in whatever process, were given one and the same answer;
- at no moment were two living processes at work on one key;
- a process that lived never began work that had an owner, so a key was worked on once, and once more for each owner
  that was killed, stood still for longer than its lease, or failed.

Then defects are planted, one at a time, and each must break one of these.

    sh scripts/prove kill-loop [--kills 70] [--stores sqlite,redis,postgres] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from servers import PostgresServer, RedisServer, Server
from steer_llm_sdk.errors import ProviderUnavailable, StoreUnavailable
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.reliability import idempotency
from steer_llm_sdk.reliability.stores import Claim, open_store
from steer_llm_sdk.reliability.stores.sqlite import Keys

LEASE = 3.0
"""Seconds; the library's own 20 would make this a matter of hours, and changes nothing else."""
WORKERS, AT_ONCE = 3, 6
KEYS_PER_KILL = 8
"""So many are worked on between two kills, about."""
ROUNDS = 10
"""Of 14 kills and stops each, to catch a planted defect in."""
SETTLING = 240.0
"""Seconds in which all keys must be answered once the killing is over."""


# ── a worker ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Log:
    """Lines of `seconds what key pid value`, each written at once and whole, by all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, what: str, key: object = "-", value: str = "-", pid: int | None = None) -> None:
        os.write(self._file, f"{time.monotonic():.6f} {what} {key} {pid or os.getpid()} {value}\n".encode())


class Effect(Tool):
    """Work whose beginning and end are on record. One in five fails in a way that a later try may cure."""

    name = "effect"

    def __init__(self, log: Log) -> None:
        self._log = log

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        key, value = request["query"], uuid.uuid4().hex
        self._log.add("begins", key, value)
        # A few take longer than a lease, which must not matter.
        await asyncio.sleep(1.5 * LEASE if random.random() < 0.04 else random.uniform(0.2, 1.0))
        if random.random() < 1 / 5:
            self._log.add("fails", key, value)
            raise ProviderUnavailable("so it is", "effect", status_code=503)
        self._log.add("ends", key, value)
        return value


async def work(url: str, log: Log, keys: int) -> None:
    registry = ToolRegistry()
    registry.register_tool(Effect(log))
    config = ReliabilityConfig(retry_budget=None)
    options = {"enable_circuit_breaker": False, "retry_on_failure": False}
    waiting = list(range(keys))  # In one order, so that all of them come for a key at about the same moment.

    async def one(orchestrator: ReliableOrchestrator) -> None:
        while waiting:
            key = waiting.pop()
            try:
                output = await orchestrator.run(str(key), "effect", options={**options, "idempotency_key": str(key)})
            except StoreUnavailable:
                log.add("refused", key)
                await asyncio.sleep(0.2)
            else:
                marked = output.metadata.get("idempotency")
                if output.status == "succeeded":
                    log.add("answer" if marked is None else marked, key, str(output.content))
                    if marked is None:
                        continue
            waiting.insert(0, key)

    async with ReliableOrchestrator(registry=registry, reliability_config=config, store=url) as orchestrator:
        await asyncio.gather(*(one(orchestrator) for _ in range(AT_ONCE)))


def start_worker(url: str, log: Log, keys: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        random.seed()
        logging.disable(logging.WARNING)
        asyncio.run(work(url, log, keys))
        code = 0
    except BaseException as error:
        log.add("crashed", value=repr(error).replace(" ", "_"))
    finally:
        os._exit(code)


# ── the one who kills ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Toll:
    killed: int = 0
    stopped: int = 0
    servers_killed: int = 0


def disturb(url: str, server: Server | None, log: Log, kills: int, chance: random.Random, stops: float) -> Toll:
    """Kill, stop and continue workers until so many kills are done; then let them end."""
    toll, keys = Toll(), kills * KEYS_PER_KILL
    open_store(url)  # which loads its client once, and connects to nothing
    workers = {start_worker(url, log, keys) for _ in range(WORKERS)}
    stopped: dict[int, float] = {}
    done = 0
    end = None
    try:
        while workers:
            time.sleep(chance.uniform(0.2, 0.8))
            for pid in list(workers):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    workers.discard(pid)
                    stopped.pop(pid, None)
                    if done < kills:  # It has seen all its keys answered: another begins at the beginning.
                        workers.add(start_worker(url, log, keys))
            for pid, until in list(stopped.items()):
                if time.monotonic() >= until:
                    del stopped[pid]
                    os.kill(pid, signal.SIGCONT)
            running = [pid for pid in workers if pid not in stopped]
            if done < kills and running:
                victim = chance.choice(running)
                if chance.random() < stops:
                    if stopped:  # One at a time: of the others one succeeds it, and one waits.
                        continue
                    log.add("stopped", pid=victim)
                    os.kill(victim, signal.SIGSTOP)
                    stopped[victim] = time.monotonic() + LEASE * chance.uniform(0.75, 1.3)
                    toll.stopped += 1
                    done += 1 if stops > 0.5 else 0
                    continue
                log.add("killed", pid=victim)
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
                workers.discard(victim)
                done += 1
                toll.killed += 1
                if server is not None and done % 12 == 0:
                    server.kill()
                    time.sleep(chance.uniform(0, 0.3))
                    server.start()
                    toll.servers_killed += 1
                workers.add(start_worker(url, log, keys))
            elif done >= kills:
                end = end or time.monotonic() + SETTLING
                if time.monotonic() > end:
                    break
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                log.add("killed", pid=pid)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return toll


# ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Found:
    answered: int = 0
    begun: int = 0
    again: Counter[str] = field(default_factory=Counter)
    not_remembered: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)


@dataclass
class Working:
    pid: int
    value: str
    excuse: str | None = None


def judge(log: Log, keys: int) -> Found:
    found = Found()
    answers: defaultdict[str, set[str]] = defaultdict(set)
    at_work: defaultdict[str, list[Working]] = defaultdict(list)
    last: dict[str, Working] = {}
    for line in log.path.read_text().splitlines():
        at, what, key, pid_, value = line.split()
        pid = int(pid_)
        if what == "begins":
            found.begun += 1
            for other in at_work[key]:
                if other.excuse is None:
                    found.broken.append(f"{at}: {pid} and {other.pid} are both at work on key {key}")
            before = last.get(key)
            if before is not None:
                if before.excuse is None:
                    found.broken.append(f"{at}: key {key} is worked on again though its work had ended well")
                else:
                    found.again[before.excuse] += 1
            last[key] = Working(pid, value)
            at_work[key].append(last[key])
        elif what in ("ends", "fails"):
            for working in list(at_work[key]):
                if working.value == value:
                    at_work[key].remove(working)
                    if what == "fails":
                        working.excuse = "owner failed"
        elif what in ("killed", "stopped"):
            # Who had ended his work may not have come to write it down.
            for working in [*last.values(), *(each for those in at_work.values() for each in those)]:
                if working.pid == pid and working.excuse is None:
                    working.excuse = f"owner {what}"
        elif what == "answer":
            answers[key].add(value)
        elif what == "not_remembered":
            found.not_remembered += 1
            if key in last and last[key].value == value:
                last[key].excuse = "not remembered"
        elif what == "refused":
            found.refused += 1
        elif what == "crashed":
            raise RuntimeError(f"worker {pid} crashed, which is no finding: {value}")
    found.answered = len(answers)
    found.broken += [f"key {key} has {len(those)} answers" for key, those in answers.items() if len(those) > 1]
    found.broken += [f"key {key} was never answered" for key in map(str, range(keys)) if key not in answers]
    return found


# ── stores and defects ───────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def a_store(kind: str) -> Iterator[tuple[str, Server | None]]:
    if kind == "sqlite":
        folder = tempfile.mkdtemp(prefix="steer-kill-loop-")
        try:
            yield f"sqlite:///{folder}/steer.db", None
        finally:
            shutil.rmtree(folder)
        return
    server: Server = RedisServer(durable=True) if kind == "redis" else PostgresServer()
    with server:
        yield server.url, server


def _unfenced(keys: Keys, change: str, values: tuple[Any, ...], key: str, token: int, now: float) -> bool:
    done = keys._run(f"UPDATE steer_keys {change} WHERE key = ?", (*values, key))
    return done.rowcount > 0


def _any_release(keys: Keys, key: str, token: int, now: float) -> bool:
    return keys._run("DELETE FROM steer_keys WHERE key = ? AND result IS NULL", (key,)).rowcount > 0


def _no_renewal(keys: Keys, key: str, token: int, lease: float, now: float) -> bool:
    return True


_look = Keys.look


def _held_for_ever(keys: Keys, key: str, fingerprint: str, now: float) -> Claim | None:
    found = keys._run("SELECT token FROM steer_keys WHERE key = ? AND result IS NULL", (key,)).fetchone()
    return _look(keys, key, fingerprint, now) if found is None else Claim("theirs", left=1.0)


def _only_looked(keys: Keys, key: str, fingerprint: str, lease: float, ttl: float, now: float) -> Claim:
    """Whoever saw the key free takes it, and a moment lies between the two."""
    time.sleep(0.02)
    keys._run("DELETE FROM steer_keys WHERE key = ? AND result IS NULL", (key,))
    return _claim(keys, key, fingerprint, lease, ttl, now)


_claim = Keys.claim


async def _deaf(*_: Any) -> Any:
    return None


DEFECTS: dict[str, Callable[[], Any]] = {
    "a zombie's write is not fenced": lambda: patch.object(Keys, "_write", _unfenced),
    "a zombie gives back what is another's": lambda: patch.object(Keys, "release", _any_release),
    "a lease is not renewed": lambda: patch.object(Keys, "renew", _no_renewal),
    "a dead owner is never succeeded": lambda: patch.object(Keys, "look", _held_for_ever),
    "a claim does not look again": lambda: patch.object(Keys, "claim", _only_looked),
    "a stale owner's caller gets what he made": lambda: patch.object(
        idempotency, "_too_late", lambda manager, work, flight, result, kept: _same(result)
    ),
}


async def _same(result: Any) -> Any:
    return result


def one_round(kind: str, kills: int, seed: int, stops: float = 0.2, keep: bool = True) -> tuple[Toll, Found, float]:
    with a_store(kind) as (url, server):
        log = Log(Path(tempfile.mkstemp(prefix="steer-kill-loop-")[1]))
        began = time.monotonic()
        try:
            toll = disturb(url, server, log, kills, random.Random(seed), stops)
            found = judge(log, kills * KEYS_PER_KILL)
            if found.broken and keep:
                print(f"    its log: {shutil.copy(log.path, tempfile.mkdtemp())}")
            return toll, found, time.monotonic() - began
        finally:
            log.path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/prove kill-loop")
    parser.add_argument("--kills", type=int, default=70, help="of workers, for each store")
    parser.add_argument("--stores", default="sqlite,redis,postgres")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only-planted", action="store_true")
    parser.add_argument("--no-planted", action="store_true")
    given = parser.parse_args()
    idempotency.LEASE = LEASE
    broken = 0
    print(f"{WORKERS} processes x {AT_ONCE} callers, {KEYS_PER_KILL} keys for each kill, leases of {LEASE:g} s")
    print("store     kills  stops  servers killed  begun  again after                             refused  s    broken")
    for kind in () if given.only_planted else given.stores.split(","):
        toll, found, took = one_round(kind, given.kills, given.seed)
        again = ", ".join(f"{why.removeprefix('owner ')} {n}" for why, n in sorted(found.again.items()))
        print(
            f"{kind:<9} {toll.killed:>5}  {toll.stopped:>5}  {toll.servers_killed:>14}  {found.begun:>5}  {again:<40} "
            f"{found.refused:>6}  {took:<4.0f} {len(found.broken)}",
            flush=True,
        )
        for line in found.broken[:10]:
            print("   ", line)
        broken += len(found.broken)
    if given.no_planted:
        return 1 if broken else 0
    caught = 0
    for name, plant in DEFECTS.items():
        for round_ in range(1, ROUNDS + 1):
            with plant(), patch(f"{__name__}.SETTLING", 40.0):
                _, found, took = one_round("sqlite", 14, given.seed + round_, stops=0.9, keep=False)
            if found.broken:
                break
        caught += bool(found.broken)
        says = f"caught in round {round_}: {found.broken[0]}" if found.broken else "NOT CAUGHT"
        print(f"planted: {name}: {says} ({took:.0f} s)", flush=True)
    print(f"caught/planted {caught}/{len(DEFECTS)}")
    return 0 if not broken and caught == len(DEFECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
