"""A URL that may be shown, and what of it may not."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_SECRET = re.compile(r"pass|secret|token|key", re.IGNORECASE)


def shown(url: str) -> str:
    """The URL with everything that may be secret starred: the password, and options that sound like one."""
    try:
        parts = urlsplit(url)
        host, userinfo = parts.netloc.rpartition("@")[::-2]
        user = userinfo.partition(":")[0]
        starred = f"{user}:***@" if ":" in userinfo else f"{user}@" if userinfo else ""
        options = "&".join(
            f"{name}={'***' if _SECRET.search(name) else quote(value, safe='/:')}"
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
        )
    except ValueError:
        return f"{url.partition(':')[0]}://***"
    return f"{parts.scheme}://{starred}{host}{parts.path}{'?' if options else ''}{options}"


def secrets_of(url: str) -> list[str]:
    """What must not be said: as it stands in the URL, and as it is meant."""
    parts = urlsplit(url)
    found = [parts.netloc.rpartition("@")[0].partition(":")[2]]
    found += [value for name, value in parse_qsl(parts.query) if _SECRET.search(name)]
    return [secret for raw in found if raw for secret in {raw, unquote(raw)}]
