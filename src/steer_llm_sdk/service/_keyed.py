"""What is known of a key before a run is accepted with it: 202 is answered before the run asks for itself."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from steer_llm_sdk.errors import ConflictError, InFlight
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.replay import KeyedRun
from steer_llm_sdk.reliability.idempotency import ASK_AGAIN, look


class Keyed(NamedTuple):
    """`ours`: nobody has the key. `theirs`: a run with it is under way. `settled`: one has ended, `run` is its id.
    `name` is the key as the caller knows it."""

    name: str
    key: str
    fingerprint: str
    kind: Literal["ours", "theirs", "settled"]
    run: str | None


async def keyed(
    orchestrator: ReliableOrchestrator,
    request: Any,
    tool_name: str | None,
    tool_options: dict[str, Any] | None,
    config: OrchestrationConfig,
) -> Keyed:
    """ConflictError where the key belongs to another request; InFlight where one is not to wait for a run with it."""
    run = orchestrator._accept(request, tool_name, tool_options, config, None)
    work = KeyedRun(run, orchestrator._work, orchestrator.executor.config.__dict__)
    claim = await look(orchestrator.idempotency_manager, work)
    if claim.kind == "conflict":
        raise ConflictError(work.name)
    if claim.kind == "theirs" and not work.wait:
        raise InFlight(work.name, ASK_AGAIN)
    ended = None if claim.result is None else work.load(claim.result).metadata.get("request_id")
    return Keyed(work.name, work.key, work.fingerprint, claim.kind, ended)
