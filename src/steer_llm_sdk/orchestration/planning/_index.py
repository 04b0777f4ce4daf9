"""The guard index: which rules may hold for a request, without looking at the others.

Each rule lies under one of the things that a request must have for it to hold: the rarest value that one of its
conditions asks for, and below that the next; or words of which one has to occur. A request is looked up by what it has.
What is found may hold, and what is not found does not; whoever asks tests what is found.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

FEW = 4
"""So many rules lie side by side: to ask them takes no longer than to look them up."""
FEW_NEEDLES = 64
"""So many words are looked for one by one."""
GRAMS = (4, 3, 2, 1)
"""Lengths of the pieces of words by which more of them are found: the longest that fits into the word."""
_MERGED_AT_ONCE = 64


class Value(NamedTuple):
    """The request has this value at this path: a text, a number, a bool or None."""

    path: str
    value: Any


class Words(NamedTuple):
    """One of these, case-folded, occurs in the text at this path, case-folded."""

    path: str
    needles: tuple[str, ...]


class Entry(Protocol):
    """A rule in the index. `order` is its place among all, unique; the lowest is asked first."""

    @property
    def order(self) -> tuple[int, int]: ...
    @property
    def values(self) -> Sequence[Value]: ...
    @property
    def words(self) -> Words | None: ...
    @property
    def settled(self) -> bool:
        """Whether the one value that it asks for is all that it asks for."""
        ...


E = TypeVar("E", bound=Entry)
Reader = Callable[[Any], Any]
_by_order = attrgetter("order")


class RuleIndex(Generic[E]):
    """Rules, in the order they are asked. `reader` makes of a path what follows it into a request.

    `certain`, by the text that a request has under `key`: the first of its candidates, where nothing else has to be
    asked to know that it holds. `key` is None, and it is empty, unless all rules ask for a text under one key.
    """

    __slots__ = ("_by_key", "_reader", "_root", "certain", "key")

    def __init__(self, reader: Callable[[str], Reader]) -> None:
        self._reader = reader
        self._root: _Node[E] = _Node()
        self._by_key: tuple[str, dict[Any, _Node[E]]] | None = None
        self.key: str | None = None
        self.certain: dict[str, E] = {}

    def __len__(self) -> int:
        return self._root.count

    def add(self, entry: E) -> None:
        root = self._root
        root.add(entry, tuple(entry.values), self._reader)
        alone = len(root.branches) == 1 and not root.here and root.texts is None
        path, branch = next(iter(root.branches.items())) if alone else (".", None)
        if branch is None or "." in path:
            self._by_key, self.key, self.certain = None, None, {}
            return
        known, self._by_key, self.key = self._by_key, (path, branch.children), path
        for value in branch.children if known is None else [guard.value for guard in entry.values]:
            if type(value) is str:
                self._find_certain(value, branch.children.get(value))

    def _find_certain(self, value: str, child: _Node[E] | None) -> None:
        if child is not None and not child.branches and child.texts is None and child.here[0].settled:
            self.certain[value] = child.here[0]
        else:
            self.certain.pop(value, None)

    def candidates(self, request: Any) -> Iterable[E]:
        """All that may hold, in order."""
        by_key = self._by_key
        if by_key is not None and type(request) is dict:  # All rules ask for a text under one key, and it has one.
            value = request.get(by_key[0])
            if type(value) is str:
                child = by_key[1].get(value)
                if child is None:
                    return ()
                if not child.branches and child.texts is None:
                    return child.here
        root = self._root
        if not root.branches and root.texts is None:
            return root.here
        found: list[Sequence[E]] = []
        root.collect(_Facts(request), found)
        if len(found) == 1:
            return found[0]
        if sum(map(len, found)) <= _MERGED_AT_ONCE:
            return sorted([entry for entries in found for entry in entries], key=_by_order)
        return merge(*found, key=_by_order)


class _Facts:
    """What a request has, each thing read once."""

    __slots__ = ("_folded", "request", "values")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.values: dict[str, Any] = {}
        self._folded: dict[str, Any] = {}

    def value(self, path: str, read: Reader) -> Any:
        values = self.values
        if path in values:
            return values[path]
        try:
            value = read(self.request)
        except Exception:  # Who tests a rule meets it again, and tells of it.
            value = _ODD
        values[path] = value
        return value

    def folded(self, path: str, read: Reader) -> Any:
        """The texts at a path, case-folded; _ODD where there is something else."""
        if path not in self._folded:
            self._folded[path] = _folded(self.value(path, read))
        return self._folded[path]


_ODD: Any = object()
"""A value of which only the conditions themselves can say what it equals."""


class _Node(Generic[E]):
    """`here` are the rules that are asked whatever else the request has; `open` those among them that could lie deeper,
    by their order, with what they still ask for."""

    __slots__ = ("branches", "count", "here", "open", "texts")

    def __init__(self) -> None:
        self.here: list[E] = []
        self.open: dict[tuple[int, int], tuple[Value, ...]] = {}
        self.branches: dict[str, _Branch[E]] = {}
        self.texts: dict[str, _Needles[E]] | None = None
        self.count = 0

    def add(self, entry: E, values: tuple[Value, ...], reader: Callable[[str], Reader]) -> None:
        self.count += 1
        insort(self.here, entry, key=_by_order)
        if values or entry.words is not None:
            self.open[entry.order] = values
        if self.open and (self.branches or self.texts is not None or len(self.here) > FEW):
            deeper = [other for other in self.here if other.order in self.open]
            self.here = [other for other in self.here if other.order not in self.open]
            opened, self.open = self.open, {}
            for other in deeper:
                self._send(other, opened[other.order], reader)

    def _send(self, entry: E, values: tuple[Value, ...], reader: Callable[[str], Reader]) -> None:
        if not values:
            self._under_words(entry, reader)
            return
        rarest = min(values, key=self._count_under)
        branch = self.branches.get(rarest.path)
        if branch is None:
            branch = self.branches[rarest.path] = _Branch(rarest.path, reader(rarest.path))
        branch.below(rarest.value).add(entry, tuple(v for v in values if v is not rarest), reader)

    def _count_under(self, guard: Value) -> int:
        branch = self.branches.get(guard.path)
        child = None if branch is None else branch.children.get(_key(guard.value))
        return 0 if child is None else child.count

    def _under_words(self, entry: E, reader: Callable[[str], Reader]) -> None:
        words = entry.words
        assert words is not None
        if self.texts is None:
            self.texts = {}
        needles = self.texts.get(words.path)
        if needles is None:
            needles = self.texts[words.path] = _Needles(words.path, reader(words.path))
        needles.add(entry, words.needles)

    def collect(self, facts: _Facts, found: list[Sequence[E]]) -> None:
        if self.here:
            found.append(self.here)
        for branch in self.branches.values():
            branch.collect(facts, found)
        if self.texts is not None:
            for needles in self.texts.values():
                needles.collect(facts, found)

    def all(self) -> Iterator[E]:
        yield from self.here
        for branch in self.branches.values():
            for child in branch.children.values():
                yield from child.all()
        for needles in (self.texts or {}).values():
            yield from needles.entries


class _Branch(Generic[E]):
    """Rules by the value that they ask for at one path."""

    __slots__ = ("children", "path", "read")

    def __init__(self, path: str, read: Reader) -> None:
        self.path = path
        self.read = read
        self.children: dict[Any, _Node[E]] = {}

    def below(self, value: Any) -> _Node[E]:
        key = _key(value)
        child = self.children.get(key)
        if child is None:
            child = self.children[key] = _Node()
        return child

    def collect(self, facts: _Facts, found: list[Sequence[E]]) -> None:
        value = facts.value(self.path, self.read)
        kind = type(value)
        if kind is str or kind is int or kind is float or value is None:
            child = self.children.get(value)
        elif kind is bool:
            child = self.children.get(_key(value))
        else:
            # A dict or a list equals no such value. An object of somebody's may equal any.
            if kind is not dict and kind is not list:
                found.append(sorted([e for node in self.children.values() for e in node.all()], key=_by_order))
            return
        if child is not None:
            child.collect(facts, found)


def _key(value: Any) -> Any:
    """True is not 1, though it has its hash."""
    return (_ODD, value) if value is True or value is False else value


class _Needles(Generic[E]):
    """Rules by the words of which one has to occur at one path.

    Each word lies under its rarest piece. A text is cut into all its pieces, and only the words under those that some
    word lies under are looked for, so the work grows with the text and hardly with the words.
    """

    __slots__ = ("_by_size", "entries", "path", "read")

    def __init__(self, path: str, read: Reader) -> None:
        self.path = path
        self.read = read
        self.entries: list[E] = []
        self._by_size: dict[int, _SameSize[E]] = {}

    def add(self, entry: E, needles: Iterable[str]) -> None:
        insort(self.entries, entry, key=_by_order)
        for needle in needles:
            size = next(size for size in GRAMS if size <= len(needle))
            known = self._by_size.get(size)
            if known is None:
                known = self._by_size[size] = _SameSize({}, set(), set(), [])
            rarest = min(
                pieces(needle, size), key=lambda piece: (_has_blank(piece), len(known.by_piece.get(piece, ())))
            )
            known.by_piece.setdefault(rarest, []).append((needle, entry))
            (known.with_blank if _has_blank(rarest) else known.pieces).add(rarest)
            known.all.append((needle, entry))

    def collect(self, facts: _Facts, found: list[Sequence[E]]) -> None:
        texts = facts.folded(self.path, self.read)
        if texts is _ODD:
            found.append(self.entries)
            return
        hits: dict[tuple[int, int], E] = {}
        for text in texts:
            for needle, entry in self._maybe_in(text):
                if needle in text:
                    hits[entry.order] = entry
        if hits:
            found.append([hits[order] for order in sorted(hits)])

    def _maybe_in(self, text: str) -> Iterable[tuple[str, E]]:
        found: list[tuple[str, E]] = []
        words = text.split()
        for size, known in self._by_size.items():
            if len(known.all) <= FEW_NEEDLES:
                found += known.all
                continue
            inside = [word[i : i + size] for word in words for i in range(len(word) - size + 1)]
            for piece in known.pieces.intersection(inside):
                found += known.by_piece[piece]
            if known.with_blank:
                for piece in known.with_blank.intersection(pieces(text, size)):
                    found += known.by_piece[piece]
        return found


class _SameSize(NamedTuple, Generic[E]):
    """The words that are found by pieces of one length, by these, and all of them."""

    by_piece: dict[str, list[tuple[str, E]]]
    pieces: set[str]  # A set tells faster than a dict what is not in it: it keeps the hashes side by side.
    with_blank: set[str]  # Those that are not inside of one word: a text has twice as many pieces as its words have.
    all: list[tuple[str, E]]


def _has_blank(piece: str) -> bool:
    return piece.split() != [piece]


def pieces(text: str, size: int) -> Sequence[str]:
    """All pieces of this length, in a fixed order."""
    return [text[i : i + size] for i in range(len(text) - size + 1)]


def _folded(value: Any) -> Any:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value.casefold(),)
    if isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value):
        return [item.casefold() for item in value if isinstance(item, str)]
    return _ODD


_PLAIN = (str, int, float, type(None), list, Mapping)
"""What may be in a list without being like a text in its own way."""
