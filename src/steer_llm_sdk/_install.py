"""How to install an extra of this library where it is installed now."""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib import import_module
from urllib.parse import urlsplit


def install_line(extra: str) -> str:
    """The command for a terminal. It names the folder or file that the library was installed from, if that is on this
    machine: a name alone would be looked for on a package index. It names the Python that runs this, unless its
    environment is the one that is activated."""
    editable, source = _source()
    return f"{_pip()} install {'-e ' if editable else ''}'{source}[{extra}]'"


def _pip() -> str:
    activated = os.environ.get("VIRTUAL_ENV") == sys.prefix
    return "pip" if activated else f"{shlex.quote(sys.executable)} -m pip"


def _source() -> tuple[bool, str]:
    metadata = import_module("importlib.metadata")  # These load much, and where nothing is missing nobody needs them.
    try:
        told = metadata.distribution("steer_llm_sdk").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        told = None
    origin = {} if told is None else json.loads(told)
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file":
        return False, "steer_llm_sdk"
    return bool(origin.get("dir_info", {}).get("editable")), str(import_module("urllib.request").url2pathname(url.path))
