"""A bundle as its reports show it: who said what about which field, in letters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from steer_llm_sdk.evidence import ABSENT, at, parse_path
from steer_llm_sdk.evidence._leaves import bounded, class_of

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.models.evidence_bundle import Disagreement, EvidenceBundle, Replicate

NOTHING: Final = "-"
MISSING: Final = "·"
INVALID: Final = "✗"
OTHER: Final = "…"
LEGEND: Final = {
    "A": "the consensus, or where there is none what most said",
    "B C …": "other answers",
    MISSING: "without the field",
    NOTHING: "nothing there to be said",
    OTHER: "an answer that is not listed",
    INVALID: "not valid: no vote",
}

MEANS: Final = {
    "support": "the share of all replicates that gave it",
    "stability": "how sure it is that more replicates would not change it",
    "trust": "how likely it is right, from labelled answers to other questions",
}
LONGEST_CONSENSUS: Final = 20_000
STOPPED: Final = {
    "decided": "the others could not have changed the answer",
    "converged": "the others would hardly have changed the answer",
    "certified": "the answers are proof enough of what the model says most often",
    "distance": "the answers were near enough to each other",
    "futile": "no answer could have had the support asked for",
    "too_many_invalid": "too many were not valid",
    "budget": "the budget allowed no more",
    "deadline": "the time was up",
    "complete": "all that were asked for are here",
}


@dataclass(frozen=True, slots=True)
class Said:
    """One answer to a field: `letter` A is the consensus, if any gave it."""

    letter: str
    value: Any
    votes: int
    share: float
    ids: Sequence[str]
    excerpt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One field. `codes` has a letter or a mark for each replicate of the bundle; `votes` is how many of them gave what
    the consensus has: with less than two it is somebody's answer, and nothing that is agreed on."""

    name: str
    votes: int
    support: float | None
    codes: Mapping[str, str]
    said: Sequence[Said] = ()
    more: int = 0
    absent: Sequence[str] = ()
    severity: float | None = None
    entropy: float | None = None

    @property
    def contested(self) -> bool:
        return bool(self.said)


@dataclass(frozen=True, slots=True)
class View:
    """`rows` are the contested fields in the order of the answers, and those on which all agree between them."""

    rows: Sequence[Row]
    replicates: Sequence[Replicate]
    invalid: Mapping[str, Sequence[str]]
    stopping: Mapping[str, Any] = field(default_factory=dict)


def view_of(bundle: EvidenceBundle) -> View:
    summary = bundle.summary
    invalid = {
        replicate.id: replicate.quality.errors or summary.invalid.get(replicate.id, [])
        for replicate in bundle.replicates
        if not replicate.quality.valid or replicate.id in summary.invalid
    }
    valid = [replicate for replicate in bundle.replicates if replicate.id not in invalid]
    contested = {each.field: each for each in summary.disagreements}
    rows = []
    for name in dict.fromkeys((*(summary.distributions or {}), *contested)):
        told = (summary.distributions or {}).get(name)
        codes = dict.fromkeys(invalid, INVALID)
        if name not in contested:
            codes |= {each.id: _agreed(each.data, name) for each in valid}
            support = told.get("support") if isinstance(told, dict) else None
            rows.append(Row(name=name, votes=list(codes.values()).count("A"), support=support, codes=codes))
            continue
        found = contested[name]
        said = _lettered(found.answers, _consensus_at(bundle, name))
        codes |= {each.id: NOTHING for each in valid}
        codes |= dict.fromkeys(found.absent, MISSING)
        codes |= dict.fromkeys(found.replicate_ids, OTHER)
        codes |= {each: one.letter for one in said for each in one.ids}
        rows.append(
            Row(
                name=name,
                votes=_votes(bundle, found),
                support=found.support,
                codes=codes,
                said=said,
                more=found.more,
                absent=found.absent,
                severity=found.severity,
                entropy=found.entropy,
            )
        )
    stopping = bundle.metadata.get("stopping")
    return View(rows, bundle.replicates, invalid, stopping if isinstance(stopping, dict) else {})


def _votes(bundle: EvidenceBundle, found: Disagreement) -> int:
    if _consensus_at(bundle, found.field) is ABSENT:
        return len(found.absent)
    if found.support is None:
        return max((each.votes for each in found.answers), default=0)
    alike = [each.votes for each in found.answers if abs(each.share - found.support) < 1e-9]
    # What is put together of several answers is no single one's: its votes are those that come near enough.
    return max(alike, default=round(found.support * len(bundle.replicates)))


@dataclass(frozen=True, slots=True)
class Parts:
    """A consensus, taken apart by what stands behind it; ABSENT where there is nothing of a kind. `agreed`: at least
    two answers gave it. `alone`: it was compared, and no two did. `beside`: it was not compared, and is one answer's.
    """

    agreed: Any = ABSENT
    alone: Any = ABSENT
    beside: Any = ABSENT


def parts_of(bundle: EvidenceBundle, view: View) -> Parts:
    """A list that was compared element by element stays whole, with those that agree."""
    kinds = {path: row.votes > 1 for row in view.rows if (path := _path(row.name)) is not None}
    if not kinds or bundle.summary.truncated:
        return Parts(agreed=bundle.summary.consensus)
    above = {path[:end] for path in kinds for end in range(len(path))}
    return Parts(**_split(bundle.summary.consensus, (), kinds, above))


def _split(
    value: Any, path: tuple[str, ...], kinds: Mapping[tuple[str, ...], bool], above: Set[tuple[str, ...]]
) -> dict[str, Any]:
    if path in kinds:
        return {"agreed" if kinds[path] else "alone": value}
    if path not in above:
        return {"beside": value}
    if not isinstance(value, dict):
        below = [agreed for each, agreed in kinds.items() if each[: len(path)] == path]
        return {"agreed" if any(below) else "alone": value}
    found: dict[str, dict[str, Any]] = {}
    for key, part in value.items():
        for kind, inner in _split(part, (*path, key), kinds, above).items():
            found.setdefault(kind, {})[key] = inner
    return dict(found)


def _path(name: str) -> tuple[str, ...] | None:
    try:
        return parse_path(name)
    except ValueError:
        return None


def _agreed(data: Any, name: str) -> str:
    return MISSING if _at(data, name) is ABSENT else "A"


def _consensus_at(bundle: EvidenceBundle, name: str) -> Any:
    return ABSENT if bundle.summary.confidence is None else _at(bundle.summary.consensus, name)


def _at(value: Any, name: str) -> Any:
    try:
        return at(value, parse_path(name))
    except ValueError:  # Somebody else's bundle, with names of another kind.
        return ABSENT


def _lettered(answers: Sequence[Any], consensus: Any) -> list[Said]:
    """A for the consensus, wherever it stands; the others by their votes."""
    chosen = class_of(bounded(consensus), exact=True)
    ranked = sorted(answers, key=lambda each: class_of(bounded(each.value), exact=True) != chosen)
    return [
        Said(chr(ord("A") + place), each.value, each.votes, each.share, each.replicate_ids, each.excerpt)
        for place, each in enumerate(ranked)
    ]


def text_of(value: Any, limit: int, indent: int | None = None) -> str:
    """A text as it is, anything else as JSON; of more than `limit` characters the beginning, and no more is written."""
    text = value if isinstance(value, str) else as_json(value, limit, indent)
    return text if len(text) <= limit else f"{text[:limit]} …"


def as_json(value: Any, limit: int, indent: int | None = None) -> str:
    """At least the first `limit` characters of it."""
    written, length = [], 0
    for part in json.JSONEncoder(ensure_ascii=False, default=repr, indent=indent).iterencode(value):
        written.append(part)
        length += len(part)
        if length > limit:
            break
    return "".join(written)


def verdict(bundle: EvidenceBundle, view: View) -> tuple[str, str]:
    """A mark and a sentence: what there is to act on. Where answers are not valid it begins with how many are."""
    meta = bundle.meta
    came, valid = len(bundle.replicates), sum(replicate.quality.valid for replicate in bundle.replicates)
    if not valid:
        return "✗", "No valid answer"
    some = "" if valid == came else f"{valid} of {came} answers {'is' if valid == 1 else 'are'} valid: "
    if bundle.summary.confidence is None:
        alone = "one answer alone: no consensus" if valid == 1 else "no consensus: no two answers agree"
        return "✗", _sentence(some + alone)
    contested, alone_on = len(bundle.summary.disagreements), sum(row.votes < 2 for row in view.rows)
    if not contested:
        said = "they agree" if some else "all valid answers agree"
    elif alone_on:
        said = f"consensus on {len(view.rows) - alone_on} of {len(view.rows)} fields, {contested} contested"
    else:
        said = f"consensus, with {contested} contested field{'' if contested == 1 else 's'}"
    short = valid < meta.k and not (meta.early_stopped and meta.early_stop_reason in STOPPED)
    return ("◐" if short or contested else "✓"), _sentence(some + said)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
