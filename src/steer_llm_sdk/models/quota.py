"""What a provider's answer says of its rate limits, read off the headers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple


class Quota(NamedTuple):
    """`remaining` of `limit` are left; `reset` seconds until all of it is there again, None where nobody said."""

    limit: float
    remaining: float
    reset: float | None = None


class RateLimitStatus(NamedTuple):
    """The provider's own account, of requests and of tokens, when the answer began: `at` on the event loop's clock."""

    at: float
    requests: Quota | None = None
    tokens: Quota | None = None


_OPENAI, _ANTHROPIC = "x-ratelimit-{part}-{kind}", "anthropic-ratelimit-{kind}-{part}"
_LONGEST_RESET = 31 * 86_400.0
_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_STEP = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(ms|us|µs|ns|d|h|m|s)", re.ASCII)


def parse_rate_limit(headers: Mapping[str, str], now: float, at: float) -> RateLimitStatus | None:
    """Read lower-case `headers`; `now` is seconds since the epoch, `at` the same instant on the event loop's clock.

    `x-ratelimit-limit-requests` with `-remaining-` and `-reset-`, and the same for tokens ("6m0s", "20ms" until full);
    `anthropic-ratelimit-requests-limit` with `-remaining` and `-reset` (a time of RFC 3339), and the same for tokens;
    where only input and output tokens are told apart, that of which less is left. None where nothing is said. Never
    raises: what makes no sense is left out.
    """
    requests = _quota(headers, _OPENAI, "requests", now) or _quota(headers, _ANTHROPIC, "requests", now)
    tokens = _quota(headers, _OPENAI, "tokens", now) or _quota(headers, _ANTHROPIC, "tokens", now)
    if tokens is None:
        sides = [_quota(headers, _ANTHROPIC, kind, now) for kind in ("input-tokens", "output-tokens")]
        tokens = min((side for side in sides if side is not None), key=lambda side: side.remaining, default=None)
    return None if requests is None and tokens is None else RateLimitStatus(at, requests, tokens)


def _quota(headers: Mapping[str, str], form: str, kind: str, now: float) -> Quota | None:
    limit, remaining = (_count(headers.get(form.format(part=part, kind=kind))) for part in ("limit", "remaining"))
    if limit is None or limit < 1 or remaining is None:
        return None
    return Quota(limit, min(remaining, limit), _until(headers.get(form.format(part="reset", kind=kind)), now))


def _count(text: object) -> float | None:
    try:
        count = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return count if 0 <= count < math.inf else None


def _until(text: object, now: float) -> float | None:
    """Seconds from `now` on, of a duration, a plain number of seconds, or a time."""
    if not isinstance(text, str):
        return None
    seconds = _count(text)
    if seconds is None:
        seconds = _duration(text.strip())
    if seconds is None:
        seconds = _until_time(text.strip(), now)
    return seconds if seconds is not None and seconds <= _LONGEST_RESET else None


def _duration(text: str) -> float | None:
    steps = _STEP.findall(text)
    if not steps or "".join(number + unit for number, unit in steps) != text:
        return None
    return math.fsum(float(number) * _UNITS[unit] for number, unit in steps)


def _until_time(text: str, now: float) -> float | None:
    try:
        when = datetime.fromisoformat(text)
        return max(0.0, (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return None
