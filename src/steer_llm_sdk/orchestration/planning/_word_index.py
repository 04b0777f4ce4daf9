"""Rules by the words of which one has to occur in a text, found without looking for each of ten thousand words."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from steer_llm_sdk.orchestration.planning._facts import ODD, E, Facts, Reader, by_order
from steer_llm_sdk.orchestration.planning._guards import Words

FEW_NEEDLES = 64
"""So many words whose pieces are of one length are looked for one by one."""
GRAMS = (8, 4, 3, 2, 1)
"""Lengths of the pieces of words by which more of them are found: the longest that fits into the word."""
MOST_KNOWN = 8192
"""Of so many words of texts it is known what is in them."""
KNOWN_PER_NEEDLE = 16
"""For each word that is looked for so many, up to MOST_KNOWN: few rules are not to keep many words."""
LONGEST_KNOWN = 32
"""Characters of a word that is remembered, at most: who sends longer ones, each time others, is not to fill the memory
with them."""


_Known = tuple[dict[str, None], dict[str, Any]]
"""Words of texts with nothing in them; and what is in others: the rule, where it is one, and that for certain."""


class WordIndex(Generic[E]):
    """Rules by the words of which one has to occur at one path.

    Each word that is looked for lies under its rarest piece. A word of a text is cut into all its pieces, and only what
    lies under one of them is looked for. What is in it, mostly nothing, is known the next time it is met, as most words
    are again and again.
    """

    __slots__ = (
        "_by_size",
        "_few",
        "_known",
        "_many",
        "_needles",
        "_shortest",
        "_with_blank",
        "entries",
        "path",
        "read",
    )

    def __init__(self, path: str, read: Reader) -> None:
        self.path = path
        self.read = read
        self.entries: list[E] = []
        self._by_size: dict[int, _SameSize] = {}
        self._needles = 0
        self._known: _Known = ({}, {})
        self._few: list[Sequence[Any]] = []
        self._many: list[tuple[int, _SameSize]] = []
        self._shortest = 0
        """Letters of a word of a text: there is no piece in a shorter one."""
        self._with_blank: list[tuple[int, _SameSize]] = []

    def add(self, entry: E, guard: Words) -> None:
        insort(self.entries, entry, key=by_order)
        for needle in guard.needles:
            size = next(size for size in GRAMS if size <= len(needle))
            known = self._by_size.get(size)
            if known is None:
                known = self._by_size[size] = _SameSize()
            rarest = min(
                pieces(needle, size), key=lambda piece: (_has_blank(piece), len(known.by_piece.get(piece, ())))
            )
            self._needles += 1
            known.by_piece.setdefault(rarest, []).extend((needle, entry))
            (known.with_blank if _has_blank(rarest) else known.pieces).add(rarest)
            if known.all is not None:
                known.all.extend((needle, entry))
                if len(known.all) > 2 * FEW_NEEDLES:
                    known.all = None
        sizes = self._by_size.items()
        self._few = [same.all for _, same in sizes if same.all is not None]
        self._many = [(size, same) for size, same in sizes if same.all is None]
        self._shortest = min((size for size, _ in self._many), default=0)
        self._with_blank = [(size, same) for size, same in self._many if same.with_blank]
        # Others, and last: who looks words up meanwhile, in another thread, remembers them in those before.
        self._known = {}, {}

    def collect(self, facts: Facts, found: list[Sequence[E]]) -> None:
        texts = facts.folded(self.path, self.read)
        if texts is ODD:
            found.append(self.entries)
            return
        hits: list[E] = []
        for text in texts:
            maybe = self._few.copy()
            if self._many:
                self._look_up(text, maybe, hits)
            for several in maybe:
                pairs = iter(several)
                for needle in pairs:
                    entry = next(pairs)
                    if needle in text:
                        hits.append(entry)
        if len(hits) > 1:
            once = {entry.order: entry for entry in hits}
            hits = [once[order] for order in sorted(once)]
        if hits:
            found.append(hits)

    def _look_up(self, text: str, maybe: list[Sequence[Any]], hits: list[E]) -> None:
        """What occurs in the text comes to `hits`, and what may, to `maybe`."""
        for size, same in self._with_blank:
            maybe += [same.by_piece[piece] for piece in same.with_blank.intersection(pieces(text, size))]
        known, shortest = self._known, self._shortest
        dull, in_word = known
        fresh: list[str] = []
        for word in text.split():
            if len(word) < shortest or word in dull:
                continue
            inside = in_word.get(word)
            if inside is None:
                fresh.append(word)
            elif type(inside) is tuple:
                maybe.append(inside)
            else:
                hits.append(inside)
        if fresh:
            maybe += self._look_into(fresh, known)

    def _look_into(self, words: list[str], known: _Known) -> list[Sequence[Any]]:
        """What is found in words, and remembered of those that are not too long to be."""
        dull, in_word = known
        if len(dull) + len(in_word) > min(MOST_KNOWN, KNOWN_PER_NEEDLE * self._needles):
            dull.clear()
            in_word.clear()
        found: list[Sequence[Any]] = []
        for word in words:
            inside = self._inside(word)
            if inside:
                found.append(inside)
            if len(word) > LONGEST_KNOWN:
                continue
            if inside:
                in_word[word] = inside[1] if len(inside) == 2 and not inside[0] else inside
            else:
                dull[word] = None
        return found

    def _inside(self, word: str) -> tuple[Any, ...]:
        """What occurs in a word, as if looked for was nothing; and what has a blank, and so may occur around it."""
        inside: tuple[Any, ...] = ()
        for size, same in self._many:
            known = same.pieces
            for i in range(len(word) - size + 1):
                if (piece := word[i : i + size]) in known:
                    pairs = iter(same.by_piece[piece])
                    for needle in pairs:
                        entry = next(pairs)
                        if needle in word:
                            inside += ("", entry)
                        elif _has_blank(needle):
                            inside += (needle, entry)
        return inside


@dataclass(slots=True)
class _SameSize:
    """The words that are found by pieces of one length: by these, and all of them where they are few. A word is
    followed by its rule."""

    by_piece: dict[str, list[Any]] = field(default_factory=dict)
    # A set tells faster than a dict what is not in it: it keeps the hashes side by side.
    pieces: set[str] = field(default_factory=set)
    # Those that are not inside of one word: a text has twice as many pieces as its words have.
    with_blank: set[str] = field(default_factory=set)
    all: list[Any] | None = field(default_factory=list)


def _has_blank(piece: str) -> bool:
    return piece.split() != [piece]


def pieces(text: str, size: int) -> Sequence[str]:
    """All pieces of this length, in a fixed order."""
    return [text[i : i + size] for i in range(len(text) - size + 1)]
