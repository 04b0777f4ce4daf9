"""A URL that may be shown, and what of it may not."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SECRET = re.compile(r"pass|pwd|secret|token|key|auth|cred", re.IGNORECASE)
_HOST = r"(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d*)?"
_SERVER = re.compile(
    rf"([a-z][a-z0-9+.-]*)://(?:([^\s/?#@\[\]]*)@)?((?:{_HOST}(?:,{_HOST})*)?)(/[^\s?#@]*)?(?:\?([^\s#@]*))?",
    re.IGNORECASE | re.ASCII,
)
_SERVERS = frozenset({"redis", "rediss", "postgres", "postgresql"})
"""Of any other nobody knows what stands before its host: "user:" and a password of "//" and more look like a scheme."""
_FILE = re.compile(r"(sqlite:///[^?#]*).*", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"[\w./-]*|memory://", re.ASCII)


def shown(url: str) -> str:
    """The URL without credentials and options; nothing of it but the scheme where it can be read in two ways, as a
    password with a "/" or "@" in it that is not escaped can."""
    if file := _FILE.fullmatch(url):
        return file[1]
    if server := _SERVER.fullmatch(url):
        return f"{server[1]}://{server[3]}{server[4] or ''}"
    if _WORD.fullmatch(url):
        return url
    scheme = re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE | re.ASCII)
    return f"{scheme[0] if scheme else ''}***"


def secrets_of(url: str) -> list[str] | None:
    """What must not be said: as it stands in the URL, and as it is meant. None where nobody can say what that is."""
    if _FILE.fullmatch(url) or _WORD.fullmatch(url):
        return []
    server = _SERVER.fullmatch(url)
    if server is None or server[1].lower() not in _SERVERS:
        return None
    options = (server[5] or "").split("&")
    secret = [each for each in options if _SECRET.search(each.partition("=")[0])]
    if secret and options[-1] != secret[0]:
        return None  # An "&" that is not escaped makes options of the rest of a password.
    found = [(server[2] or "").partition(":")[2], *(each.partition("=")[2] for each in secret)]
    return [text for raw in found if raw for text in {raw, unquote(raw)}]
