"""Words that a text must have for a condition to hold on it: by them the index finds the rules of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ZERO_WIDTH_OR_CLASS = frozenset("dDsSwWbBAztnrfva")
"""What may follow a backslash without being itself a character, or the beginning of something longer."""
_REPEAT = re.compile(r"\{\d+(?:,\d*)?\}")
_FOLDED_ALIKE = ((0x20, 0x17F), (0x370, 0x52F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3))
"""Ranges in which RE2 and Python agree on what is the same letter, and went on doing so from version to version."""


def of_words(words: Iterable[str]) -> tuple[str, ...] | None:
    """For one of these words in any case; None where one of them has no letter that is folded alike everywhere."""
    found = [_longest(_alike(word)) for word in words]
    return tuple(found) if found and all(found) else None  # type: ignore[arg-type]


def of_pattern(pattern: str) -> tuple[str, ...] | None:
    """For a pattern in the syntax of RE2: from each of its alternatives the longest run of plain characters that occurs
    in whatever matches. None where there is no such run, or the pattern is written in a way that is not read here."""
    if not pattern.isprintable():
        return None
    try:
        found = [_run_of(branch) for branch in _alternatives(_unwrapped(pattern))]
    except _Unread:
        return None
    return tuple(found) if all(found) else None  # type: ignore[arg-type]


class _Unread(Exception):
    """The pattern is written in a way that is not read here."""


def _unwrapped(pattern: str) -> str:
    """Without flags before it, and without a group that is the whole."""
    while (start := re.match(r"\((?:\?[ims]+\)|\?[ims]*:)", pattern)) is not None:
        if start.group().endswith(")"):
            pattern = pattern[start.end() :]
        elif _end_of_group(pattern, 0) == len(pattern):
            pattern = pattern[start.end() : -1]
        else:
            break
    return pattern


def _alternatives(pattern: str) -> Iterator[str]:
    start = at = 0
    while at < len(pattern):
        if pattern[at] == "|":
            yield pattern[start:at]
            start = at + 1
        at = _after(pattern, at)
    yield pattern[start:]


def _after(pattern: str, at: int) -> int:
    """The place behind the element that begins here."""
    if pattern[at] == "\\":
        return at + 2
    if pattern[at] == "[":
        return _end_of_class(pattern, at)
    return _end_of_group(pattern, at) if pattern[at] == "(" else at + 1


def _end_of_group(pattern: str, at: int) -> int:
    at += 1
    while at < len(pattern):
        if pattern[at] == ")":
            return at + 1
        if pattern.startswith("\\Q", at):
            raise _Unread
        at = _after(pattern, at)
    raise _Unread


def _end_of_class(pattern: str, at: int) -> int:
    at += 2 if pattern.startswith("[^", at) else 1
    if pattern.startswith("]", at):
        at += 1
    while at < len(pattern):
        if pattern[at] == "]":
            return at + 1
        if pattern[at] == "\\":
            at += 2
        elif pattern.startswith("[:", at):
            end = pattern.find(":]", at)
            if end < 0:
                raise _Unread
            at = end + 2
        else:
            at += 1
    raise _Unread


def _run_of(branch: str) -> str | None:
    """The longest run of plain characters of a sequence without alternatives at its top."""
    runs: list[str] = []
    run, at = "", 0
    while at < len(branch):
        char, end = branch[at], _after(branch, at)
        if char == "\\":
            following = branch[at + 1 : end]
            if not following or (following.isalnum() and following not in _ZERO_WIDTH_OR_CLASS):
                raise _Unread
            char = "" if following in _ZERO_WIDTH_OR_CLASS else following
        elif char in "*?+{":
            if char == "{":
                repeat = _REPEAT.match(branch, at)
                if repeat is None:
                    raise _Unread
                end = repeat.end()
            runs.append(run if char == "+" else run[:-1])
            run, at = "", end
            continue
        elif char in "([.^$":
            char = ""
        elif char == ")":
            raise _Unread
        if char:
            run += char
        else:
            runs.append(run)
            run = ""
        at = end
    runs.append(run)
    return _longest(part for found in runs for part in _alike(found))


def _alike(text: str) -> Iterator[str]:
    """The runs of letters that are folded alike everywhere, folded."""
    run = ""
    for char in text:
        if any(low <= ord(char) <= high for low, high in _FOLDED_ALIKE):
            run += char
        else:
            yield run.casefold()
            run = ""
    yield run.casefold()


def _longest(runs: Iterable[str]) -> str | None:
    return max(runs, key=len, default="") or None
