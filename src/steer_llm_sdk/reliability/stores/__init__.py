"""Where keyed runs are remembered. One Protocol, moved only by claim, renew, settle and release."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol


class Claim(NamedTuple):
    """What asking for a key came to.

    ours: we hold the key under `token` until the lease ends. theirs: somebody else does. settled: `result` is what the
    run came to. conflict: the key was used with another fingerprint.
    """

    kind: Literal["ours", "theirs", "settled", "conflict"]
    token: int = 0
    result: bytes | None = None


class IdempotencyStore(Protocol):
    """Times in seconds, on the store's own clock. Who holds an older token can no longer write."""

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim: ...

    async def renew(self, key: str, token: int, lease: float) -> bool:
        """Hold on to the key; False: it is no longer ours."""
        ...

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        """Write the result; False: the token is stale and nothing was written."""
        ...

    async def release(self, key: str, token: int) -> bool:
        """Give the key back with nothing remembered; False: it is no longer ours."""
        ...
