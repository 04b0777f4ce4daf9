"""What a test sees of runs from outside."""

from __future__ import annotations

from steer_llm_sdk.durable import runs_of
from steer_llm_sdk.durable._dbos import DbosRuns


class Watch:
    """The store, as seen from outside; it is opened when there is something in it."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._runs: DbosRuns | None = None

    @property
    def runs(self) -> DbosRuns:
        if self._runs is None:
            self._runs = runs_of(self._store)
        return self._runs

    def recorded(self, run_id: str = "default:k") -> int:
        """How many calls of the run are recorded."""
        return sum(name != "plan" for name in self.runs.steps(run_id))

    def close(self) -> None:
        if self._runs is not None:
            self._runs.close()
