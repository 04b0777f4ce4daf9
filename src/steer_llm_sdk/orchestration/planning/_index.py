"""The guard index: which rules may hold for a request, without looking at the others.

Each rule lies under what a request must have for it to hold: the values and the range that its conditions ask for, all
at once; and below these, or where it asks for none, a word, an item or a field. A request is looked up by what it has,
so the work grows with the request, and not with the rules. What is found may hold, and what is not found does not;
whoever asks tests what is found.

Of ten thousand rules most are not in the processor's cache when they are met. So a rule that lies alone under its
values lies there itself, with no list and no node on the way to it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from math import floor
from typing import Any, Generic, Protocol

from steer_llm_sdk.orchestration.planning._facts import ODD, E, Facts, Reader, by_order
from steer_llm_sdk.orchestration.planning._guards import WIDEST, Guard, Item, Present, Range, Value, Words
from steer_llm_sdk.orchestration.planning._word_index import WordIndex

FEW = 4
"""So many rules lie side by side: to ask them takes no longer than to look them up."""
MOST_TABLES = 8
"""So many combinations of paths have a table of their own; other rules lie under the values of some of their paths."""
_MERGED_AT_ONCE = 64


class RuleIndex(Generic[E]):
    """Rules, in the order they are asked. `reader` makes of a path what follows it into a request. While one thread
    adds a rule, others may look: they find all that were there before.

    `certain`, by the text that a request has under `key`: the first of its candidates, where nothing else has to be
    asked to know that it holds. `key` is None, and it is empty, unless all rules ask for a text under one key.
    """

    __slots__ = ("_alone", "_by_key", "_reader", "_root", "_size", "certain", "key")

    def __init__(self, reader: Callable[[str], Reader]) -> None:
        self._reader = reader
        self._root: _Node[E] = _Node()
        self._by_key: dict[Any, E | _Node[E]] | None = None
        self._alone: _Table[E] | None = None
        self._size = 0
        self.key: str | None = None
        self.certain: dict[str, E] = {}

    def __len__(self) -> int:
        return self._size

    def add(self, entry: E) -> None:
        self._size += 1
        root = self._root
        root.add(entry, (tuple(entry.values), entry.guard), self._reader)
        alone = len(root.tables) == 1 and not root.here and not root.others
        table = next(iter(root.tables.values())) if alone else None
        self._alone = None if table is None or any("." in path for path in table.paths) else table
        if table is None or len(table.paths) != 1 or table.grid is not None or "." in table.paths[0]:
            self._by_key, self.key, self.certain = None, None, {}
            return
        cells, known = table.cells, self._by_key
        self._by_key, self.key = cells, table.paths[0]
        for value in cells if known is None else [guard.value for guard in entry.values]:
            if type(value) is str:
                self._find_certain(value, cells.get(value))

    def _find_certain(self, value: str, cell: E | _Node[E] | None) -> None:
        first = (cell.here[0] if cell.is_flat else None) if isinstance(cell, _Node) else cell
        if first is not None and first.settled:
            self.certain[value] = first
        else:
            self.certain.pop(value, None)

    def candidates(self, request: Any) -> Iterable[E]:
        """All that may hold, in order."""
        by_key = self._by_key
        if by_key is not None and type(request) is dict:  # All rules ask for a text under one key, and it has one.
            value = request.get(self.key)
            if type(value) is str:
                cell = by_key.get(value)
                if cell is None:
                    return ()
                if type(cell) is not _Node:
                    return (cell,)  # type: ignore[return-value]  # What is no node is a rule.
                here = cell.here
                if cell.is_flat:
                    return here
        elif (table := self._alone) is not None and type(request) is dict:
            cell = table.cell(request)
            if cell is not None and type(cell) is not _Node:
                return (cell,)  # type: ignore[return-value]  # What is no node is a rule.
        root = self._root
        here = root.here  # Before it is asked: it may be flat no longer when that is said.
        if root.is_flat:
            return here
        found: list[Sequence[E]] = []
        root.collect(Facts(request), found)
        if len(found) <= 1:
            return found[0] if found else ()
        if sum(map(len, found)) <= _MERGED_AT_ONCE:
            return sorted([entry for entries in found for entry in entries], key=by_order)
        return merge(*found, key=by_order)


_Left = tuple[tuple[Value, ...], "Guard | None"]
"""What a rule still asks for that it could lie under."""
_Grid = tuple[str, float]
"""Path and scale."""


class _Node(Generic[E]):
    """`here` are the rules that are asked whatever else the request has; `open` those among them that could lie deeper,
    by their order, with what they still ask for."""

    __slots__ = ("here", "is_flat", "open", "others", "tables")

    def __init__(self) -> None:
        self.here: list[E] = []
        self.is_flat = True
        self.open: dict[tuple[int, int], _Left] = {}
        self.tables: dict[tuple[tuple[str, ...], _Grid | None], _Table[E]] = {}
        self.others: dict[tuple[type, str], _Finder[E]] = {}

    def add(self, entry: E, left: _Left, reader: Callable[[str], Reader]) -> None:
        insort(self.here, entry, key=by_order)
        if left[0] or left[1] is not None:
            self.open[entry.order] = left
        if self.open and (not self.is_flat or len(self.here) > FEW):
            # There first, and then no longer here: who looks meanwhile, in another thread, rather meets one twice.
            for other in self.here:
                if other.order in self.open:
                    self._send(other, self.open[other.order], reader)
            self.is_flat = False
            self.here = [other for other in self.here if other.order not in self.open]
            self.open = {}

    def _send(self, entry: E, left: _Left, reader: Callable[[str], Reader]) -> None:
        table = self._table_for(left, reader)
        if table is not None:
            table.add(entry, left, reader)
            return
        guard = left[1]
        assert guard is not None
        key = type(guard), guard.path
        finder = self.others.get(key)
        if finder is None:
            finder = _FINDERS[type(guard)](guard.path, reader(guard.path))
            self.others = {**self.others, key: finder}  # Another: somebody may be going through it.
        finder.add(entry, guard)

    def _table_for(self, left: _Left, reader: Callable[[str], Reader]) -> _Table[E] | None:
        """The table of just what it asks for; where there are many already, one of some of it."""
        values, guard = left
        paths = tuple(sorted({value.path for value in values}))
        grid = (guard.path, guard.scale) if isinstance(guard, Range) else None
        if not paths and grid is None:
            return None
        table = self.tables.get((paths, grid))
        if table is None and len(self.tables) >= MOST_TABLES:
            fitting = [t for t in self.tables.values() if t.grid in (None, grid) and set(t.paths).issubset(paths)]
            table = max(fitting, key=lambda table: len(table.paths), default=None)
            paths, grid = paths[:1], None
            if table is None and not paths:
                return None
        if table is None:
            table = _Table(paths, grid, reader)
            self.tables = {**self.tables, (paths, grid): table}
        return table

    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None:
        if self.here:
            found.append(self.here)
        for table in self.tables.values():
            table.collect(facts, found)
        if self.others:
            for finder in self.others.values():
                finder.collect(facts, found)

    def all(self) -> Iterator[E]:
        yield from self.here
        for table in self.tables.values():
            yield from table.all()
        for finder in self.others.values():
            yield from finder.entries


class _Table(Generic[E]):
    """Rules by the values that they ask for at some paths, and by the cell of a grid that the number at another is in:
    by that alone where it is one thing, else by a tuple. A range lies in each cell that it touches."""

    __slots__ = ("_by_values", "_reads", "cells", "grid", "paths")

    def __init__(self, paths: tuple[str, ...], grid: _Grid | None, reader: Callable[[str], Reader]) -> None:
        self.paths = paths
        self.grid = grid
        self.cells: dict[Any, E | _Node[E]] = {}
        self._reads = [(path, reader(path)) for path in paths]
        if grid is not None:
            self._reads.append((grid[0], reader(grid[0])))
        self._by_values: dict[tuple[Any, ...], list[E]] = {}
        """Of those with a range: who is asked of something that is no number."""

    def add(self, entry: E, left: _Left, reader: Callable[[str], Reader]) -> None:
        values, guard = left
        by_path = {value.path: _key(value.value) for value in values}
        key = tuple(by_path[path] for path in self.paths)
        left = self._left(values, guard)
        if self.grid is None:
            self._put(key[0] if len(key) == 1 else key, entry, left, reader)
            return
        assert isinstance(guard, Range)
        insort(self._by_values.setdefault(key, []), entry, key=by_order)
        for cell in guard.cells:
            self._put((*key, cell) if key else cell, entry, left, reader)

    def _put(self, key: Any, entry: E, left: _Left, reader: Callable[[str], Reader]) -> None:
        cell = self.cells.get(key)
        if cell is None:
            self.cells[key] = entry
            return
        if not isinstance(cell, _Node):
            alone, cell = cell, _Node()
            # What it asked for above this table it asks for again: that finds it as well.
            cell.add(alone, self._left(alone.values, alone.guard), reader)
            self.cells[key] = cell
        cell.add(entry, left, reader)

    def _left(self, values: Iterable[Value], guard: Guard | None) -> _Left:
        return tuple(v for v in values if v.path not in self.paths), guard if self.grid is None else None

    def cell(self, request: dict[Any, Any]) -> E | _Node[E] | None:
        """Where the rules lie for plain values under plain keys. None: there are none, or it is not as simple."""
        key: list[Any] = []
        for path in self.paths:
            value = request.get(path)
            if type(value) is not str and type(value) is not int:
                return None
            key.append(value)
        if self.grid is not None:
            path, scale = self.grid
            number = request.get(path)
            if (type(number) is not int and type(number) is not float) or not -WIDEST < number < WIDEST:
                return None
            key.append(floor(number * scale))
        return self.cells.get(tuple(key) if len(key) > 1 else key[0])

    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None:
        key: list[Any] = []
        hopeless = False
        for path, read in self._reads:
            value = facts.value(path, read)
            kind = type(value)
            if kind is bool:
                value = _key(value)
            elif kind is dict or kind is list:  # These equal no such value. An object of somebody's may equal any.
                hopeless = True
            elif not (kind is str or kind is int or kind is float or value is None):
                found.append(sorted(self.all(), key=by_order))
                return
            key.append(value)
        if self.grid is not None:
            number = key[-1]
            if number is None:
                return
            if type(number) is not int and type(number) is not float:
                hopeless = any(type(value) in (dict, list) for value in key[:-1])
                if not hopeless:
                    found.append(self._by_values.get(tuple(key[:-1]), ()))
                return
            if not -WIDEST < number < WIDEST:
                return
            key[-1] = floor(number * self.grid[1])
        if hopeless:
            return
        cell = self.cells.get(key[0] if len(key) == 1 else tuple(key))
        if type(cell) is _Node:
            cell.collect(facts, found)
        elif cell is not None:
            found.append((cell,))  # type: ignore[arg-type]  # What is no node is a rule.

    def all(self) -> Iterable[E]:
        if self.grid is not None:
            return [entry for entries in list(self._by_values.values()) for entry in entries]
        return self._all()

    def _all(self) -> Iterator[E]:
        for cell in list(self.cells.values()):
            if isinstance(cell, _Node):
                yield from cell.all()
            else:
                yield cell


def _key(value: Any) -> Any:
    """True is not 1, though it has its hash."""
    return (ODD, value) if value is True or value is False else value


class _Finder(Protocol[E]):
    """Rules by what else they ask for at one path, and all of them in order."""

    entries: list[E]

    def add(self, entry: E, guard: Any) -> None: ...
    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None: ...


def _put(cells: dict[Any, E | list[E]], key: Any, entry: E) -> None:
    """What lies alone needs no list."""
    there = cells.get(key)
    if there is None:
        cells[key] = entry
    elif isinstance(there, list):
        insort(there, entry, key=by_order)
    else:
        cells[key] = sorted((there, entry), key=by_order)


def _get(cells: dict[Any, E | list[E]], key: Any, found: list[Sequence[E]]) -> None:
    there = cells.get(key)
    if there is not None:
        found.append(there if type(there) is list else (there,))  # type: ignore[arg-type]  # Or a rule.


class _Ranges(Generic[E]):
    """Rules by the range in which a number has to be, with a grid for each width there is: each a power of two."""

    __slots__ = ("_grids", "_path", "_read", "entries")

    def __init__(self, path: str, read: Reader) -> None:
        self._path, self._read = path, read
        self.entries: list[E] = []
        self._grids: dict[float, dict[int, E | list[E]]] = {}

    def add(self, entry: E, guard: Range) -> None:
        insort(self.entries, entry, key=by_order)
        grid = self._grids.get(guard.scale)
        if grid is None:
            grid = {}
            self._grids = {**self._grids, guard.scale: grid}
        for cell in guard.cells:
            _put(grid, cell, entry)

    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None:
        value = facts.value(self._path, self._read)
        if value is None:
            return
        if type(value) is not int and type(value) is not float:
            found.append(self.entries)
        elif -WIDEST < value < WIDEST:
            for scale, grid in self._grids.items():
                _get(grid, floor(value * scale), found)


class _Fields(Generic[E]):
    """Rules by the key that a request has to have."""

    __slots__ = ("_by_key", "entries")

    def __init__(self, path: str, read: Reader) -> None:
        self.entries: list[E] = []
        self._by_key: dict[str, E | list[E]] = {}

    def add(self, entry: E, guard: Present) -> None:
        insort(self.entries, entry, key=by_order)
        _put(self._by_key, guard.key, entry)

    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None:
        request, by_key = facts.request, self._by_key
        if type(request) is not dict:
            found.append(self.entries)
            return
        for key in request if len(request) < len(by_key) else by_key.keys() & request.keys():
            _get(by_key, key, found)


class _Items(Generic[E]):
    """Rules by the text that has to be in a text, a list or a mapping."""

    __slots__ = ("_by_item", "_path", "_read", "_texts", "entries")

    def __init__(self, path: str, read: Reader) -> None:
        self._path, self._read = path, read
        self.entries: list[E] = []
        self._by_item: dict[str, E | list[E]] = {}
        self._texts: WordIndex[E] = WordIndex(path, read)

    def add(self, entry: E, guard: Item) -> None:
        insort(self.entries, entry, key=by_order)
        _put(self._by_item, guard.item, entry)
        self._texts.add(entry, Words(guard.path, (guard.item.casefold(),)))

    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None:
        value = facts.value(self._path, self._read)
        if type(value) is str:
            self._texts.collect(facts, found)
        elif (type(value) is list or type(value) is dict) and _HASHED.issuperset(map(type, value)):
            for item in set(value):
                _get(self._by_item, item, found)
        elif value is not None:
            found.append(self.entries)


_HASHED = frozenset((str, int, float, bool, type(None)))


_FINDERS: Mapping[type, Callable[[str, Reader], Any]] = {
    Words: WordIndex,
    Item: _Items,
    Present: _Fields,
    Range: _Ranges,
}
