"""Steps that depend on the clock or on chance: a provider's bad hour in virtual time, where no socket can be used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.testing.tools import OK, Step, err

if TYPE_CHECKING:
    from steer_llm_sdk.testing.tools import ScriptedTool

__all__ = ["outage", "sometimes"]


@dataclass(frozen=True, slots=True)
class _Either:
    """`bad` where `applies`, which is asked when the call comes in."""

    applies: Callable[[], bool]
    bad: Step
    otherwise: Step

    async def play(self, tool: ScriptedTool) -> Any:
        return await (self.bad if self.applies() else self.otherwise).play(tool)


def outage(start: float, end: float, bad: Step | None = None, otherwise: Step | None = None) -> Step:
    """Play `bad` (a 503) from `start` until just before `end`, else `otherwise` (OK()). Seconds on the loop's clock.

    outage(600, 4200, HANG, otherwise=sometimes(0.02, err(429, retry_after=1), otherwise=OK(after=0.8)))
    """
    if not start < end:
        raise ValueError(f"end: {end!r} cannot be used; it must be later than start={start!r}")
    return _Either(lambda: start <= asyncio.get_running_loop().time() < end, bad or err(503), otherwise or OK())


def sometimes(share: float, bad: Step | None = None, otherwise: Step | None = None) -> Step:
    """Play `bad` (a 503) for this share of the calls, else `otherwise` (OK()).

    Drawn from the module `random`, which `run_in_virtual_time(main, seed=…)` seeds.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: {share!r} cannot be used; give a number from 0 to 1")
    return _Either(lambda: random.random() < share, bad or err(503), otherwise or OK())
