"""Defects that both the exploration and the simulation must notice; each is planted in memory while its patch is on."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from steer_llm_sdk.reliability import circuit, rate_limit, retry_budget
from steer_llm_sdk.reliability.retry import AttemptLimit, RetryPolicy
from steer_llm_sdk.reliability.stores import Claim
from steer_llm_sdk.reliability.stores.memory import MemoryStore


def half_open_admits_everybody() -> Any:
    whole = circuit._admit_probe

    def admit(lane: Any, serial: int, now: float, lease: float, cfg: Any) -> Any:
        return whole(lane, serial, now, lease, cfg.model_copy(update={"half_open_requests": 99}))

    return patch.object(circuit, "_admit_probe", admit)


def the_end_of_a_call_frees_no_place() -> Any:
    whole = rate_limit.finish
    return patch.object(rate_limit, "finish", lambda state, *rest: whole(state, *rest)._replace(running=state.running))


def a_retry_budget_never_refuses() -> Any:
    whole = retry_budget.draw
    return patch.object(retry_budget, "draw", lambda window, *rest: (whole(window, *rest)[0], True))


def the_bound_on_all_attempts_is_forgotten() -> Any:
    whole = AttemptLimit.__init__
    return patch.object(AttemptLimit, "__init__", lambda self, limit, per_answer=1: whole(self, 99, per_answer))


def what_the_server_asked_for_is_ignored() -> Any:
    return patch.object(RetryPolicy, "wait", lambda self, error, attempt, jitter: self.delay(attempt, jitter))


def a_key_that_is_held_is_taken() -> Any:
    whole = MemoryStore.claim_now

    def claim(self: MemoryStore, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        self._claimed.pop(key, None)
        return whole(self, key, fingerprint, lease, ttl)

    return patch.object(MemoryStore, "claim_now", claim)


def a_zombie_settles() -> Any:
    whole = MemoryStore.settle_now

    def settle(self: MemoryStore, key: str, token: int, result: bytes) -> bool:
        entry = self._claimed.get(key)
        return whole(self, key, token if entry is None else entry.token, result)

    return patch.object(MemoryStore, "settle_now", settle)
