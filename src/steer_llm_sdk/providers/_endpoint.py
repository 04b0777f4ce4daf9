"""The address and the key of a model, and how to show them without the key."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
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
"""Servers on this machine, by prefix, at their default ports. They need no key."""

REDACTED = "[redacted]"
_SHORTEST_KEY = 8
"""A shorter key keeps nobody out ("ollama", "none"), and taking it out of every text would garble them."""
# A provider may repeat a key that differs from ours: another one, or ours partly masked.
_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk)-[\w*.-]{6,}|(?<=Bearer )\S+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One model at one address with one key.

    `name` is what the caller wrote, `model` the name that is sent. `base_url` None: the recorded server of this
    process, whose address is known once it runs. `own_api`: this is the provider's own API, or the address in its
    environment variable; nothing from the environment is sent to any other address. `key_from` says in words where the
    key came from.
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
        """Whether this is an address of OpenAI or Anthropic itself, in any region."""
        host = urlsplit(self.base_url or "").hostname or ""
        return f".{host}".endswith(f".api.{self.wire}.com")

    @property
    def local(self) -> bool:
        return self.base_url is not None and is_loopback(self.base_url)

    def scrub(self, text: str) -> str:
        """`text` without the key, and without what looks like one."""
        return without_keys(text.replace(self.secret, REDACTED) if self.secret else text)

    def has_key_in(self, text: str) -> bool:
        """Whether `text` contains the key."""
        return bool(self.secret) and self.secret in text

    @property
    def secret(self) -> str:
        """The key, if it is long enough to be one."""
        key = self.api_key.get_secret_value()
        return key if len(key) >= _SHORTEST_KEY else ""


def without_keys(text: str) -> str:
    return _KEY_LIKE.sub(REDACTED, text)


def without_password(url: str) -> str:
    """`url` without what stands before its host; where it cannot be read, without all that may."""
    parts = _split(url)
    if parts is None:
        return re.sub("//.*@", "//", url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


@lru_cache(64)  # Each request to a model asks for the same few.
def checked_url(field_name: str, url: str) -> str:
    """`url` without a slash at its end. Raises InvalidRequest, which never shows what may be a password."""
    parts = _split(url)
    if parts is None or not is_address(url):
        raise InvalidRequest(field_name, without_keys(url), "write https://host/path or http://host:port/path")
    if parts.username is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise InvalidRequest(field_name, shown, "leave out user, password and ?query; a key goes into api_key")
    return url.rstrip("/")


def is_address(url: str) -> bool:
    """Whether it is one of the web, with a host and nothing that cannot be a port."""
    parts = _split(url)
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


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
        _ = parts.port  # a port that is no number raises when it is read
    except ValueError:
        return None
    return parts
