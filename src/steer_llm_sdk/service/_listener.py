"""The socket on which several processes of a service listen, so that each gets its share of the connections.

All of them are woken by a new one, and the same one is the first time and again: it would have nearly all, and be busy
while the others are idle. So each knows how many the others have, and leaves a new one to them while it has more.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import time
from multiprocessing.reduction import DupFd  # As the standard library hands on its own; no documented way is there.
from typing import Any

QUEUE = 2_048
"""Connections that wait for a process to take them."""
SLOTS = 256
"""Processes at most; those that are about to replace others are counted, too."""
EVEN = 1
"""Connections that one may have more than another and still take one."""
PATIENCE = 0.002
"""Seconds for which a connection is left to others; one of them may have died, or be busy."""
IN_A_ROW = 3
"""Connections that are left to others before one is taken. Where a turn of the loop is longer than PATIENCE, a
connection that nobody takes looks like a new one each time."""
_NOBODY = 0xFFFF_FFFF


class Shares:
    """How many connections each process has, in a file that is memory of all of them. A process has a slot, which the
    system frees when it ends, however it ends."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._counts = memoryview(mmap.mmap(file, 4 * SLOTS)).cast("I")
        self._mine: int | None = None

    @classmethod
    def new(cls) -> Shares:
        with tempfile.TemporaryFile() as file:
            file.write(_NOBODY.to_bytes(4, "little") * SLOTS)
            file.flush()
            return cls(os.dup(file.fileno()))

    def join(self) -> None:
        """Take a slot. A process that finds none free takes whatever comes."""
        import fcntl  # not there on every system

        for slot in range(SLOTS):
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except OSError:
                continue
            self._mine, self._counts[slot] = slot, 0
            return

    def has(self, connections: int) -> None:
        if self._mine is not None and self._counts[self._mine] != _NOBODY:
            self._counts[self._mine] = connections

    def leave(self) -> None:
        """It takes no more, and nobody waits for it to."""
        self.has(_NOBODY)

    def is_mine(self) -> bool:
        """Whether the next connection is for this process to take."""
        return self._mine is None or self._counts[self._mine] <= min(self._counts) + EVEN


class Listener(socket.socket):
    """A socket for asyncio, which takes as many connections in one turn of its loop as it has the queue made long. So
    it is to ask for a queue of one, gets a long one, and takes one in each turn."""

    shares: Shares | None = None
    _left_since: float | None = None
    _left = 0

    def listen(self, backlog: int = QUEUE) -> None:
        super().listen(QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.shares is not None and not self.shares.is_mine():
            now = time.monotonic()
            if self._left_since is None or (now > self._left_since + 2 * PATIENCE and self._left < IN_A_ROW):
                self._left_since = now
                self._left += 1
            if now < self._left_since + PATIENCE:
                raise BlockingIOError("it is for another process to take")
        self._left_since, self._left = None, 0
        return super().accept()

    def close(self) -> None:
        if self.shares is not None:
            self.shares.leave()
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        """On its way to a process that is being started."""
        shares = self.shares = self.shares or Shares.new()
        return _arrived, (self.family, self.type, self.proto, DupFd(self.fileno()), DupFd(shares.file))


def _arrived(family: int, kind: int, proto: int, handle: Any, file: Any) -> Listener:
    global shares
    listener = Listener(family, kind, proto, handle.detach())
    listener.shares = shares = Shares(file.detach())
    shares.join()
    return listener


shares: Shares | None = None
"""Those of this process, if it is one of several."""
