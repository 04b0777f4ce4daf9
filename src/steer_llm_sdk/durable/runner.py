"""The seam: what an engine has to do for a run, whichever engine it is. `_dbos.py` is the one that comes with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from steer_llm_sdk.durable._records import Json

State: TypeAlias = Literal["waiting", "running", "finished", "cancelled", "broken"]
"""`waiting`: in a queue. `broken`: it ended by an error of the engine, or died too often."""

CarryOut: TypeAlias = Callable[[str, Json], Awaitable[Json]]
"""Carries a run out, by its id and what was asked, and gives how it ended. It may be called again for the same run, in
another process: what it did inside of `Runner.step` is then given to it and not done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as the store knows it. Times are seconds since the epoch, None where it has not come to that.

    `about` is what was noted of it: tenant, key, tool and fingerprint when it was accepted, and why it was cancelled.
    `asked` and `ended` are None unless they were asked for.
    """

    id: str
    state: State
    about: Mapping[str, Any]
    created: float
    finished: float | None
    worker: str | None
    version: str | None
    queue: str | None
    asked: Json | None = None
    ended: Json | None = None


class Claim(NamedTuple):
    """Whose a key is. `generation` counts the runs that were made for it."""

    fingerprint: str
    generation: int


class Runner(Protocol):
    worker: str
    """What this process is called in the store."""

    def now(self) -> float:
        """Seconds since the epoch, the same for all workers."""
        ...

    async def open(self, carry_out: CarryOut) -> None:
        """Connect, and go on with runs whose worker died, from now on until `close`."""
        ...

    async def close(self) -> None:
        """Let go of everything: what is not finished is handed to other workers."""
        ...

    async def claim(self, key: str, fingerprint: str) -> Claim:
        """The claim that holds: this one, if the key is new, or so old that what it led to is no longer kept."""
        ...

    async def renew(self, key: str, generation: int) -> Claim:
        """Begin the next generation of a key, unless somebody else has; either way, what holds now."""
        ...

    async def execute(self, run_id: str, asked: Json, about: Json) -> Json | None:
        """Carry a new run out here, in the task of the caller, and return how it ended, None where it was cancelled.
        Where the id is known, wait for that run. A caller that is cancelled leaves it as it is; see `cancel`."""
        ...

    async def enqueue(self, run_id: str, asked: Json, about: Json, queue: str | None) -> None:
        """Hand a new run to whichever worker comes first. Does nothing where the id is known."""
        ...

    async def step(self, name: str, work: Callable[[], Awaitable[Json]]) -> Json:
        """Inside of a run: what `work` gave when the run came by this name first. Names are unique within a run, and
        may come in any order. Work that is cancelled or raises is not recorded."""
        ...

    async def wait(self, run_id: str) -> Json | None:
        """How the run ended; None where it was cancelled. Waits until it has ended."""
        ...

    async def info(self, run_id: str) -> RunInfo | None:
        """With `asked` and `ended`; None where there is no such run."""
        ...

    async def list(self, state: State | None = None, limit: int = 100) -> Sequence[RunInfo]:
        """The latest runs, newest first."""
        ...

    async def steps(self, run_id: str) -> Mapping[str, Json]:
        """What is recorded of it, by name."""
        ...

    async def cancel(self, run_id: str, why: str) -> None:
        """End it: at once in its queue, within about a second where it runs. What it has bought stays recorded, and
        `why` becomes `about["cancelled"]`. A finished run stays as it is."""
        ...

    async def resume(self, run_id: str) -> None:
        """Let a worker go on with a run that was cancelled or is stuck; a finished one stays as it is."""
        ...
