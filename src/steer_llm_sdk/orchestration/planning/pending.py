"""A decision that waits for what will be said of it, here or in another process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from steer_llm_sdk.orchestration.planning.learning_log import Decided
from steer_llm_sdk.orchestration.planning.neighbours import Prompt


@dataclass(slots=True)
class Pending:
    """A decision that may get feedback. `reward` and `cost` are what was told so far, `reserved` is in USD. `answered`:
    the fallback that answered in place of the tool that was chosen, and gets the feedback."""

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
    answered: Pending | None = None


def packed(pending: Pending) -> bytes:
    return json.dumps(_fields(pending)).encode()


def _fields(pending: Pending) -> list[Any]:
    fields = (pending.task, pending.arm, pending.characters, pending.predicted, pending.reserved)
    answered = None if pending.answered is None else _fields(pending.answered)
    return [*fields, pending.reward, pending.cost, pending.ms, answered]


def unpacked(note: bytes) -> Pending:
    return _pending(*json.loads(note))


def _pending(
    task: str,
    arm: str,
    characters: int,
    predicted: float | None,
    reserved: float,
    reward: float | None,
    cost: float | None,
    ms: float | None,
    answered: list[Any] | None = None,
) -> Pending:
    other = None if answered is None else _pending(*answered)
    return Pending(task, arm, characters, predicted, reserved, None, None, reward, cost, ms, answered=other)
