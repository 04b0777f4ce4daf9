"""Processes that share a store run the same keyed bundles against the simulated provider while they are killed, stopped
and continued at random, and the server of the store is killed as well. The provider is `steer-llm simulate`, asked over
HTTP; it counts its calls. What each process did is in a log that no kill can undo. Afterwards:

- every key has been answered, and all its callers, in whatever process, were given one and the same outcome;
- at no moment were two living processes at work on one key;
- a process that lived never began work that had an owner, so a key was worked on once, and once more for each owner
  that was killed, stood still for longer than its lease, or failed;
- the provider was asked no more often than there are replicates (keys times k), and calls of work that was lost with
  its owner: nearly all of them under way at a kill;
- each call said the name of its replicate (Idempotency-Key), the same whoever made it: a provider which heeds it
  charges for keys times k.

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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/integration/durable"))

from durable_process import Wire, simulated

from servers import PostgresServer, RedisServer, Server
from steer_llm_sdk.errors import ProviderUnavailable, StoreUnavailable
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.reliability import idempotency
from steer_llm_sdk.reliability.stores import Claim, open_store
from steer_llm_sdk.reliability.stores.sqlite import Keys

LEASE = 3.0
"""Seconds; the library's own 20 would make this a matter of hours, and changes nothing else."""
WORKERS, AT_ONCE, K = 3, 6, 5
FAILS, FAILS_PLANTED = 0.2, 0.6
"""The share of works that fails; more of them where a zombie that fails is to be seen."""
SLOW = "slow:seconds=0.25"
QUESTIONS = [question.text for question in shipped_recording().questions[:50]]
"""To all of them the model gave an answer that can be read."""
KEYS_PER_KILL = 8
"""So many are worked on between two kills, about."""
ROUNDS = 10
"""Of 14 kills and stops each, to catch a planted defect in."""
TICK, STILL = 0.2, 1.0
"""Seconds between two signs of life of a process in the log, and after which a log without any says that none had a
turn: the machine stood still."""
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


class Noted(Wire):
    """Each call is on record with the name of its replicate, and so is its answer."""

    def __init__(self, base_url: str, log: Log) -> None:
        super().__init__(base_url)
        self._log = log

    async def request(self, request: ModelRequest, on_text: Any = None) -> ModelReply:
        key, _, replicate = str(request.idempotency_key).partition(":")
        self._log.add("calls", key, replicate)
        reply = await super().request(request, on_text)
        self._log.add("hears", key, replicate)
        return reply


class NotedBundle(LLMBundleTool):
    """K replicates. The beginning and the end of the work are on record; one in five fails before it has asked anybody,
    in a way that a later try may cure."""

    def __init__(self, base_url: str, log: Log) -> None:
        super().__init__("facts", Noted(base_url, log), output_type={"type": "object"}, k=K, options={"latency": "min"})
        self._log = log

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        key, value = options["idempotency_key"].partition(":")[0], options["request_id"]
        self._log.add("begins", key, value)
        # A few take longer than a lease, which must not matter.
        await asyncio.sleep(1.5 * LEASE if random.random() < 0.04 else random.uniform(0, 0.6))
        if random.random() < FAILS:
            self._log.add("fails", key, value)
            raise ProviderUnavailable("so it is", "facts", status_code=503)
        made = await super().execute(request, options, event_manager)
        self._log.add("ends", key, value)
        return made


async def work(url: str, base_url: str, log: Log, keys: int) -> None:
    registry = ToolRegistry()
    registry.register_tool(NotedBundle(base_url, log))
    config = ReliabilityConfig(retry_budget=None)
    options = {"enable_circuit_breaker": False, "retry_on_failure": False, "max_parallel": K}
    waiting = list(range(keys))  # In one order, so that all of them come for a key at about the same moment.

    async def one(orchestrator: ReliableOrchestrator) -> None:
        while waiting:
            key = waiting.pop()
            question = QUESTIONS[key % len(QUESTIONS)]
            try:
                output = await orchestrator.run(question, "facts", options={**options, "idempotency_key": str(key)})
            except StoreUnavailable:
                log.add("refused", key)
                await asyncio.sleep(0.2)
            else:
                marked = output.metadata.get("idempotency")
                if output.status == "succeeded":
                    made = len(output.content["evidence_bundle"]["replicates"])
                    value = f"{output.metadata['request_id']}/{made}"
                    log.add("answer" if marked is None else marked, key, value)
                    if marked is None:
                        continue
            waiting.insert(0, key)

    async def tick() -> None:
        while True:
            log.add("ticks")
            await asyncio.sleep(TICK)

    async with ReliableOrchestrator(registry=registry, reliability_config=config, store=url) as orchestrator:
        ticking = asyncio.create_task(tick())
        await asyncio.gather(*(one(orchestrator) for _ in range(AT_ONCE)))
        ticking.cancel()


def start_worker(url: str, base_url: str, log: Log, keys: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        random.seed()
        logging.disable(logging.WARNING)
        asyncio.run(work(url, base_url, log, keys))
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


def disturb(
    url: str, server: Server | None, base_url: str, log: Log, kills: int, chance: random.Random, stops: float
) -> Toll:
    """Kill, stop and continue workers until so many kills are done; then let them end."""
    toll, keys = Toll(), kills * KEYS_PER_KILL
    open_store(url)  # which loads its client once, and connects to nothing
    workers = {start_worker(url, base_url, log, keys) for _ in range(WORKERS)}
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
                        workers.add(start_worker(url, base_url, log, keys))
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
                workers.add(start_worker(url, base_url, log, keys))
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
    begun: int = 0
    again: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    in_flight: int = 0
    """Calls under way when the owner of their run was killed or stopped, and that run's outcome was another's."""
    answered: int = 0
    """Calls of such runs that had been answered by then: the answers died with the owner."""
    sent_after: int = 0
    """Calls that an owner sent when it was continued after a stop, and had lost its lease."""
    calls: int = 0
    """By the provider's count."""
    stood_still: int = 0
    broken: list[str] = field(default_factory=list)


@dataclass
class Working:
    """Work on a key by one process, as far as the log has been read; `struck` is (sent, heard) when it was stopped."""

    pid: int
    value: str
    excuse: str | None = None
    sent: int = 0
    heard: int = 0
    struck: tuple[int, int] | None = None


def judge(log: Log, keys: int, calls: int) -> Found:
    found = Found(calls=calls)
    answers: defaultdict[str, set[str]] = defaultdict(set)
    at_work: defaultdict[str, list[Working]] = defaultdict(list)
    works: defaultdict[str, list[Working]] = defaultdict(list)
    names: set[tuple[str, str]] = set()
    last = None
    for line in log.path.read_text().splitlines():
        at, what, key, pid_, value = line.split()
        pid = int(pid_)
        if last is not None and float(at) - last > STILL:
            found.stood_still += 1
            for working in [each for known, those in works.items() if known not in answers for each in those]:
                if working.excuse is None:
                    working.excuse, working.struck = "all stood still", (working.sent, working.heard)
        last = float(at)
        if what == "begins":
            found.begun += 1
            for other in at_work[key]:
                if other.excuse is None:
                    found.broken.append(f"{at}: {pid} and {other.pid} are both at work on key {key}")
            if works[key]:
                before = works[key][-1]
                if before.excuse is None:
                    found.broken.append(f"{at}: key {key} is worked on again though its work had ended well")
                else:
                    found.again[before.excuse] += 1
            works[key].append(Working(pid, value))
            at_work[key].append(works[key][-1])
        elif what in ("calls", "hears"):
            working = next(each for each in reversed(works[key]) if each.pid == pid)
            names.add((key, value))
            working.sent += what == "calls"
            working.heard += what == "hears"
        elif what in ("ends", "fails"):
            for working in list(at_work[key]):
                if working.value == value:
                    at_work[key].remove(working)
                    if what == "fails":
                        working.excuse = "owner failed"
        elif what in ("killed", "stopped"):
            # Who had ended his work may not have come to write it down.
            for working in [each for those in works.values() for each in those]:
                if working.pid == pid and working.excuse is None:
                    working.excuse = f"owner {what}"
                    working.struck = (working.sent, working.heard) if what == "stopped" else None
        elif what == "answer":
            answers[key].add(value)
        elif what == "not_remembered":
            if works[key] and works[key][-1].value == value.partition("/")[0]:
                works[key][-1].excuse = "not remembered"
        elif what == "refused":
            found.refused += 1
        elif what == "crashed":
            raise RuntimeError(f"worker {pid} crashed, which is no finding: {value}")
    found.broken += [f"key {key} has {len(those)} outcomes" for key, those in answers.items() if len(those) > 1]
    found.broken += [f"key {key} was never answered" for key in map(str, range(keys)) if key not in answers]
    found.broken += _counted(found, works, answers)
    if not found.broken and names != {(str(key), f"facts:r{n + 1}") for key in range(keys) for n in range(K)}:
        found.broken.append(f"{len(names)} names of replicates, of {keys * K}, were said to the provider")
    return found


def _counted(found: Found, works: dict[str, list[Working]], answers: dict[str, set[str]]) -> Iterator[str]:
    replicates = 0
    for key, those in works.items():
        outcome = {value.partition("/")[0] for value in answers[key]}
        if any(not value.endswith(f"/{K}") for value in answers[key]):
            yield f"the outcome of key {key} has not {K} replicates"
        for working in those:
            if working.sent > K:
                yield f"{working.pid} sent {working.sent} calls for key {key} in one go"
            if working.value in outcome:
                replicates += working.sent
                continue
            sent, heard = working.struck or (working.sent, working.heard)
            if working.excuse is not None:
                found.in_flight += sent - heard
                found.answered += heard
                found.sent_after += working.sent - sent
    if replicates != K * len(works):
        yield f"{replicates} calls made the outcomes of {len(works)} keys"
    if found.calls > replicates + found.in_flight + found.answered + found.sent_after:
        yield (
            f"{found.calls} calls for {replicates} replicates, with {found.in_flight} under way at a strike, "
            f"{found.answered} answered to who was struck, and {found.sent_after} sent by who had stood still"
        )


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


STORES = {"sqlite": "SQLite", "redis": "Redis, `appendfsync always`", "postgres": "PostgreSQL"}
HEAD = (
    "| store | killed | stopped | server killed | keys | begun | begun again after | refused | replicates "
    "| lost: under way | answered | sent late | provider's calls | s | broken |\n"
    "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def one_round(kind: str, kills: int, seed: int, stops: float = 0.2, keep: bool = True) -> tuple[Toll, Found, float]:
    with a_store(kind) as (url, server), simulated("--fault", SLOW) as (base_url, asked):
        log = Log(Path(tempfile.mkstemp(prefix="steer-kill-loop-")[1]))
        began = time.monotonic()
        try:
            toll = disturb(url, server, base_url, log, kills, random.Random(seed), stops)
            found = judge(log, kills * KEYS_PER_KILL, asked())
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
    print(
        f"{WORKERS} processes x {AT_ONCE} callers, bundles of {K}, {KEYS_PER_KILL} keys for each kill, "
        f"leases of {LEASE:g} s\n"
    )
    print(HEAD)
    kills = 0
    for kind in () if given.only_planted else given.stores.split(","):
        toll, found, took = one_round(kind, given.kills, given.seed)
        again = ", ".join(f"{why.removeprefix('owner ')} {n}" for why, n in sorted(found.again.items()))
        keys = given.kills * KEYS_PER_KILL
        cells = (toll.killed, toll.stopped, toll.servers_killed, keys, found.begun, again, found.refused, keys * K)
        lost = (found.in_flight, found.answered, found.sent_after)
        row = (STORES[kind], *cells, *lost, found.calls, f"{took:.0f}", len(found.broken))
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
        kills += toll.killed + toll.servers_killed
        if found.stood_still:
            print(f"    the machine stood still {found.stood_still} times")
        for line in found.broken[:10]:
            print("   ", line)
        broken += len(found.broken)
    print(f"\n{kills} kills")
    if given.no_planted:
        return 1 if broken else 0
    caught = 0
    for name, plant in DEFECTS.items():
        for round_ in range(1, ROUNDS + 1):
            with plant(), patch(f"{__name__}.SETTLING", 40.0), patch(f"{__name__}.FAILS", FAILS_PLANTED):
                _, found, took = one_round("sqlite", 14, given.seed + round_, stops=0.9, keep=False)
            if found.broken:
                break
        caught += bool(found.broken)
        says = f"caught in round {round_}: {found.broken[0]}" if found.broken else "NOT CAUGHT"
        print(f"planted: {name}: {says} ({took:.0f} s)", flush=True)
    print(f"caught/planted: {caught}/{len(DEFECTS)}")
    return 0 if not broken and caught == len(DEFECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
