"""What can be said of a text by counting: pure functions, in time linear in its length, with bounded memory.

Only the standard library, no dictionary and no model: the numbers are exact, the key phrases and the extract are a
guess from how often words occur.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import nlargest, nsmallest
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
_WINDOW = 65_536
_LONGEST_PHRASE = 3
_LONGEST_WORD = 40
_WORDS_FOR_PHRASES = 300_000
_CONSIDERED = 12
"""How many candidates are looked at for each that is wanted."""
_MOST_ENTRIES = 100_000

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Counts:
    """`characters` are code points. A Han or Kana character is a word; so are 65,536 letters without a gap."""

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
    """Everything at once; the text is read twice."""
    survey = Survey.of(text)
    tally = Tally[tuple[str, ...]]()
    ranking = ranked(text, survey, _CONSIDERED * sentences, tally)
    readability, reason = _readability(survey)
    return Analysis(
        counts=survey.counts,
        readability=readability,
        no_readability=reason,
        key_phrases=tuple(_key_phrases(tally.counter, survey, phrases)),
        extract=tuple(_different(text, ranking, survey, sentences)),
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """The first reading: where the sentences are, the long ones in pieces, and how much each word tells of the text."""

    counts: Counts
    pieces: Sequence[tuple[int, int]]
    weights: Mapping[str, int]
    sample: Sequence[str]
    english: bool
    words: re.Pattern[str]

    @classmethod
    def of(cls, text: str) -> Survey:
        paragraphs, sentences, number = 0, 0, 0
        pieces: list[tuple[int, int]] = []
        sample: list[str] = []
        tally = Tally[str]()
        pattern = word_pattern(text)
        for paragraph in _paragraphs(text):
            paragraphs += 1
            for sentence in _sentences(text, *paragraph):
                sentences += 1
                for start, end in _pieces(text, *sentence):
                    words = pattern.findall(text[start:end].lower())
                    pieces.append((start, end))
                    number += len(words)
                    tally.add(words)
                    sample += words[: max(0, _SAMPLE - len(sample))]
        english = _is_english(sample)
        stop_words = _stop_words(tally.counter, number, english)
        weights = {word: count for word, count in tally.counter.items() if word not in stop_words}
        return cls(Counts(len(text), number, sentences, paragraphs), pieces, weights, sample, english, pattern)


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


def ranked(text: str, survey: Survey, most: int, tally: Tally[tuple[str, ...]] | None = None) -> list[tuple[int, int]]:
    """The second reading: where the sentences with words in them are, the most central first, equals in the order of
    the text, and each but once. What may be a phrase goes into the tally on the way; in a text of very many words every
    n-th sentence is enough for that."""
    find, weights = survey.words.findall, survey.weights
    step = 1 + survey.counts.words // _WORDS_FOR_PHRASES
    scored: list[tuple[float, int, int]] = []
    seen: set[int] = set()
    for number, (start, end) in enumerate(survey.pieces):
        piece = text[start:end].lower()
        words = find(piece)
        if words and (mark := hash(piece)) not in seen:
            seen.add(mark)
            # The constant keeps a heading of two frequent words from winning.
            score = sum(weights.get(word, 0) for word in words) / (len(words) + 8)
            scored.append((-score, start, end))
        if tally is not None and number % step == 0:
            for clause in _CLAUSE_END.split(piece):
                tally.add(_grams(find(clause), weights))
    return [(start, end) for _, start, end in nsmallest(most, scored)]


def _different(text: str, ranking: Iterable[tuple[int, int]], survey: Survey, number: int) -> list[str]:
    """The first sentences that are not nearly the same as one before, in the order of the text."""
    chosen: list[tuple[int, int]] = []
    seen: list[frozenset[str]] = []
    for start, end in ranking:
        words = frozenset(survey.words.findall(text[start:end].lower()))
        if len(chosen) < number and all(len(words & other) < 0.7 * len(words | other) for other in seen):
            chosen.append((start, end))
            seen.append(words)
    return [_shortened(text, start, end) for start, end in sorted(chosen)]


def _shortened(text: str, start: int, end: int) -> str:
    if end - start <= 2 * _LONGEST_SENTENCE:
        return tidy(text[start:end])
    return tidy(text[start : start + _LONGEST_SENTENCE]) + "…"


# ── words, sentences, paragraphs ─────────────────────────────────────────────────────────────────────────────────────


def word_pattern(text: str) -> re.Pattern[str]:
    """What a word is in this text: letters and digits, with apostrophes and hyphens inside, or points in a number;
    a Han or Kana character.

    To Python's `\\w` a combining mark is no letter; without them the words of half of Asia would fall apart. That
    pattern takes three times as long, so it is used where the text needs it.
    """
    return _pattern(_first(_IDEOGRAPH, text, 0, len(text)) is not None, _first(_mark(), text, 0, len(text)) is not None)


@cache
def _pattern(ideographs: bool, marks: bool) -> re.Pattern[str]:
    letter = rf"[^\W{_IDEOGRAPHS}]" if ideographs else r"\w"
    joined = rf"(?!_){letter}(?:{letter}|{_mark().pattern})*" if marks else rf"(?!_){letter}+"
    word = rf"{joined}(?:['\u2019\u2010-]{joined}|(?<=\d)[.,](?=\d){letter}+)*"
    return re.compile(rf"[{_IDEOGRAPHS}]|{word}" if ideographs else word)


@cache
def _mark() -> re.Pattern[str]:
    """Combining marks, and the joiners that some scripts have within words."""
    marks = (chr(code) for code in range(0x300, 0x1DFF) if unicodedata.category(chr(code)).startswith("M"))
    return re.compile(f"[{''.join(marks)}\u200c\u200d]")


_IDEOGRAPHS = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_CLAUSE_END = re.compile(r"[^\w\s'\u2019\u2010\u0300-\u1dff\u200c\u200d-]+|\s-+\s|\s{2,}")


_BLANK_LINE = re.compile(r"(?:\r\n?|\n|\u2029)[^\S\r\n\u2029]*(?=\r|\n|\u2029)\s*")
_BLANK = re.compile(r"\s")
_SOMETHING = re.compile(r"[^\s\x00]")
_NO_BLANK = re.compile(r"\S")
_NO_END = re.compile(r"[\w\s]|[^\x00-\u02ff\u2000-\u20ff\u3000-\u303f\uff00-\uffef]")
_NO_WORD = re.compile(rf"[^\w]|[{_IDEOGRAPHS}]")
# Whole runs of marks, and what closes behind them; where the script writes no blank behind, the mark alone is the end.
_END = re.compile(r"(?:[.!?…]+[\"'”’)\]»]*|[؟۔।॥։።]+)(?P<blank>)|[。！？｡]+[」』”’）]*")  # noqa: RUF001
_ABBREVIATION = re.compile(
    r"\b(?:[A-Za-z]|Mrs?|Ms|Dr|Prof|St|Jr|Sr|vs|etc|cf|No|Fig|Eq|al|approx|e\.g|i\.e|z\.B|d\.h|bzw|usw)\.\Z"
)


def _scan(pattern: re.Pattern[str], apart: re.Pattern[str], text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """All matches of a pattern that has no character of `apart` in it, in windows that end behind one: a single search
    through megabytes would let no other thread run."""
    while start < end:
        cut = apart.search(text, min(start + _WINDOW, end), end)
        stop = end if cut is None else cut.end()
        yield from pattern.finditer(text, start, stop)
        start = stop


def _first(pattern: re.Pattern[str], text: str, start: int, end: int) -> re.Match[str] | None:
    """The first match of a pattern of one character, in windows too."""
    windows = range(start, end, _WINDOW)
    return next((found for at in windows if (found := pattern.search(text, at, min(at + _WINDOW, end)))), None)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Stretches between blank lines that have something in them."""
    start = 0
    for match in _scan(_BLANK_LINE, _NO_BLANK, text, 0, len(text)):
        yield from _unless_blank(text, start, match.start())
        start = match.end()
    yield from _unless_blank(text, start, len(text))


def _unless_blank(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    if start < end and _first(_SOMETHING, text, start, end) is not None:
        yield start, end


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _scan(_END, _NO_END, text, start, end):
        stop = match.end()
        if match["blank"] is not None and not text[stop : min(stop + 1, end)].isspace():
            continue
        if not _goes_on(text, match.start(), stop, end):
            yield from _unless_blank(text, start, stop)
            start = stop
    yield from _unless_blank(text, start, end)


def _goes_on(text: str, mark: int, stop: int, end: int) -> bool:
    """A full stop, or dots, before a small letter, or after an abbreviation, ends no sentence."""
    if text[mark] not in ".…":
        return False
    following = _first(_SOMETHING, text, stop, end)
    if following is not None and following.group().islower():
        return True
    return stop - mark == 1 and _ABBREVIATION.search(text[max(0, mark - 8) : stop]) is not None


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence; one that goes on and on in pieces, cut where no word is: at a blank if there is one."""
    while end - start > 2 * _LONGEST_SENTENCE:
        near = _BLANK.search(text, start + _LONGEST_SENTENCE, start + 2 * _LONGEST_SENTENCE)
        gap = near or _NO_WORD.search(text, start + _LONGEST_SENTENCE, min(start + _WINDOW, end))
        cut = min(start + _WINDOW, end) if gap is None else gap.start()
        yield from _unless_blank(text, start, cut)
        start = cut
    yield from _unless_blank(text, start, end)


def plain(text: str) -> str:
    """In characters that every wire, store and terminal takes: no half characters, no NULs."""
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")


def tidy(text: str) -> str:
    """Plain, and in one line."""
    return " ".join(plain(text).split())


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
    often = max(3.0, number / 50)
    said = {word for word in words if len(word) == 1 and not _IDEOGRAPH.match(word)}
    if english:
        return ENGLISH | said
    short = {word for word in words if len(word) < 4 and word < _AFTER_GREEK_AND_CYRILLIC}
    return frozenset(said | short | {word for word, count in words.items() if count > often and 1 < len(word) < 6})


_AFTER_GREEK_AND_CYRILLIC = "\u0530"


# ── key phrases ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _key_phrases(counter: Mapping[tuple[str, ...], int], survey: Survey, number: int) -> list[str]:
    """Runs of up to three words without stop words or punctuation between them, by occurrences times length.

    A phrase within a better one, or around it, is left out.
    """

    def worth(phrase: tuple[str, ...]) -> tuple[float, float]:
        # The words' own frequency decides between phrases that occur equally often.
        familiar = sum(survey.weights.get(word, 0) for word in phrase) / len(phrase)
        return counter[phrase] * math.sqrt(len(phrase)), familiar

    chosen: list[tuple[str, ...]] = []
    for phrase in nlargest(_CONSIDERED * number, counter, key=worth):
        if not any(_within(phrase, other) or _within(other, phrase) for other in chosen):
            chosen.append(phrase)
    return [_spelled(phrase) for phrase in chosen[:number]]


def _grams(words: Iterable[str], weights: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Every run of one to three words that tell something, ending at each of them in turn."""
    run: tuple[str, ...] = ()
    for word in words:
        if word not in weights or word.isdecimal() or len(word) > _LONGEST_WORD:
            run = ()
            continue
        run = (*run, word)[-_LONGEST_PHRASE:]
        for length in range(1, len(run) + 1):
            # One Han character is a word, yet seldom a phrase.
            if length > 1 or not _IDEOGRAPH.match(word):
                yield run[-length:]


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    starts = range(len(outer) - len(inner) + 1)
    return any(outer[start : start + len(inner)] == inner for start in starts)


def _spelled(phrase: tuple[str, ...]) -> str:
    blank = "" if all(_IDEOGRAPH.match(word) for word in phrase) else " "
    return plain(blank.join(phrase))


_FUNCTION_WORDS = """
    a about above across after again against all also although always am among an and another any are aren't around as
    at be because been before being below between both but by can can't cannot could couldn't did didn't do does doesn't
    doing don't down during each either else even ever every few for from further had hadn't has hasn't have haven't
    having he her here hers him himself his how however i i'm i've if in instead into is isn't it it's its itself just
    less let let's like made make many may me might more most much must my myself neither never no nor not nothing now
    of off often on once one only or other our ours out over own per perhaps quite rather same she should shouldn't
    since so some still such than that that's the their theirs them themselves then there there's these they they're
    this those though through thus to together too toward two under until up upon us use used using very was wasn't we
    we're well were weren't what when where whether which while who who's whom whose why will with within without won't
    would wouldn't yes yet you you're your yours yourself
"""
ENGLISH = frozenset(_FUNCTION_WORDS.split()) | frozenset(_FUNCTION_WORDS.replace("'", "\u2019").split())
