"""Where a model is reached, with which key, and what of that may be shown."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from steer_llm_sdk.errors import InvalidRequest

Wire = Literal["openai", "anthropic"]

LOCAL_SERVERS = {
    "ollama": "http://127.0.0.1:11434/v1",
    "vllm": "http://127.0.0.1:8000/v1",
    "llamacpp": "http://127.0.0.1:8080/v1",
}
"""Servers of one's own, by prefix, at the ports they use unless told otherwise. They ask for no key."""

_REDACTED = "[redacted]"
# What a provider may echo although it is not our key letter for letter: another one, or ours half masked.
_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk)-[\w*.-]{6,}|(?<=Bearer )\S+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One model at one address with one key.

    `name` is what the caller wrote, `model` what the wire is told. `base_url` None: the recorded server of this
    process, whose address is known once it runs. `own_api`: the provider's own API, or what its own environment
    variable names; anywhere else nothing of the environment is sent. `key_from` says in words where the key came from.
    """

    name: str
    provider: str
    wire: Wire
    model: str
    base_url: str | None
    target: str
    key_from: str
    api_key: SecretStr = field(default=SecretStr(""), repr=False)
    own_api: bool = False
    takes_images: bool | None = None

    @property
    def recorded(self) -> bool:
        return self.base_url is None

    @property
    def official(self) -> bool:
        """Whether OpenAI or Anthropic itself answers there, in whatever region."""
        host = urlsplit(self.base_url or "").hostname or ""
        return f".{host}".endswith(f".api.{self.wire}.com")

    @property
    def local(self) -> bool:
        return self.base_url is not None and is_loopback(self.base_url)

    def scrub(self, text: str) -> str:
        """`text` without the key, and without what looks like one."""
        key = self.api_key.get_secret_value()
        return without_keys(text.replace(key, _REDACTED) if key else text)

    def betrayed_by(self, text: str) -> bool:
        """Whether the key stands in `text`."""
        key = self.api_key.get_secret_value()
        return bool(key) and key in text


def without_keys(text: str) -> str:
    return _KEY_LIKE.sub(_REDACTED, text)


def checked_url(field_name: str, url: str) -> str:
    """`url` without a slash at its end. Raises InvalidRequest, which never shows what may be a password."""
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(field_name, without_keys(url), "write https://host/path or http://host:port/path")
    if parts.username is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise InvalidRequest(field_name, shown, "leave out user, password and ?query; a key goes into api_key")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine, so that nothing leaves it."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # only reading it finds out that it is none
    except ValueError:
        return None
    return parts
