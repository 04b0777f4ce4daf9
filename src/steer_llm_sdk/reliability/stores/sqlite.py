"""The store in a file: for any number of processes on one machine.

Whatever may have to wait is done on one thread per process: opening the file, another process's lock, the disk. What
comes in meanwhile is written next in one transaction. Where nothing is in the way, a write ends in the memory of the
operating system, which takes a tenth of the time that it takes to wake a thread and be woken by it: then it is done at
once, where it is asked for.
"""

from __future__ import annotations

import asyncio
import math
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from steer_llm_sdk.errors import InvalidRequest, StoreTooNew, StoreUnavailable
from steer_llm_sdk.reliability.stores import POLL, VERSION, Changed, Claim, Store
from steer_llm_sdk.reliability.stores._sqlite import into_wal
from steer_llm_sdk.reliability.stores._url import shown

R = TypeVar("R")

BUSY = 2.0
"""Seconds to wait for another process that is writing."""
BATCH = 200
"""Actions in one transaction at most: the first of them waits for the last."""
SLOW = 0.005
"""Seconds: after an action that took longer all go to the thread for a while,"""
RESPITE = 10
"""so many times what it took: so the loop stands still for a tenth of the time at most, however slow the disk."""
AT_ONCE = 4
"""Actions in one turn of the loop that are done at once: of a crowd, the others are written in one transaction."""
TURN = 0.05
"""Seconds that a turn of a loop lasts at most, should it have no end that is seen."""
LARGE = 1 << 16
"""Bytes of a result that is left to the thread to write."""
CHECKPOINT = 400
"""Rows changed without the thread, after which it moves them from the log into the file."""
SWEEP = 60.0
"""Seconds between two removals of what is forgotten."""
SWEEP_ON = 1.0
"""The same where there is more."""
SWEPT = 500
"""Rows removed at a time at most."""
SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS steer_keys (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    token INTEGER NOT NULL,
    version INTEGER NOT NULL,
    ttl REAL NOT NULL,
    until REAL NOT NULL,      -- the end of the lease
    forgotten REAL NOT NULL,  -- the end of everything about the key
    wanted REAL NOT NULL DEFAULT 0,
    result TEXT
);
CREATE INDEX IF NOT EXISTS steer_keys_forgotten ON steer_keys (forgotten);
CREATE TABLE IF NOT EXISTS steer_tokens (last INTEGER NOT NULL);
INSERT INTO steer_tokens SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM steer_tokens);
"""


class Keys:
    """What happens to a key, within the transaction of the caller, at a moment that the caller names."""

    def __init__(self, database: sqlite3.Connection, where: str = "this store") -> None:
        self._run = database.execute
        self._where = where

    def look(self, key: str, fingerprint: str, now: float) -> Claim | None:
        """What a claim comes to where nothing has to be written for it, which is nearly always when it is not ours."""
        found = self._run(
            "SELECT fingerprint, token, version, until, result FROM steer_keys WHERE key = ? AND forgotten > ?",
            (key, now),
        ).fetchone()
        if found is None:
            return None
        known, token, version, until, result = found
        if version > VERSION:
            raise StoreTooNew(self._where, f"the value of key '{key}'", version, VERSION)
        if known != fingerprint:
            return Claim("conflict")
        if result is not None:
            return Claim("settled", token, result.encode())
        return Claim("theirs", left=until - now) if now < until else None

    def claim(self, key: str, fingerprint: str, lease: float, ttl: float, now: float) -> Claim:
        seen = self.look(key, fingerprint, now)
        if seen is not None:
            return seen
        self._run("UPDATE steer_tokens SET last = last + 1")
        (token,) = self._run("SELECT last FROM steer_tokens").fetchone()
        self._run(
            "INSERT OR REPLACE INTO steer_keys (key, fingerprint, token, version, ttl, until, forgotten)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, fingerprint, token, VERSION, ttl, now + lease, now + lease + ttl),
        )
        return Claim("ours", token)

    def renew(self, key: str, token: int, lease: float, now: float) -> bool:
        return self._write("SET until = ?, forgotten = ? + ttl", (now + lease, now + lease), key, token, now)

    def settle(self, key: str, token: int, result: bytes, now: float) -> bool:
        return self._write("SET result = ?, forgotten = ? + ttl", (result.decode(), now), key, token, now)

    def release(self, key: str, token: int, now: float) -> bool:
        gone = self._run(
            "DELETE FROM steer_keys WHERE key = ? AND token = ? AND result IS NULL AND forgotten > ?", (key, token, now)
        )
        return gone.rowcount > 0

    def want(self, key: str, seconds: float, now: float) -> bool:
        """Writes nothing where it would change nothing, a little time aside."""
        less = self._run(
            "SELECT 1 FROM steer_keys WHERE key = ? AND result IS NULL AND wanted < ?", (key, now + seconds - 1)
        ).fetchone()
        if less is None:
            return True
        done = self._run(
            "UPDATE steer_keys SET wanted = max(wanted, ?) WHERE key = ? AND result IS NULL", (now + seconds, key)
        )
        return done.rowcount > 0

    def wanted(self, key: str, token: int, now: float) -> float:
        found = self._run(
            "SELECT wanted FROM steer_keys WHERE key = ? AND token = ? AND result IS NULL", (key, token)
        ).fetchone()
        return 0.0 if found is None else max(0.0, float(found[0]) - now)

    def sweep(self, now: float) -> int:
        return self._run(
            "DELETE FROM steer_keys WHERE rowid IN (SELECT rowid FROM steer_keys WHERE forgotten <= ? LIMIT ?)",
            (now, SWEPT),
        ).rowcount

    def _write(self, change: str, values: tuple[Any, ...], key: str, token: int, now: float) -> bool:
        done = self._run(
            f"UPDATE steer_keys {change} WHERE key = ? AND token = ? AND result IS NULL AND forgotten > ?",
            (*values, key, token, now),
        )
        return done.rowcount > 0


class Job(NamedTuple):
    """`act` gets Keys and the moment. It may be called twice, the first time in a transaction that is taken back."""

    act: Callable[[Keys, float], Any]
    answer: asyncio.Future[Any]


class SqliteStore(Store):
    """`path` is made where it is not there. `synchronous` "normal": a kill of the process costs nothing, a power cut
    may cost the results of the last moments; "full": neither does, and every write waits for the disk.
    """

    def __init__(self, path: str, *, synchronous: str = "normal", clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        # A run that is thrown away with its loop lets go wherever it is collected, be it under the lock.
        self._lock = threading.RLock()
        self._worker: _Worker | None = None

    def __repr__(self) -> str:
        return f"sqlite:///{self._path}"

    # Futures and not coroutines: whoever gives up waiting for one needs no task round it.

    def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> asyncio.Future[Claim]:
        return self._do(lambda keys, now: keys.claim(key, fingerprint, lease, ttl, now))

    def renew(self, key: str, token: int, lease: float) -> asyncio.Future[bool]:
        return self._do(lambda keys, now: keys.renew(key, token, lease, now))

    def settle(self, key: str, token: int, result: bytes) -> asyncio.Future[bool]:
        return self._do(lambda keys, now: keys.settle(key, token, result, now), at_once=len(result) <= LARGE)

    def release(self, key: str, token: int) -> asyncio.Future[bool]:
        return self._do(lambda keys, now: keys.release(key, token, now))

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        most = min(seconds, 1e9)
        await self._do(lambda keys, now: keys.want(key, most, now))
        yield lambda most: asyncio.sleep(min(most, POLL))

    async def wanted(self, key: str, token: int) -> float:
        return await self._do(lambda keys, now: keys.wanted(key, token, now))

    async def aclose(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None and worker.pid == os.getpid():
            closed = asyncio.get_running_loop().create_future()
            worker.jobs.put(closed)
            await closed

    def __del__(self) -> None:
        if self._worker is not None:
            self._worker.jobs.put(None)

    def _do(self, act: Callable[[Keys, float], R], at_once: bool = True) -> asyncio.Future[R]:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        with self._lock:
            worker = self._worker
            if worker is None or worker.pid != os.getpid():
                if worker is not None:
                    _of_parents.append(worker)
                try:
                    worker = self._worker = _Worker(self._path, self._synchronous, self._clock)
                except RuntimeError as error:  # No thread is to be had.
                    answer.set_exception(StoreUnavailable(f"{self!r} did not answer: {error}"))
                    return answer
            done = worker.at_once(act) if at_once else _LATER
            if done is _LATER:
                worker.jobs.put(Job(act, answer))
            else:
                _answer([(answer, done)])
        return answer


_of_parents: list[_Worker] = []
"""Of processes that we were forked from. Neither a thread nor a connection comes along: SQLite wants it to be used no
more, and not to be closed either."""


class _Worker:
    """The thread, its connection and its queue. It knows no store, so that one that is dropped takes it along."""

    def __init__(self, path: str, synchronous: str, clock: Callable[[], float]) -> None:
        self.pid = os.getpid()
        self.jobs: queue.SimpleQueue[Job | object | asyncio.Future[None] | None] = queue.SimpleQueue()
        self._where = f"sqlite:///{path}"
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._database: sqlite3.Connection | None = None
        self._next_sweep = -math.inf
        self._more_to_sweep = False
        # Of whoever asks: a connection that waits for nobody, and by whom it is in use.
        self._quick: sqlite3.Connection | None = None
        self._in_hand = threading.Lock()
        self._slow_until = -math.inf
        self._turn_until = -math.inf
        self._in_turn = 0
        self._checkpointed = 0
        threading.Thread(target=self._serve, name="steer-sqlite", daemon=True).start()

    def at_once(self, act: Callable[[Keys, float], Any]) -> Any:
        """What it came to, or _LATER: it is to be done by the thread."""
        if self._quick is None or not self._in_hand.acquire(blocking=False):
            return _LATER
        try:
            database, began = self._quick, time.monotonic()
            if database is None or began < self._slow_until or self._is_crowded(began):
                return _LATER
            try:
                (done,) = self._in_one(database, "BEGIN", (act,))
            except BaseException as error:
                self._take_back(database)
                if isinstance(error, sqlite3.Error):
                    return _LATER
                raise
            ended = time.monotonic()
            if ended - began > SLOW:
                self._slow_until = ended + RESPITE * (ended - began)
            if database.total_changes - self._checkpointed >= CHECKPOINT:
                self._checkpointed = database.total_changes
                self.jobs.put(_CHECKPOINT)
            return done
        finally:
            self._in_hand.release()

    def _is_crowded(self, now: float) -> bool:
        if now >= self._turn_until:
            self._in_turn, self._turn_until = 0, now + TURN
            asyncio.get_running_loop().call_soon(self._turned)
        self._in_turn += 1
        return self._in_turn > AT_ONCE

    def _turned(self) -> None:
        self._turn_until = -math.inf

    def _take_back(self, database: sqlite3.Connection) -> None:
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error:
            self._quick = None
            database.close()

    def _serve(self) -> None:
        while True:
            batch, then = self._wait()
            answers = self._carry_out(batch) if batch else []
            self._sweep()
            ends = then is None or isinstance(then, asyncio.Future)
            if ends:
                self._close()
                if isinstance(then, asyncio.Future):
                    answers.append((then, None))
            _hand_over(answers)
            if ends:
                return
            if then is _CHECKPOINT:
                self._checkpoint()

    def _wait(self) -> tuple[list[Job], object]:
        """The jobs that are there, and what is to be done then: one of the two, unless it is time to sweep."""
        batch: list[Job] = []
        try:
            item = self.jobs.get(timeout=SWEEP_ON if self._more_to_sweep else SWEEP)
            while isinstance(item, Job):
                batch.append(item)
                if len(batch) == BATCH:
                    return batch, _GO_ON
                item = self.jobs.get_nowait()
        except queue.Empty:
            return batch, _GO_ON
        return batch, item

    def _carry_out(self, batch: list[Job]) -> list[tuple[asyncio.Future[Any], Any]]:
        try:
            database = self._opened()
            acts = [job.act for job in batch]
            try:
                done = self._in_one(database, "BEGIN", acts)
            except sqlite3.OperationalError:
                # Somebody else writes, or wrote after our first look: we queue, and look again.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                done = self._in_one(database, "BEGIN IMMEDIATE", acts)
            return [(job.answer, answer) for job, answer in zip(batch, done, strict=True)]
        except StoreTooNew as error:
            self._close()
            return [(job.answer, error) for job in batch]
        except Exception as error:  # Whatever it is: a thread that ends answers nobody any more.
            self._close()
            says = f"{self._where} did not answer: {type(error).__name__}: {error}"
            return [(job.answer, StoreUnavailable(says)) for job in batch]

    def _in_one(
        self, database: sqlite3.Connection, begin: str, acts: Sequence[Callable[[Keys, float], Any]]
    ) -> list[Any]:
        """Begun without a lock: who only looks takes none, and who writes is let through only where nobody wrote since
        he looked. So one look will do, where a lock that is taken first would need another before it."""
        database.execute(begin)
        keys, now = Keys(database, self._where), self._clock()
        done = [_attempt(act, keys, now) for act in acts]
        database.execute("COMMIT")
        return done

    def _opened(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        folder = Path(self._path).absolute().parent
        if not folder.is_dir():
            raise OSError(f"the folder {folder} is not there; make it")
        database = self._database = self._connected(BUSY)
        into_wal(database, BUSY)
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        if schema > SCHEMA:
            raise StoreTooNew(self._where, "its schema", schema, SCHEMA)
        if schema < SCHEMA:
            database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
        if self._synchronous == "normal":  # Else each write waits for the disk.
            quick = self._connected(0)
            quick.execute("PRAGMA wal_autocheckpoint = 0")
            quick.execute("SELECT last FROM steer_tokens").fetchone()
            self._checkpointed, self._quick = 0, quick
        return database

    def _connected(self, busy: float) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=busy, isolation_level=None, check_same_thread=False)
        database.execute(f"PRAGMA synchronous = {self._synchronous}")
        return database

    def _checkpoint(self) -> None:
        try:
            # Nobody writes meanwhile: the log begins anew only when all of it was moved.
            with self._in_hand:
                if self._database is not None:
                    self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            pass  # The log grows, until the next one.

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._next_sweep or self._database is None:
            return
        try:
            swept = Keys(self._database).sweep(now)
        except sqlite3.Error:
            swept = 0  # Somebody else writes; there is time.
        self._more_to_sweep = swept == SWEPT
        self._next_sweep = now + (SWEEP_ON if self._more_to_sweep else SWEEP)

    def _close(self) -> None:
        with self._in_hand:
            quick, self._quick = self._quick, None
        database, self._database = self._database, None
        for connection in (quick, database):
            if connection is not None:
                connection.close()


_GO_ON, _LATER, _CHECKPOINT = object(), object(), object()


def _attempt(action: Callable[[Keys, float], R], keys: Keys, now: float) -> R | Exception:
    """A value that cannot be read, or written, is the misfortune of the one who asked for it."""
    try:
        return action(keys, now)
    except (StoreTooNew, ValueError, TypeError, OverflowError, sqlite3.DataError) as error:
        return error


def _hand_over(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, answer in answers:
        by_loop.setdefault(future.get_loop(), []).append((future, answer))
    for loop, those in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, those)
        except RuntimeError:
            continue  # The loop is closed, and nobody waits.


def _answer(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in answers:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def file_of(url: str) -> tuple[str, str]:
    """The path, and what `synchronous` is; InvalidRequest where the URL is of no file, or has other options."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path.removeprefix("/"))
    synchronous = options.pop("synchronous", "normal")
    if (
        parts.netloc
        or not path
        or "\0" in path
        or path == ":memory:"
        or synchronous not in ("normal", "full")
        or options
    ):
        raise InvalidRequest(
            "store",
            shown(url),
            "give sqlite:///file.db or sqlite:////absolute/file.db, with ?synchronous=full where a power cut must not "
            "cost the last results; memory:// is a store in memory",
        )
    return path, synchronous


def opened(url: str) -> Store:
    path, synchronous = file_of(url)
    return SqliteStore(path, synchronous=synchronous)
