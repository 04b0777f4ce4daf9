"""Which processes of a service live, on one machine: each holds a lock on a file of its own until it ends.

The kernel lets go of the lock when the process is killed, and not while it is merely slow or stopped. So nobody is
taken for dead who is not, and no clock is asked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class NoOwners:
    """Where nobody else can be, or an engine knows who lives."""

    def open(self, owner: str) -> None:
        pass

    def close(self) -> None:
        pass

    def lives(self, owner: str) -> bool:
        return True


class FileOwners(NoOwners):
    """Files beside `path`, named after the owners."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held: tuple[int, Path] | None = None

    def open(self, owner: str) -> None:
        place = self._place(owner)
        file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(file):
            os.close(file)
            raise OSError(f"{place} is somebody else's")
        self._held = file, place

    def close(self) -> None:
        if self._held is not None:
            file, place = self._held
            self._held = None
            with contextlib.suppress(OSError):
                place.unlink()
            os.close(file)

    def lives(self, owner: str) -> bool:
        """A file that nobody holds is taken away."""
        place = self._place(owner)
        try:
            file = os.open(place, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not _lock(file):
                return True
            with contextlib.suppress(OSError):
                place.unlink()
            return False
        finally:
            os.close(file)

    def _place(self, owner: str) -> Path:
        return Path(f"{self._path}.{owner}.lock")


def _lock(file: int) -> bool:
    # Not there on every system, and needed by who serves only.
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
