"""Which values each field was given, and how often: the form in which people read evidence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.evidence._leaves import ABSENT, at, parse_path

if TYPE_CHECKING:
    from steer_llm_sdk.evidence.models import BundleSummary, Disagreement, Replicate


def votes_by_field(
    replicates: Sequence[Replicate], summary: BundleSummary
) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Each field with its values as JSON and their votes, most first. "$" is the whole answer."""
    contested = {each.field: each for each in summary.disagreements}
    for name in dict.fromkeys((*(summary.distributions or {}), *contested)):
        yield name, _counted(contested[name]) if name in contested else [_agreed(replicates, name)]


def _counted(found: Disagreement) -> list[tuple[str, int]]:
    """By the answers that are told apart; where they are not all listed, by what was said to the letter."""
    if found.answers and not found.more:
        return [(_as_json(answer.value), answer.votes) for answer in found.answers]
    return Counter(map(_as_json, found.values)).most_common()


def _agreed(replicates: Sequence[Replicate], field: str) -> tuple[str, int]:
    """The one value of a field on which all agree, and how many replicates have it."""
    path = parse_path(field)
    values = [at(replicate.data, path) for replicate in replicates if replicate.quality.valid]
    given = [value for value in values if value is not ABSENT]
    return (_as_json(given[0]), len(given)) if given else ("(absent)", len(values))


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
