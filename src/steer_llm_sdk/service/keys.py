"""API keys: who may ask, on behalf of which tenant. Only their hashes are kept.

A key is 256 random bits, so that one round of SHA-256 is enough: there is nothing to guess that a slow hash would
guard. A file of keys is TOML:

    [[key]]
    tenant = "team-a"
    sha256 = "9f86d0…"
    runs_per_minute = 600
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from steer_llm_sdk.errors import InvalidRequest

PREFIX = "steer-"


class Key(BaseModel):
    """`sha256` in hex of the key. `admin` may also force breakers, and read /metrics, which are those of all tenants.
    `runs_per_minute` None: no limit of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    runs_per_minute: float | None = Field(default=None, gt=0)
    admin: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    key: list[Key] = []


@dataclass(frozen=True, slots=True)
class KeyRing:
    keys: tuple[Key, ...]

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """InvalidRequest names the file and the line or the key that is wrong."""
        try:
            found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InvalidRequest("keys", str(path), f"it cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest("keys", str(path), f"it is no TOML: {error}") from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InvalidRequest("keys", str(path), f"{place}: {first['msg']}") from None
        if not found.key:
            raise InvalidRequest("keys", str(path), "it has no [[key]]; `steer-llm keys new TENANT` prints one")
        return cls(tuple(found.key))

    def find(self, secret: str) -> Key | None:
        """The key, compared with every one there is, in a time that tells nothing of which it was."""
        given, found = digest(secret), None
        for key in self.keys:
            if hmac.compare_digest(given, key.sha256):
                found = key
        return found


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> tuple[str, str]:
    """A new key, to be shown once, and its hash, to be kept."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, digest(secret)
