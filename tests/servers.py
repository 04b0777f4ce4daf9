"""Private Redis and PostgreSQL servers for tests and proofs: real ones, on free ports of this machine, gone with us.

A server is started, stopped, killed, paused and started again on the same port. Root may use them: PostgreSQL, which
refuses to run as root, then runs as `postgres` or `nobody`.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

APT = "apt-get install -y --no-install-recommends redis-server postgresql"
PATIENCE = 30.0
"""Seconds that a server gets to come up or to go down; it takes one at most on an idle machine."""
PR_SET_PDEATHSIG = 1


class ServerMissing(RuntimeError):
    """A binary that the tests need is not on this machine."""


class Server:
    """What both have in common; `url` stays the same for the life of the object."""

    url: str

    def __init__(self) -> None:
        self.port = _free_port()
        self.home = Path(tempfile.mkdtemp(prefix="steer-server-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again with what it has on disk; does nothing where it runs."""
        if self.running:
            return
        # The kernel ties the server's life to the thread that started it, not to the process.
        assert threading.current_thread() is threading.main_thread(), "start servers from the main thread"
        end = time.monotonic() + PATIENCE
        while True:
            self._process = self._launch()
            while self.running and time.monotonic() < end:
                if self._answers():
                    return
                time.sleep(0.01)
            # After a kill, PostgreSQL refuses to start until the last of its children is gone.
            if time.monotonic() >= end:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} did not come up: {self._log().read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(self.STOP)

    def kill(self) -> None:
        """End it as a power cut would, children first so that they cannot tidy up."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it be silent without being gone: connections stay open and nothing answers."""
        for pid in (*_children(self.pid), self.pid):
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in (self.pid, *_children(self.pid)):
            _signal(pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good and remove its files."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    STOP: signal.Signals

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            children = _children(process.pid)
            if how is signal.SIGKILL:
                for child in children:
                    _signal(child, how)
            else:  # What is paused hears nothing.
                for pid in (process.pid, *children):
                    _signal(pid, signal.SIGCONT)
            process.send_signal(how)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _log(self) -> Path:
        return self.home / "log"

    def _spawn(self, arguments: list[str], user: str | None = None) -> subprocess.Popen[bytes]:
        with self._log().open("ab") as log:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                user=user,
                group=None if user is None else pwd.getpwnam(user).pw_gid,
                extra_groups=None if user is None else [],
                preexec_fn=dies_with_us(self.STOP),
                start_new_session=True,  # Ctrl-C in a terminal is for the tests.
            )


class RedisServer(Server):
    """By default nothing is written to disk; `durable` writes each change before it is answered. `cluster`: it is the
    one node of a cluster, which has all the slots and still refuses what would touch two of them."""

    STOP = signal.SIGTERM

    def __init__(self, *, durable: bool = False, cluster: bool = False) -> None:
        self._binary = _binary("redis-server")
        super().__init__()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._persistence = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
        self._cluster = ["--cluster-enabled", "yes", "--cluster-port", str(_free_port())] if cluster else []

    def _launch(self) -> subprocess.Popen[bytes]:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.home), "--daemonize", "no"]
        return self._spawn([self._binary, *place, "--save", "", *self._persistence, *self._cluster])

    def _answers(self) -> bool:
        try:
            if not self._cluster:
                return self._says("PING").startswith("+PONG")
            self._says("CLUSTER ADDSLOTSRANGE 0 16383")
            return "cluster_state:ok" in self._says("CLUSTER INFO")
        except OSError:
            return False

    def _says(self, command: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096).decode()


class PostgresServer(Server):
    """What was committed outlives a kill of the server, though not of the machine: nothing waits for the disk."""

    STOP = signal.SIGINT

    def __init__(self) -> None:
        self._binary, initdb = _binary("postgres"), _binary("initdb")
        super().__init__()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._user = _not_root()
        if self._user is not None:
            shutil.chown(self.home, self._user, pwd.getpwnam(self._user).pw_gid)
        self._data = self.home / "data"
        made = self._spawn(
            [initdb, "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            self._user,
        )
        if made.wait(PATIENCE):
            raise RuntimeError(f"initdb failed: {self._log().read_text()[-2000:]}")

    def _launch(self) -> subprocess.Popen[bytes]:
        # A pid file of a server that was killed says "ready" as well.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        place = ["-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        fast = ["-F", "-c", "full_page_writes=off", "-c", "max_connections=200", "-c", "shared_buffers=32MB"]
        return self._spawn([self._binary, *place, *fast], self._user)

    def _answers(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"


def _binary(name: str) -> str:
    versions = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: int(path.split("/")[4]))
    found = versions[-1] if versions else shutil.which(name)
    if found is None:
        raise ServerMissing(f"{name} is not on this machine; install it: {APT}")
    return found


def _not_root() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def dies_with_us(how: signal.Signals) -> Callable[[], None] | None:
    """Called in the child: has the kernel send it `how` when the thread that started it is gone."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec as little as can be
    return lambda: libc.prctl(PR_SET_PDEATHSIG, how)
