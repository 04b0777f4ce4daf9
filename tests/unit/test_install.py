"""The line that installs an extra works where it is shown."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from steer_llm_sdk import _install


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'steer_llm_sdk[llm]'"),
        ({"url": "https://example.com/steer_llm_sdk.whl"}, "pip install 'steer_llm_sdk[llm]'"),
        ({"url": "file:///home/me/a%20clone", "dir_info": {}}, "pip install '/home/me/a clone[llm]'"),
        ({"url": "file:///clone", "dir_info": {"editable": True}}, "pip install -e '/clone[llm]'"),
        ({"url": "file:///tmp/steer.whl", "archive_info": {}}, "pip install '/tmp/steer.whl[llm]'"),
    ],
    ids=["an index", "the web", "a folder", "a clone in place", "a file"],
)
def test_it_names_where_the_library_came_from(
    monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, line: str
) -> None:
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    monkeypatch.setattr(_install, "_pip", lambda: "pip")
    assert _install.install_line("llm") == line


def test_a_library_that_is_not_installed_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert _install.install_line("redis").endswith("pip install 'steer_llm_sdk[redis]'")


@pytest.mark.parametrize(
    ("activated", "command"),
    [
        ("/a venv", "pip install "),
        ("/another", "'/a venv/bin/python' -m pip install "),
        ("", "'/a venv/bin/python' -m pip install "),
    ],
)
def test_the_pip_of_another_python_is_not_named(monkeypatch: pytest.MonkeyPatch, activated: str, command: str) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", activated)
    monkeypatch.setattr(sys, "prefix", "/a venv")
    monkeypatch.setattr(sys, "executable", "/a venv/bin/python")
    assert _install.install_line("llm").startswith(command)
