"""The whole idea: a policy is one callable `(call, next) -> result`, and a list of policies folds into one callable.

A policy catches what it owns and lets the rest pass. None of them has heard of tools: a call is a `target` (what is
protected), a `part` of it, and the few things below.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from steer_llm_sdk.models.quota import RateLimitStatus
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.reliability.deadline import Deadline

if TYPE_CHECKING:
    from typing import Self

    from steer_llm_sdk.reliability.silence import Life


class Call(Protocol):
    """What a mechanism may know of a call."""

    attempts: int
    ended: float | None
    """When the last attempt ended, on the clock of the loop; None while none was sent."""
    queued: float
    """Seconds that it has waited for a rate limit since it was last sent."""
    life: Life | None
    """Who watches its attempts for signs of life; None where nobody does."""

    @property
    def target(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def model(self) -> str | None:
        """What has rate limits of its own within the target, where that is known."""
        ...

    @property
    def tenant(self) -> str:
        """On whose behalf: whoever waits takes turns with other tenants."""
        ...

    @property
    def worst_case(self) -> Amount: ...
    @property
    def deadline(self) -> Deadline | None: ...
    @property
    def ledger(self) -> Ledger | None: ...
    @property
    def sent(self) -> int:
        """Upstream calls that the run has made so far, this call's among them, and those promised to its others."""
        ...

    def promise(self) -> None:
        """Count the next attempt of this call as made for the others of the run, until it is, or `renounce`."""
        ...

    def renounce(self) -> None:
        """Let the others have what was promised, where this call has not made it. Nothing may be."""
        ...

    def elapsed(self) -> float:
        """Seconds since the run began."""
        ...

    @property
    def max_attempts(self) -> int:
        """How often this call may be tried, the first time included."""
        ...

    @property
    def attempt_timeout(self) -> float | None:
        """Seconds for each attempt; None for no limit."""
        ...

    @property
    def answers(self) -> int:
        """How many answers the run asks for: 1, or the k of a bundle."""
        ...

    @property
    def kept_for_others(self) -> int:
        """Calls of the run that no retry or hedge of this call may take: another model or tool would need them for the
        answers that are still missing. 0 where nobody else could be asked."""
        ...

    def watched(self, life: Life, /) -> Self:
        """The same call, with attempts that `life` watches."""
        ...

    def spent(self, result: Any, /) -> Amount:
        """What the call really took, read off its result."""
        ...

    def told(self, result: Any, /) -> RateLimitStatus | None:
        """What the provider said of its limits, read off a result or an error."""
        ...

    def emit(self, event_type: str, data: dict[str, Any], /) -> None: ...


C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
R = TypeVar("R")
Next: TypeAlias = Callable[[C], Coroutine[Any, Any, R]]


class Policy(Protocol[C_contra]):
    async def __call__(self, call: C_contra, next: Next[Any, Any], /) -> Any: ...


def compose(policies: Sequence[Policy[Any]], innermost: Next[Any, Any]) -> Next[Any, Any]:
    """Fold: the first policy is outermost. Done once per configuration, not once per call."""
    folded = innermost
    for policy in reversed(policies):
        folded = _wrap(policy, folded)
    return folded


def _wrap(policy: Policy[Any], inner: Next[Any, Any]) -> Next[Any, Any]:
    # A method that is bound once is called faster than an object that can be called.
    ask = policy if isinstance(policy, FunctionType) else policy.__call__

    def call_policy(call: Any) -> Coroutine[Any, Any, Any]:
        return ask(call, inner)

    return call_policy
