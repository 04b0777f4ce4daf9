"""What can be said of a text by counting: pure functions, in time linear in its length, with bounded memory.

Only the standard library, no dictionary and no model: the numbers are exact, the key phrases and the extract are a
guess from how often words occur.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Generic, TypeVar

FLESCH = "206.835 - 1.015 * words / sentences - 84.6 * syllables / words"
FLESCH_SOURCE = "R. Flesch, A new readability yardstick, Journal of Applied Psychology 32 (1948) 221-233"

# Flesch took samples of a hundred words; of a few words the formula says nothing.
FEWEST_WORDS = 30

_SAMPLE = 20_000
"""Words that language and syllables are judged by."""
_ENGLISH_SHARE = 0.25
"""English running text has about 45 % function words; other languages in Latin script share under 15 % of them."""
_LATIN_SHARE = 0.95
_LONGEST_SENTENCE = 1000
"""Characters after which a text without full stops is cut, at a blank, when sentences are chosen."""
_LONGEST_PHRASE = 3
_MOST_ENTRIES = 100_000

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Counts:
    """`characters` are code points. Where a script has no blanks between words, each Han or Kana character is a word."""

    characters: int
    words: int
    sentences: int
    paragraphs: int


@dataclass(frozen=True, slots=True)
class Readability:
    """Flesch's reading ease: 90 is very easy, 60 plain English, 30 hard. Syllables are counted by rule of thumb."""

    flesch_reading_ease: float
    words_per_sentence: float
    syllables_per_word: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """`readability` is None where the text is not English or too short; `no_readability` says which."""

    counts: Counts
    readability: Readability | None
    no_readability: str | None
    key_phrases: tuple[str, ...]
    extract: tuple[str, ...]


def analyse(text: str, *, phrases: int = 8, sentences: int = 3) -> Analysis:
    """Everything at once; the text is read three times."""
    survey = Survey.of(text)
    readability, reason = _readability(survey)
    return Analysis(
        counts=survey.counts,
        readability=readability,
        no_readability=reason,
        key_phrases=tuple(_key_phrases(text, survey, phrases)),
        extract=tuple(central(text, survey, sentences)),
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """One reading of a text: where its sentences are, how often its words occur, and which of them say nothing."""

    counts: Counts
    spans: Sequence[tuple[int, int]]
    words: Counter[str]
    sample: Sequence[str]
    english: bool
    stop_words: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Survey:
        paragraphs, spans, tally, number = 0, [], Tally[str](), 0
        sample: list[str] = []
        for start, end in _paragraphs(text):
            paragraphs += 1
            spans += _sentences(text, start, end)
            words = _words(text, start, end)
            while chunk := list(islice(words, 4096)):
                number += len(chunk)
                tally.add(chunk)
                sample += chunk[: _SAMPLE - len(sample)]
        counts = Counts(len(text), number, len(spans), paragraphs)
        english = _is_english(sample)
        return cls(counts, spans, tally.counter, sample, english, _stop_words(tally.counter, number, english))

    def weight(self, word: str) -> int:
        """How much a word tells of the text: how often it occurs, nothing if it is a stop word."""
        return 0 if word in self.stop_words else self.words.get(word, 0)


class Tally(Generic[K]):
    """Counts what occurs often in bounded memory: when there are too many entries, the rarest are forgotten."""

    def __init__(self, most: int = _MOST_ENTRIES) -> None:
        self.counter: Counter[K] = Counter()
        self._most = most

    def add(self, items: Iterable[K]) -> None:
        self.counter.update(items)
        floor = 1
        while len(self.counter) > self._most:
            self.counter = Counter({item: count for item, count in self.counter.items() if count > floor})
            floor *= 2


def central(text: str, survey: Survey, number: int) -> list[str]:
    """The sentences that have most of the text's frequent words in them, in the order of the text."""
    chosen: list[tuple[int, int]] = []
    seen: list[frozenset[str]] = []
    for start, end in ranked(text, survey):
        words = frozenset(word for word in _words(text, start, end) if survey.weight(word))
        # What repeats a sentence that was chosen adds nothing.
        if all(len(words & other) < 0.7 * len(words | other) for other in seen) or not chosen:
            chosen.append((start, end))
            seen.append(words)
        if len(chosen) == number:
            break
    return [_tidy(text[start:end]) for start, end in sorted(chosen)]


def ranked(text: str, survey: Survey) -> list[tuple[int, int]]:
    """Where the sentences are, the most central first; equals in the order of the text."""
    pieces = [piece for start, end in survey.spans for piece in _pieces(text, start, end)]
    return sorted(pieces, key=lambda piece: -_centrality(text, survey, *piece))


def _centrality(text: str, survey: Survey, start: int, end: int) -> float:
    """The mean weight of a sentence's words; the constant keeps a heading of two frequent words from winning."""
    number, total = 0, 0
    for word in _words(text, start, end):
        number += 1
        total += survey.weight(word)
    return total / (number + 8)


# ── words, sentences, paragraphs ─────────────────────────────────────────────────────────────────────────────────────


@cache
def _word_pattern() -> re.Pattern[str]:
    """A Han or Kana character; or letters and digits with their combining marks, apostrophes and hyphens inside.

    To Python's `\\w` a combining mark is no letter; without them the words of half of Asia would fall apart.
    """
    marks = "".join(chr(code) for code in range(0x300, 0x1DFF) if unicodedata.category(chr(code)).startswith("M"))
    letter = rf"[^\W_{_IDEOGRAPHS}]"
    joined = rf"{letter}[\w{marks}\u200c\u200d]*+"
    return re.compile(rf"[{_IDEOGRAPHS}]|{joined}(?:['’\u2010-]{joined})*+")


_IDEOGRAPHS = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")


def _words(text: str, start: int, end: int) -> Iterator[str]:
    return (match.group().lower() for match in _word_pattern().finditer(text, start, end))


_BLANK_LINE = re.compile(r"(?:\r\n?|\n|\u2029)[^\S\r\n\u2029]*+(?=\r|\n|\u2029)\s*+")
# A run of end marks is tried at its beginning only, so that a megabyte of dots is read once. Where a script writes a
# blank after a sentence the blank is part of the end, or 3.14 would be two.
_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’)\]»]*+(?=\s)|(?<![。！？｡])[。！？｡]++[」』”’）]*+|[؟۔।॥։።]++(?=\s)"  # noqa: RUF001
)
_ABBREVIATION = re.compile(
    r"\b(?:[A-Za-z]|Mrs?|Ms|Dr|Prof|St|Jr|Sr|vs|etc|cf|No|Fig|Eq|al|approx|e\.g|i\.e|z\.B|d\.h|bzw|usw)\.\Z"
)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Stretches between blank lines that have something in them."""
    start = 0
    for match in _BLANK_LINE.finditer(text):
        yield from _unless_blank(text, start, match.start())
        start = match.end()
    yield from _unless_blank(text, start, len(text))


def _unless_blank(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    if start < end and _SOMETHING.search(text, start, end):
        yield start, end


_SOMETHING = re.compile(r"[^\s\x00]")


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _END.finditer(text, start, end):
        stop = match.end()
        if not _goes_on(text, match.start(), stop, end):
            yield from _unless_blank(text, start, stop)
            start = stop
    yield from _unless_blank(text, start, end)


def _goes_on(text: str, mark: int, stop: int, end: int) -> bool:
    """A full stop before a small letter, or after an abbreviation, ends no sentence."""
    if text[mark] != "." or stop - mark > 1:
        return False
    following = _SOMETHING.search(text, stop, end)
    if following is not None and following.group().islower():
        return True
    return _ABBREVIATION.search(text[max(0, mark - 8) : stop]) is not None


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence; one that goes on for ever in pieces, cut at blanks where there are any."""
    while end - start > _LONGEST_SENTENCE:
        blank = text.rfind(" ", start + _LONGEST_SENTENCE // 2, start + _LONGEST_SENTENCE)
        cut = start + _LONGEST_SENTENCE if blank < 0 else blank + 1
        yield from _unless_blank(text, start, cut)
        start = cut
    yield from _unless_blank(text, start, end)


def _tidy(text: str) -> str:
    """In one line, and in characters that every store and terminal takes."""
    plain = text.encode("utf-8", "replace").decode()
    return " ".join(plain.replace("\x00", " ").split())


# ── readability ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _readability(survey: Survey) -> tuple[Readability | None, str | None]:
    if survey.counts.words < FEWEST_WORDS:
        return None, f"fewer than {FEWEST_WORDS} words"
    if not survey.english:
        return None, "the formula is made for English, and the words are not those of an English text"
    per_sentence = survey.counts.words / survey.counts.sentences
    per_word = sum(map(syllables, survey.sample)) / len(survey.sample)
    ease = 206.835 - 1.015 * per_sentence - 84.6 * per_word
    return Readability(round(ease, 1), round(per_sentence, 1), round(per_word, 2)), None


_VOWELS = re.compile("[aeiouy]+")
_SILENT = re.compile("(?:[^aeiouyl]e|[^aeiouydt]ed|[^aeiouyscxzhg]es)$")


@lru_cache(maxsize=_SAMPLE)
def syllables(word: str) -> int:
    """English syllables by rule of thumb: groups of vowels, without a silent e at the end; at least one."""
    return max(1, len(_VOWELS.findall(word)) - bool(_SILENT.search(word)))


def _is_english(sample: Sequence[str]) -> bool:
    letters = "".join(sample[:2000])
    latin = sum(character.isascii() for character in letters)
    known = sum(word in ENGLISH for word in sample)
    return bool(sample) and latin >= _LATIN_SHARE * len(letters) and known >= _ENGLISH_SHARE * len(sample)


def _stop_words(words: Counter[str], number: int, english: bool) -> frozenset[str]:
    """English has a list; of other languages what is known is that short or very frequent words say little."""
    if english:
        return ENGLISH
    often = max(3.0, number / 50)
    return frozenset(
        word
        for word, count in words.items()
        if not _IDEOGRAPH.match(word) and (len(word) < 3 or (count > often and len(word) < 6))
    )


# ── key phrases ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _key_phrases(text: str, survey: Survey, number: int) -> list[str]:
    """Runs of up to three words without stop words or punctuation between them, by occurrences times length.

    A phrase within a better one, or around it, is left out.
    """
    tally = Tally[tuple[str, ...]]()
    for start, end in survey.spans:
        for run in _runs(text, start, end, survey):
            tally.add(_grams(run))
    best = _best(tally.counter, survey, 6 * number)
    chosen: list[tuple[str, ...]] = []
    for phrase in best:
        if not any(_within(phrase, other) or _within(other, phrase) for other in chosen):
            chosen.append(phrase)
    return [_spelled(phrase) for phrase in chosen[:number]]


def _best(counter: Counter[tuple[str, ...]], survey: Survey, number: int) -> list[tuple[str, ...]]:
    def worth(phrase: tuple[str, ...]) -> tuple[float, float]:
        # The words' own frequency decides between phrases that occur once each.
        familiar = sum(map(survey.weight, phrase)) / len(phrase)
        return counter[phrase] * math.sqrt(len(phrase)), familiar

    return sorted(counter, key=worth, reverse=True)[:number]


def _runs(text: str, start: int, end: int, survey: Survey) -> Iterator[list[str]]:
    """Words that follow one another with only a blank, or nothing, between them."""
    run: list[str] = []
    behind = start
    for match in _word_pattern().finditer(text, start, end):
        word = match.group().lower()
        apart = match.start() - behind > 1 or (match.start() > behind and not text[behind].isspace())
        if run and (apart or word in survey.stop_words):
            yield run
            run = []
        if word not in survey.stop_words and not word.isdecimal():
            run.append(word)
        behind = match.end()
    if run:
        yield run


def _grams(run: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for length in range(1, _LONGEST_PHRASE + 1):
        for start in range(len(run) - length + 1):
            gram = tuple(run[start : start + length])
            # One Han character is a word, yet seldom a phrase.
            if length > 1 or not _IDEOGRAPH.match(gram[0]):
                yield gram


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    starts = range(len(outer) - len(inner) + 1)
    return any(outer[start : start + len(inner)] == inner for start in starts)


def _spelled(phrase: tuple[str, ...]) -> str:
    blank = "" if all(_IDEOGRAPH.match(word) for word in phrase) else " "
    return blank.join(phrase).encode("utf-8", "replace").decode()


ENGLISH = frozenset(
    """
    a about above after again all also although always am an and another any are aren't around as at be because been
    before being below between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down
    during each either else even ever every few for from further had hadn't has hasn't have haven't having he her here
    hers him himself his how however i i'm if in instead into is isn't it it's its itself just less let like made make
    many may me might more most much must my myself neither never no nor not nothing now of off often on once one only
    or other our ours out over own per perhaps quite rather s same she should shouldn't since so some still such t than
    that that's the their theirs them themselves then there these they this those though through thus to together too
    two under until up upon us use used using very was wasn't we well were weren't what when where whether which while
    who whom whose why will with within without won't would wouldn't yet you your yours yourself
    """.split()
)
