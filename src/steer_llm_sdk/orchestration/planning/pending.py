"""A decision that waits for what will be said of it, here or in another process."""

from __future__ import annotations

import json
from dataclasses import dataclass

from steer_llm_sdk.orchestration.planning.learning_log import Decided
from steer_llm_sdk.orchestration.planning.neighbours import Prompt


@dataclass(slots=True)
class Pending:
    """A decision that may get feedback. `reward` and `cost` are what was told so far, `reserved` is in USD."""

    task: str
    arm: str
    characters: int
    predicted: float | None
    reserved: float
    prompt: Prompt | None
    logged: Decided | None
    reward: float | None = None
    cost: float | None = None
    ms: float | None = None
    row: int | None = None
    decided: bool = True


def packed(pending: Pending) -> bytes:
    fields = (pending.task, pending.arm, pending.characters, pending.predicted, pending.reserved)
    return json.dumps([*fields, pending.reward, pending.cost, pending.ms]).encode()


def unpacked(note: bytes) -> Pending:
    task, arm, characters, predicted, reserved, reward, cost, ms = json.loads(note)
    return Pending(task, arm, characters, predicted, reserved, None, None, reward, cost, ms)
