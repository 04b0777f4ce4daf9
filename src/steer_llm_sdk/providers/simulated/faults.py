"""The faults that can be simulated: how they are written, and which requests they meet.

A fault is written `KIND` or `KIND:KEY=VALUE,KEY=VALUE`.

    kind          what the client meets                                                its own keys
    400 … 529     an error answer of that status, in the wire's own format: 400 401 403 retry-after, retry-after-ms,
                  404 408 409 413 422 429 500 502 503 504 529                           should-retry
    quota         429 insufficient_quota (Anthropic's format: 402 billing_error)        as above
    refuse        nobody listens: the connection is refused. Answers under way finish   (not rate, first, model)
    drop          the request is read, the connection closed without a word
    reset         the answer breaks off with a connection reset                         chunks
    silence       the request is read and never answered                                seconds
    slow          the first byte comes late                                             seconds
    stall         the answer stops in the middle, the connection stays open             chunks, seconds
    no-end        a stream closes in good order, but without finish reason and end marker
    malformed     JSON that is cut off (in a stream: in one of its events)              chunks
    html          a page of HTML with status 200
    empty         no choices, no content
    wrong-type    the right answer under another content type
    error-event   a stream that ends in an error event                                  chunks, status
    limit         right answers, whose headers tell of a limit of requests per minute;  requests (needed)
                  beyond it 429 with the delay that is left
    outage        from=T1,to=T2,as=KIND: that kind between two times; as=503 unless said those of the kind

Which requests it meets; all that are given must hold:

    rate=0.2      this share of them, drawn by the seed and the request's number
    after=3       not the first three
    first=10      ten requests and no more, counted after `after`
    from=2 to=30  seconds since the plan was put in place
    model=gpt-*   requests for this model; `*` and `?` as in file names

And how:

    retry-after=2      the header as written: `2`, `1.5`, `soon`; `date+2` is an HTTP date two seconds from now
    retry-after-ms=1500    should-retry=false    (x-should-retry)
    chunks=2           events of a stream that arrive first (default 1; an answer in one piece: half of it)
    seconds=1.5        how long (`slow` 5 unless said; `silence` and `stall` until the client leaves)
    status=529         what the error event says (default 500)
    requests=60        per minute: that many at once, then evenly

Requests are the POSTs a server takes, numbered from 1 since the plan was put in place. The first fault that applies
is used. The faults no-end and error-event change only streams, not an answer in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from random import Random
from typing import Any

from steer_llm_sdk.errors import MISSING, InvalidRequest

STATUSES = ("400", "401", "403", "404", "408", "409", "413", "422", "429", "500", "502", "503", "504", "529")
_MOST_DIGITS = 15
_MOST_TRIED = 10_000
_RETRY = ("retry_after", "retry_after_ms", "should_retry")
_WHICH = ("rate", "first", "after", "from", "to", "model")

_KEYS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*STATUSES, "quota"), (*_WHICH, *_RETRY)),
    "refuse": ("after", "from", "to"),
    "drop": _WHICH,
    "reset": (*_WHICH, "chunks"),
    "silence": (*_WHICH, "seconds"),
    "slow": (*_WHICH, "seconds"),
    "stall": (*_WHICH, "chunks", "seconds"),
    "no-end": _WHICH,
    "malformed": (*_WHICH, "chunks"),
    "html": _WHICH,
    "empty": _WHICH,
    "wrong-type": _WHICH,
    "error-event": (*_WHICH, "chunks", "status"),
    "limit": (*_WHICH, "requests"),
}
KINDS = (*_KEYS, "outage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault; see the module for what each kind and key says. Times in seconds."""

    kind: str
    rate: float = 1.0
    first: int | None = None
    after: int = 0
    since: float = 0.0
    until: float = math.inf
    model: str | None = None
    retry_after: str | None = None
    retry_after_ms: int | None = None
    should_retry: bool | None = None
    chunks: int = 1
    seconds: float | None = None
    status: int = 500
    requests: int = 0

    def applies(self, number: int, now: float, model: str | None) -> bool:
        """Whether it may meet this request, leaving `rate` aside."""
        last = math.inf if self.first is None else self.after + self.first
        return (
            self.after < number <= last
            and self.since <= now < self.until
            and (self.model is None or (model is not None and fnmatchcase(model, self.model)))
        )

    def __str__(self) -> str:
        """As `parse_fault` reads it."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return self.kind + ":" * bool(given) + ",".join(f"{_written(name)}={_text(value)}" for name, value in given)


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """The faults in the order in which they are tried, and the seed of their random draws."""

    faults: tuple[Fault, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, faults: str | Fault | Iterable[str | Fault], seed: int = 0) -> FaultPlan:
        given = [faults] if isinstance(faults, (str, Fault)) else faults
        return cls(tuple(parse_fault(fault) if isinstance(fault, str) else fault for fault in given), seed)

    def chance(self, number: int) -> Random:
        """The draws of one request: they depend on the seed and its number, never on the requests before it."""
        return Random(f"{self.seed}/{number}")


def decide(plan: FaultPlan, number: int, chance: Random, now: float, model: str | None = None) -> Fault | None:
    """The fault that request `number` (from 1) meets at `now`, in seconds since the plan was put in place."""
    for fault in plan.faults:
        drawn = chance.random()
        if fault.kind != "refuse" and fault.applies(number, now, model) and drawn < fault.rate:
            return fault
    return None


def first_met(plan: FaultPlan, fault: Fault) -> int | None:
    """The number of the first request that `fault`, one of the plan's, meets by its rate.

    None where that is not known beforehand (it depends on time or model), or it comes after the first 10,000.
    """
    if fault.since > 0 or fault.until < math.inf or fault.model is not None:
        return None
    numbers = range(1, _MOST_TRIED + 1)
    return next((number for number in numbers if decide(plan, number, plan.chance(number), 0.0) is fault), None)


def refusing(plan: FaultPlan, taken: int, now: float) -> bool:
    """Whether connections are refused, after `taken` requests and at `now`."""
    return any(fault.kind == "refuse" and fault.applies(taken + 1, now, None) for fault in plan.faults)


def next_change(plan: FaultPlan, now: float) -> float | None:
    """When `refusing` may change by time alone; None: never again."""
    times = [time for fault in plan.faults if fault.kind == "refuse" for time in (fault.since, fault.until)]
    return min((time for time in times if now < time < math.inf), default=None)


def parse_fault(text: str) -> Fault:
    """Read one fault. Raises InvalidRequest with the name of the field that cannot be used."""
    kind, rest = text.partition(":")[0].strip(), text.partition(":")[2]
    given = _pairs(rest)
    if kind == "outage":
        kind = given.pop("as", "503")
        for key in ("from", "to"):
            if key not in given:
                raise InvalidRequest(f"fault.{key}", MISSING, "an outage needs both: outage:from=2,to=30,as=503")
    if kind not in _KEYS:
        raise InvalidRequest("fault.kind", kind, f"use one of {', '.join(KINDS)}")
    for key in given:
        if key not in _KEYS[kind]:
            known = ", ".join(_dashed(key) for key in _KEYS[kind])
            raise InvalidRequest(f"fault.{_dashed(key)}", given[key], f"{kind} takes {known}")
    return _checked(Fault(kind=kind, **{_FIELDS.get(key, key): _READ[key](key, value) for key, value in given.items()}))


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (side.strip() for side in part.partition("="))
        if not equals or not value:
            raise InvalidRequest("fault", part, "write KEY=VALUE, with commas between")
        if key.replace("-", "_") in pairs:
            raise InvalidRequest(f"fault.{key}", value, "give it once")
        pairs[key.replace("-", "_")] = value
    return pairs


def _checked(fault: Fault) -> Fault:
    if fault.until <= fault.since:
        raise InvalidRequest("fault.to", fault.until, f"it must be later than from={fault.since:g}")
    if fault.kind == "limit" and not fault.requests:
        raise InvalidRequest("fault.requests", fault.requests, "say how many per minute: limit:requests=60")
    return fault


def _number(key: str, value: str, *, most: float = math.inf) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most or math.isinf(number):
        bound = f"a number from 0 to {most:g}" if most < math.inf else "a number of seconds, 0 or more"
        raise InvalidRequest(f"fault.{_dashed(key)}", value, f"give {bound}")
    return number


def _share(key: str, value: str) -> float:
    return _number(key, value, most=1.0)


def _whole(key: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > _MOST_DIGITS:
        remedy = f"give a whole number, 0 or more, of {_MOST_DIGITS} digits at most"
        raise InvalidRequest(f"fault.{_dashed(key)}", value, remedy)
    return int(value)


def _status(key: str, value: str) -> int:
    if value not in STATUSES:
        raise InvalidRequest(f"fault.{key}", value, f"use one of {', '.join(STATUSES)}")
    return int(value)


def _yes_or_no(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidRequest(f"fault.{_dashed(key)}", value, "write true or false")
    return value == "true"


def _header(key: str, value: str) -> str:
    """Text that can stand in a header; after `date+` a number of seconds."""
    if not value.isascii() or not value.isprintable():
        raise InvalidRequest(f"fault.{_dashed(key)}", value, "a header takes printable ASCII")
    if value.startswith("date+"):
        _number(key, value.removeprefix("date+"))
    return value


def _as_written(key: str, value: str) -> str:
    return value


_READ: Mapping[str, Callable[[str, str], Any]] = {
    "rate": _share,
    "first": _whole,
    "after": _whole,
    "from": _number,
    "to": _number,
    "model": _as_written,
    "retry_after": _header,
    "retry_after_ms": _whole,
    "should_retry": _yes_or_no,
    "chunks": _whole,
    "seconds": _number,
    "status": _status,
    "requests": _whole,
}
_FIELDS = {"from": "since", "to": "until"}
_WRITTEN = {field: key for key, field in _FIELDS.items()}


def _written(field: str) -> str:
    return _dashed(_WRITTEN.get(field, field))


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")
