"""Recorded answers as those of a tool in virtual time: what is asked, used and cancelled, and how long it takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recordings import Question

from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.testing import VirtualTimeLoop

WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "curtail, one at a time": {"max_parallel": 1},
    "curtail": {},
    "pcurtail, one at a time": {"stop": "pcurtail", "max_parallel": 1},
    "pcurtail": {"stop": "pcurtail"},
    'latency="min"': {"latency": "min"},
}
PRICE: Final = 0.01


@dataclass(slots=True)
class Launched:
    """Means over the questions."""

    asked: float = 0.0
    used: float = 0.0
    cancelled: float = 0.0
    seconds: float = 0.0
    cost_saved: float = 0.0


class _Recorded:
    """Answers with what was recorded, after a time of its own for each answer."""

    def __init__(self, votes: Sequence[str | None], rng: random.Random) -> None:
        self._votes = votes
        self._after = [rng.lognormvariate(0, 0.6) for _ in votes]
        self.asked = self.cancelled = 0

    async def __call__(self, request: Any, seed: int) -> str:
        self.asked += 1
        try:
            await asyncio.sleep(self._after[seed])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = self._votes[seed]
        if answer is None:
            raise ValueError("no answer")
        return answer


def launched(questions: Sequence[Question], k: int, options: Mapping[str, Any]) -> Launched:
    loop, found = VirtualTimeLoop(), Launched()
    try:
        loop.run_until_complete(_launch(questions, k, options, found))
    finally:
        loop.close()
    for name in ("asked", "used", "cancelled", "seconds", "cost_saved"):
        setattr(found, name, getattr(found, name) / len(questions))
    return found


async def _launch(questions: Sequence[Question], k: int, options: Mapping[str, Any], found: Launched) -> None:
    rng, clock = random.Random(2), asyncio.get_running_loop().time
    for question in questions:
        recorded = _Recorded(question.drawn(rng, k), rng)
        tool = SimpleBundleTool(recorded, price_usd=PRICE)
        begun = clock()
        try:
            bundle = await tool.execute("q", {"k": k, **options})
        except Exception:  # No valid answer at all: asked k times, and all of them used.
            found.used += recorded.asked
        else:
            found.used += len(bundle.replicates)
            found.cost_saved += bundle.metadata["stopping"]["cost_saved_usd"] / (k * PRICE)
        found.asked += recorded.asked
        found.cancelled += recorded.cancelled
        found.seconds += clock() - begun
