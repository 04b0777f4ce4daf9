"""How to install an extra of this library where it is installed now."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_line(extra: str) -> str:
    """The command for a terminal. It names the folder or file that the library was installed from, if that is on this
    machine: a name alone would be looked for on a package index."""
    editable, source = _source()
    return f"pip install {'-e ' if editable else ''}'{source}[{extra}]'"


def _source() -> tuple[bool, str]:
    try:
        told = distribution("steer_llm_sdk").read_text("direct_url.json")
    except PackageNotFoundError:
        told = None
    origin = {} if told is None else json.loads(told)
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file":
        return False, "steer_llm_sdk"
    return bool(origin.get("dir_info", {}).get("editable")), url2pathname(url.path)
