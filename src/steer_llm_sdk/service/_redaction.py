"""The key of a provider is taken out of what that provider says, as it comes, byte for byte but for that."""

from __future__ import annotations

from steer_llm_sdk.providers._endpoint import REDACTED


class Redaction:
    """Of one answer, in pieces. Held back is what a key may begin with, at the end of what has come, and no more; that
    comes with the next piece, or with the `last` one. `secret` "": nothing is taken out."""

    __slots__ = ("_held", "_secret")

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._held = b""

    def __call__(self, piece: bytes, *, last: bool = False) -> bytes:
        if not self._secret:
            return piece
        *before, rest = (self._held + piece).split(self._secret)
        held = 0 if last else self._begun(rest)
        self._held = rest[len(rest) - held :]
        return REDACTED.encode().join([*before, rest[: len(rest) - held]])

    def _begun(self, text: bytes) -> int:
        """How many bytes at the end of `text` may be the beginning of the key: the most that can be."""
        secret = self._secret
        if text[-1:] not in secret:  # As the end of a line, which is where most pieces end; or there is none.
            return 0
        at = text.find(secret[:1], max(0, len(text) - len(secret) + 1))
        while at >= 0:
            if secret.startswith(text[at:]):
                return len(text) - at
            at = text.find(secret[:1], at + 1)
        return 0


def redacted(secret: str, body: bytes) -> bytes:
    return Redaction(secret)(body, last=True)
