"""A dict by names that callers make up, which must not grow with them for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST = 1000


class Kept(dict[K, V]):
    """Forgets the oldest entries that nobody would miss, of which `idle` says so, where it has grown to MOST.

    What is in use stays. So it is never larger than MOST, or twice what is in use. `swept` is called after entries
    were forgotten.
    """

    def __init__(self, idle: Callable[[V], bool], swept: Callable[[], Any] = lambda: None) -> None:
        self._idle = idle
        self._swept = swept
        self._full = MOST

    def __setitem__(self, key: K, value: V) -> None:
        self._make_room(key)
        super().__setitem__(key, value)

    def setdefault(self, key: K, default: V) -> V:
        self._make_room(key)
        return super().setdefault(key, default)

    def _make_room(self, key: K) -> None:
        if len(self) < self._full or key in self:
            return
        # Copied: another thread may come with a name meanwhile.
        for old, value in list(self.items()):
            if len(self) <= MOST // 2:
                break
            if self._idle(value):
                self.pop(old, None)
        self._full = max(MOST, 2 * len(self))
        self._swept()
