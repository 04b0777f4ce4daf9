"""Retry-After in every form that servers use. How often is the next attempt too early?"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx2
from alternatives import tenacity
from kit import OURS, Arm, Finding, now, observed, ours, seeded, wall_clock_in_virtual_time
from openai import AsyncOpenAI
from plot import bars
from tenacity import RetryCallState
from tenacity.wait import wait_exponential_jitter

from steer_llm_sdk.testing import run_in_virtual_time

TRIALS, SEED = 10_000, 6
FEWER = 1_000
"""For the official client, of which one call takes milliseconds."""
FORMS = ("whole s", "fractional s", "retry-after-ms", "HTTP date", "beyond max_delay", "garbage")
TOLERANCE = 1e-6
"""Of the clock: sums of floats."""


@dataclass(slots=True)
class Asked:
    """Headers of a 429, the seconds that they ask for (None: they make no sense), and what came after.

    `date` is on the wall clock.
    """

    form: str
    headers: Mapping[str, str]
    seconds: float | None
    date: float | None = None
    refused_at: float = 0.0
    again_at: float | None = None

    @property
    def early(self) -> bool:
        return self.again_at is not None and self.again_at < self.refused_at + (self.seconds or 0.0) - TOLERANCE


def asked(chance: random.Random) -> Asked:
    """One 429 of a form drawn at random."""
    form = chance.choice(FORMS)
    if form == "whole s":
        seconds = float(chance.randint(0, 55))
        return Asked(form, {"retry-after": f"{seconds:.0f}"}, seconds)
    if form == "fractional s":
        seconds = round(chance.uniform(0, 55), 3)
        return Asked(form, {"retry-after": f"{seconds}"}, seconds)
    if form == "retry-after-ms":
        millis = chance.randint(0, 55_000)
        return Asked(form, {"retry-after-ms": str(millis)}, millis / 1000)
    if form == "HTTP date":
        when = int(time.time()) + chance.randint(2, 50)
        text = format_datetime(datetime.fromtimestamp(when, UTC), usegmt=True)
        return Asked(form, {"retry-after": text}, None, when)
    if form == "beyond max_delay":
        seconds = float(chance.randint(61, 1_000))
        return Asked(form, {"retry-after": f"{seconds:.0f}"}, seconds)
    text = chance.choice(("soon", "-5", "nan", "inf", "1e999", "", "12 monkeys", "Thu, 99 Foo 2020", "0x10"))
    return Asked(form, {"retry-after": text}, None)


class Limited:
    """Answers the first request of a trial with its 429, every other with "ok"; speaks HTTP, without a wire."""

    def __init__(self) -> None:
        self._trial, self._requests = Asked("", {}, None), 0

    def begin(self, trial: Asked) -> None:
        self._trial, self._requests = trial, 0

    def response(self, request: httpx2.Request) -> httpx2.Response:
        self._requests += 1
        if self._requests > 1:
            self._trial.again_at = now()
            return httpx2.Response(200, json={"id": "1", "choices": []}, request=request)
        self._trial.refused_at = now()
        if self._trial.date is not None:
            self._trial.seconds = self._trial.date - time.time()
        return httpx2.Response(429, headers=self._trial.headers, request=request)

    async def send(self) -> Any:
        """Like an application that speaks HTTP itself."""
        return self.response(httpx2.Request("POST", "http://127.0.0.1/")).raise_for_status()


def openai_client(limited: Limited) -> Callable[[], Awaitable[Any]]:
    """The official client with its own retries."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(limited.response), base_url="http://127.0.0.1")
    client = AsyncOpenAI(api_key="none", base_url="http://127.0.0.1", max_retries=2, http_client=http)

    async def call() -> Any:
        return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])

    return call


def _whole_seconds(state: RetryCallState) -> float:
    """What is often written by hand: a whole number is understood, everything else gets the usual backoff."""
    error = state.outcome.exception() if state.outcome is not None else None
    text = error.response.headers.get("retry-after", "") if isinstance(error, httpx2.HTTPStatusError) else ""
    return float(text) if text.isdigit() else wait_exponential_jitter(1, 60)(state)


OPENAI = f"openai's own retries ({FEWER:,})"
CONTENDERS: Mapping[str, Callable[[Limited], Callable[[], Awaitable[Any]]]] = {
    "tenacity": lambda limited: tenacity(3)(limited.send),
    "tenacity, int(header)": lambda limited: tenacity(3, _whole_seconds)(limited.send),
    OPENAI: openai_client,
    OURS: lambda limited: ours()(limited.send),
}


async def trials_of(name: str) -> list[Asked]:
    chance = random.Random(SEED)
    trials = []
    limited = Limited()
    call = CONTENDERS[name](limited)
    for _ in range(FEWER if name == OPENAI else TRIALS):
        trial = asked(chance)
        limited.begin(trial)
        await observed(call)
        trials.append(trial)
    return trials


def experiment() -> Finding:
    arms, early = [], {form: dict.fromkeys(CONTENDERS, 0.0) for form in FORMS}
    with wall_clock_in_virtual_time():
        for name in CONTENDERS:
            seeded(SEED)
            trials = run_in_virtual_time(trials_of(name))
            for trial in trials:
                early[trial.form][name] += trial.early
            count = sum(trial.early for trial in trials)
            again = sum(trial.again_at is not None for trial in trials)
            by_form = [f"{early[form][name]:.0f}" for form in FORMS]
            arms.append(Arm(name, [str(count), *by_form, str(again)], count == 0 and again > 0, name == OURS))
    return Finding(
        title="(f) Retry-After in every form",
        setting=f"{TRIALS:,} 429s, each with a header of a form and value drawn at random; max_delay 60 s",
        mark="0 attempts earlier than asked",
        columns=["early", *FORMS, "tried again"],
        arms=arms,
        charts={"sim-retry-after.svg": bars("Attempts made earlier than the server asked", early, "early attempts")},
    )
