"""From a URL to a store, and a URL that may be shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.stores import Store

KNOWN = "sqlite:///file.db, redis://host:6379/0, rediss://…, postgresql://user@host/database or memory://"
_SECRET = re.compile(r"pass|secret|token|key", re.IGNORECASE)


def open_store(url: str) -> Store:
    scheme = url.partition(":")[0].lower() if isinstance(url, str) and "://" in url else ""
    opener = _OPENERS.get(scheme)
    if opener is None:
        raise InvalidRequest("store", shown(url) if isinstance(url, str) else url, f"give {KNOWN}")
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is what fails where it is no number
    except ValueError:
        # The whole text, for where the password ends in what is no URL, nobody can say.
        raise InvalidRequest("store", f"{scheme}://***", f"it is no URL; give {KNOWN}") from None
    return opener(url, parts)


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


def _memory(url: str, parts: SplitResult) -> Store:
    from steer_llm_sdk.reliability.stores.memory import MemoryStore

    return MemoryStore()


def _sqlite(url: str, parts: SplitResult) -> Store:
    from steer_llm_sdk.reliability.stores.sqlite import SqliteStore

    options = dict(parse_qsl(parts.query))
    path = unquote(parts.path.removeprefix("/"))
    synchronous = options.pop("synchronous", "normal")
    if parts.netloc or not path or path == ":memory:" or synchronous not in ("normal", "full") or options:
        raise InvalidRequest(
            "store",
            url,
            "give sqlite:///file.db or sqlite:////absolute/file.db, with ?synchronous=full where a power cut must not "
            "cost the last results; memory:// is a store in memory",
        )
    return SqliteStore(path, synchronous=synchronous)


def _redis(url: str, parts: SplitResult) -> Store:
    try:
        from steer_llm_sdk.reliability.stores.redis import RedisStore
    except ImportError as error:
        raise _missing("redis", shown(url)) from error
    return RedisStore(url)


def _postgres(url: str, parts: SplitResult) -> Store:
    try:
        from steer_llm_sdk.reliability.stores.postgres import PostgresStore
    except ImportError as error:
        raise _missing("postgres", shown(url)) from error
    return PostgresStore(url)


def _missing(extra: str, url: str) -> InvalidRequest:
    return InvalidRequest("store", url, f"its client is not installed: pip install 'steer_llm_sdk[{extra}]'")


_OPENERS: dict[str, Callable[[str, SplitResult], Store]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "rediss": _redis,
    "postgresql": _postgres,
    "postgres": _postgres,
}
