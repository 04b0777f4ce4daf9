"""What all who keep something in a SQLite file need."""

from __future__ import annotations

import sqlite3
import time

_AGAIN = 0.01


def into_wal(database: sqlite3.Connection, patience: float) -> str:
    """Have the file write ahead (WAL), so that who reads waits for nobody; returns the mode that it is in, which is
    another where the file cannot. Tries for `patience` seconds: SQLite itself does not wait where several do this to a
    new file at once, it says that the file is locked."""
    end = time.monotonic() + patience
    while True:
        try:
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            return str(mode)
        except sqlite3.OperationalError:
            if time.monotonic() >= end:
                raise
        time.sleep(_AGAIN)
