"""Shared values as text: versioned JSON, so that another process, and another release, can read what one has written.

Each kind is written out by hand: what is not named here is not shared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from steer_llm_sdk.reliability.budget import Account
from steer_llm_sdk.reliability.circuit import Circuit, Closed, HalfOpen, Lane, Open
from steer_llm_sdk.reliability.rate_limit import Bucket, State
from steer_llm_sdk.reliability.retry_budget import Window
from steer_llm_sdk.reliability.tally import Counts, Rates, Streak, Tally

FORMAT = 1
V = TypeVar("V")


class Unreadable(ValueError):
    """What stands in the store is of a newer release, or is none of ours."""


def written(value: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, **value}, separators=(",", ":"), allow_nan=False)


def read(text: str, of: Callable[[Any], V]) -> V:
    try:
        value = json.loads(text)
        found = value["format"]
        if found == FORMAT:
            return of(value)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Unreadable(f"the store holds what is no snapshot of this library: {error!r}") from error
    raise Unreadable(f"the store holds a snapshot of format {found}, and this release reads {FORMAT}: upgrade it here")


# ── the circuit ──────────────────────────────────────────────────────────────────────────────────────────────────────


def circuit_to(circuit: Circuit) -> dict[str, Any]:
    return {
        "whole": _lane_to(circuit.whole),
        "narrowed": {part: _lane_to(lane) for part, lane in circuit.narrowed.items()},
        "recovered": {part: _lane_to(lane) for part, lane in circuit.recovered.items()},
        "tally": _tally_to(circuit.tally),
        "serial": circuit.serial,
        "generation": circuit.generation,
    }


def circuit_of(value: Any) -> Circuit:
    return Circuit(
        _lane_of(value["whole"]),
        {part: _lane_of(lane) for part, lane in value["narrowed"].items()},
        _tally_of(value["tally"]),
        {part: _lane_of(lane) for part, lane in value["recovered"].items()},
        value["serial"],
        value["generation"],
    )


def _lane_to(lane: Lane) -> dict[str, Any]:
    if isinstance(lane, Closed):
        return {"state": "closed", "generation": lane.generation, "since": lane.since, "relapses": lane.relapses}
    if isinstance(lane, Open):
        return {
            "state": "open",
            "generation": lane.generation,
            "until": lane.until,
            "blamed": sorted(lane.blamed),
            "early": lane.early,
            "confirmed": lane.confirmed,
            "relapses": lane.relapses,
            "probed": lane.probed,
            "panicked": lane.panicked,
        }
    return {
        "state": "half_open",
        "generation": lane.generation,
        "blamed": sorted(lane.blamed),
        "confirmed": lane.confirmed,
        "successes": lane.successes,
        "probes": lane.probes,
        "relapses": lane.relapses,
    }


def _lane_of(value: Any) -> Any:
    kind = value["state"]
    if kind == "closed":
        return Closed(value["generation"], value["since"], value["relapses"])
    blamed = frozenset(value["blamed"])
    if kind == "open":
        early = value["early"]
        return Open(
            value["generation"],
            value["until"],
            blamed,
            None if early is None else (early[0], early[1]),
            value["confirmed"],
            value["relapses"],
            value["probed"],
            value["panicked"],
        )
    probes = tuple((serial, end) for serial, end in value["probes"])
    return HalfOpen(value["generation"], blamed, value["confirmed"], value["successes"], probes, value["relapses"])


def _tally_to(tally: Tally) -> dict[str, Any]:
    return {
        "streak": _streak_to(tally.streak),
        "aside": {part: _streak_to(streak) for part, streak in tally.aside.items()},
        "rates": None if tally.rates is None else _rates_to(tally.rates),
        "asked": tally.asked,
    }


def _tally_of(value: Any) -> Tally:
    return Tally(
        _streak_of(value["streak"]),
        {part: _streak_of(streak) for part, streak in value["aside"].items()},
        None if value["rates"] is None else _rates_of(value["rates"]),
        dict(value["asked"]),
    )


def _streak_to(streak: Streak) -> list[Any]:
    return [streak.total, streak.spans]


def _streak_of(value: Any) -> Streak:
    return Streak(value[0], [(at, dict(counts)) for at, counts in value[1]])


def _rates_to(rates: Rates) -> dict[str, Any]:
    """The sums are those of the ring."""
    ring = [{part: [c.calls, c.failed, c.slow] for part, c in counted.items()} for counted in rates.ring]
    return {"newest": rates.newest, "ring": ring}


def _rates_of(value: Any) -> Rates:
    rates = Rates(
        value["newest"], ring=[{part: Counts(*c) for part, c in counted.items()} for counted in value["ring"]]
    )
    for counted in rates.ring:
        for part, counts in counted.items():
            for sums in (rates.whole, rates.parts.setdefault(part, Counts())):
                sums.calls += counts.calls
                sums.failed += counts.failed
                sums.slow += counts.slow
    return rates


# ── limits and budgets ───────────────────────────────────────────────────────────────────────────────────────────────


def limit_to(state: State) -> dict[str, Any]:
    """Without the line: who waits, waits in one process."""
    return {
        "requests": None if state.requests is None else _bucket_to(state.requests),
        "tokens": None if state.tokens is None else _bucket_to(state.tokens),
        "max_concurrent": state.max_concurrent,
        "running": state.running,
        "reserved": state.reserved,
        "blocked_until": _finite(state.blocked_until),
    }


def limit_of(value: Any) -> State:
    requests, tokens = value["requests"], value["tokens"]
    return State(
        None if requests is None else _bucket_of(requests),
        None if tokens is None else _bucket_of(tokens),
        value["max_concurrent"],
        value["running"],
        value["reserved"],
        _ever(value["blocked_until"]),
    )


def _bucket_to(bucket: Bucket) -> list[Any]:
    return [bucket.capacity, bucket.per_second, _finite(bucket.empty_at)]


def _bucket_of(value: Any) -> Bucket:
    return Bucket(value[0], value[1], _ever(value[2]))


def window_to(window: Window) -> dict[str, Any]:
    return {"slice": window.slice, "firsts": window.firsts, "extras": window.extras, "older": window.older}


def window_of(value: Any) -> Window:
    older = tuple((firsts, extras) for firsts, extras in value["older"])
    sums = sum(firsts for firsts, _ in older), sum(extras for _, extras in older)
    return Window(value["slice"], value["firsts"], value["extras"], older, *sums)


def account_to(account: Account) -> dict[str, Any]:
    return {**account._asdict(), "starts": _finite(account.starts), "ends": _finite(account.ends)}


def account_of(value: Any) -> Account:
    account = Account(**{name: value[name] for name in Account._fields})
    return account._replace(starts=_ever(account.starts), ends=_ever(account.ends))


def _finite(time: float) -> float | None:
    """None is for ever ago, for which JSON has no number."""
    return time if math.isfinite(time) else None


def _ever(time: float | None) -> float:
    return -math.inf if time is None else time
