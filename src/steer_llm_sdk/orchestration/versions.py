"""Which version of a tool a name asks for, and which one a caller gets."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_SPEC = re.compile(r"(?P<name>[^<>=!~@]*[^<>=!~@\s])\s*(?P<spec>(?:===|==|~=|!=|<=|>=|<|>)\s*\S.*|@\s*\S+)")


class Wanted(NamedTuple):
    """A tool by name, and the versions of it that would do: a specifier of PEP 440, or "===" and one text."""

    name: str
    spec: str


@lru_cache(maxsize=4096)
def wanted(text: str) -> Wanted | None:
    """What "text_analyzer>=1.2,<2", "text_analyzer==1.4.1" or "text_analyzer@1.4.1" asks for; None for a plain name."""
    found = _SPEC.fullmatch(text)
    if found is None:
        return None
    name, spec = found["name"], found["spec"]
    return Wanted(name, f"==={spec[1:].strip()}" if spec.startswith("@") else spec)


@lru_cache(maxsize=4096)
def satisfies(version: str, spec: str) -> bool:
    """Whether a version does. A pre-release only where the specifier names one; what is no version only by its text."""
    if spec.startswith("==="):
        return version == spec[3:].strip()
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # 6 ms that only those with a specifier pay
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(spec).contains(version)
    except (InvalidSpecifier, InvalidVersion):
        return False
