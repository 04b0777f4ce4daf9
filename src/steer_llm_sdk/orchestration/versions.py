"""Which version of a tool a name asks for, which of them a caller gets, and how far each has been released.

    canary(share, key) ─ promote ─▶ active ─ deprecate ─▶ deprecated(since, sunset, successor)

All of it is values and pure functions; the registry keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, NamedTuple

from steer_llm_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from packaging.version import Version

_SPEC = re.compile(r"(?P<name>[^<>=!~@]*[^<>=!~@\s])\s*(?P<spec>(?:===|==|~=|!=|<=|>=|<|>)(?![<>=!~])\s*\S.*|@\s*\S+)")
_OPERATOR = re.compile(r"[^<>=!~@\s]\s*(?:==|~=|!=|<|>|@)")
"""How a specifier begins, after a name."""
_AS_IN = 'ask for versions as in "text_analyzer>=1.2,<2"'


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
        asked = SpecifierSet(spec)
        return asked.contains(version, prereleases=bool(asked.prereleases))
    except (InvalidSpecifier, InvalidVersion):
        return False


def check_spec(text: str) -> None:
    """InvalidRequest where what follows the name is no specifier of versions."""
    asked = wanted(text)
    if asked is None and _OPERATOR.search(text):
        raise InvalidRequest("tool_name", text, _AS_IN)
    if asked is None or asked.spec.startswith("==="):
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # 6 ms that only those with a specifier pay

    try:
        SpecifierSet(asked.spec)
    except InvalidSpecifier:
        raise InvalidRequest("tool_name", text, _AS_IN) from None


def rank(version: str) -> tuple[bool, bool, Version, str]:
    """Order by PEP 440, finished versions above pre-releases; what is no version comes below every one that is."""
    from packaging.version import InvalidVersion, Version  # 6 ms that only those with two versions of a tool pay

    try:
        parsed = Version(version)
        return True, not parsed.is_prerelease, parsed, version
    except InvalidVersion:
        return False, False, Version("0"), version


def written_differently(version: str, others: Iterable[str]) -> str | None:
    """One of the others that PEP 440 takes for the same version, as "1.0" and "1.0.0"; None where there is none."""
    unlike = [other for other in others if other != version]
    is_version, _, parsed, _ = rank(version) if unlike else (False, False, None, "")
    return next((other for other in unlike if is_version and rank(other)[0] and rank(other)[2] == parsed), None)


MARGIN = 0.05


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """How far a version has been released.

    canary: a `share` (0 to 1) of callers gets it, by `key`: "tenant", or a name in the `metadata` of the run; who has
    no such key is told apart by his idempotency key or trace id. deprecated: whoever gets it is warned, `since` then;
    from `sunset` on nobody gets it. `successor` is what to ask for instead.

    `margin`: a canary that is worse than the version beside it by more than this, in its share of failures or in the
    confidence of its evidence bundles (both 0 to 1), goes to nobody any more; None: it is not watched.
    """

    state: Literal["canary", "active", "deprecated"] = "active"
    share: float = 1.0
    key: str = "tenant"
    since: date | None = None
    sunset: date | None = None
    successor: str | None = None
    margin: float | None = MARGIN

    def __post_init__(self) -> None:
        if self.state not in ("canary", "active", "deprecated"):
            raise InvalidRequest("state", self.state, "give canary, active or deprecated")
        if not _is_share(self.share):
            raise InvalidRequest("share", self.share, "give a number from 0 to 1")
        if self.margin is not None and not _is_share(self.margin):
            raise InvalidRequest("margin", self.margin, "give a number from 0 to 1, or None to watch nothing")
        if not isinstance(self.key, str) or not self.key:
            raise InvalidRequest("key", self.key, 'give "tenant", or a name in the metadata of runs')
        for name in ("since", "sunset"):
            if getattr(self, name) is not None and type(getattr(self, name)) is not date:
                raise InvalidRequest(name, getattr(self, name), "give a date")
        if self.since is not None and self.sunset is not None and self.sunset < self.since:
            raise InvalidRequest("sunset", str(self.sunset), f"give a day from {self.since} on, when it is deprecated")
        if self.successor is not None and not isinstance(self.successor, str):
            raise InvalidRequest("successor", self.successor, 'give a name, as in "text_analyzer>=2"')

    def is_gone(self, today: date) -> bool:
        return self.sunset is not None and today >= self.sunset

    def farewell(self, name: str, version: str) -> str:
        """What whoever asks for a deprecated version is told."""
        instead = "" if self.successor is None else f"; use {self.successor}"
        since = "" if self.since is None else f" since {self.since}"
        until = "" if self.sunset is None else f" and will be withdrawn on {self.sunset}"
        return f"Tool '{name}' version {version} is deprecated{since}{until}{instead}"

    def why_closed(self, name: str, version: str, today: date) -> str:
        """Why a caller cannot have it."""
        if not self.is_gone(today):
            return f"Tool '{name}' version {version} is a canary, and this caller is not in its share of {self.share:g}"
        instead = "" if self.successor is None else f"; use {self.successor}"
        return f"Tool '{name}' version {version} was withdrawn on {self.sunset}{instead}"


ACTIVE = Release()


def deprecated(since: date | None, sunset: date | None, successor: str | None, today: date) -> Release:
    """`since` None: today, or the sunset where that has been."""
    if since is None:
        since = sunset if type(sunset) is date and sunset < today else today
    return Release(state="deprecated", since=since, sunset=sunset, successor=successor)


Who = Mapping[str, str]
"""Who asks, by the kinds of keys that tell callers apart; "run" is for those who have none."""


def is_in_share(name: str, version: str, release: Release, who: Who) -> bool:
    """Whether a caller gets a canary. The same caller always does, and a larger share only adds callers."""
    key = who.get(release.key) or who.get("run", "")
    return place_of(f"{name}@{version}", key) < release.share


def place_of(salt: str, key: str) -> float:
    """A caller's place from 0 to 1, below 1, apart for each salt."""
    digest = blake2b(f"{salt}|{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Found(NamedTuple):
    """The version a caller gets; or None and those that would have done, and that he cannot have."""

    version: str | None
    closed: Sequence[str] = ()


def choose(
    name: str, versions: Iterable[str], releases: Mapping[str, Release], spec: str | None, who: Who, today: date
) -> Found:
    """`versions` are those registered, the highest last. The highest active one that satisfies `spec`, or a higher
    canary whose share the caller is in; a deprecated one only where there is no other. Who asks for one version by
    "==" or "@" gets it in whatever state, until its sunset."""
    fitting = [version for version in versions if spec is None or satisfies(version, spec)]
    left = [version for version in fitting if not releases.get(version, ACTIVE).is_gone(today)]
    if left and spec is not None and spec.startswith("==") and "*" not in spec and "," not in spec:
        return Found(left[-1])
    deprecated: str | None = None
    for version in reversed(left):
        release = releases.get(version, ACTIVE)
        if release.state == "active" or (release.state == "canary" and is_in_share(name, version, release, who)):
            return Found(version)
        if release.state == "deprecated" and deprecated is None:
            deprecated = version
    return Found(deprecated, () if deprecated is not None else fitting)
