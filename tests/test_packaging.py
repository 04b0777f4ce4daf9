"""The project installs what it says, from pins that name no address."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
from packaging.version import Version

import steer_llm_sdk

ROOT = Path(__file__).parent.parent
PINS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("pins", PINS, ids=lambda path: path.name)
def test_requirements_name_no_address(pins: Path) -> None:
    assert not re.findall(r"\S*(?:://|file:|@ )\S*", pins.read_text(encoding="utf-8"))


@pytest.mark.parametrize("pins", PINS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(pins: Path) -> None:
    text = pins.read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines
    assert not [line for line in lines if not re.match(r"[a-z0-9._-]+==\S+.* --hash=sha256:[0-9a-f]{64}", line)]


def test_the_same_package_is_pinned_to_one_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in PINS:
        for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            pins.setdefault(name, set()).add(version)
    assert not {name: versions for name, versions in pins.items() if len(versions) > 1}


def test_the_extra_all_installs_every_extra_for_users() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev"}
    (named,) = PROJECT["optional-dependencies"]["all"]
    assert named == f"{PROJECT['name']}[{','.join(sorted(extras))}]"


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT
    assert str(Version(steer_llm_sdk.__version__)) == steer_llm_sdk.__version__


def test_what_is_installed_is_what_is_declared() -> None:
    assert metadata("steer_llm_sdk")["Version"] == steer_llm_sdk.__version__
    for group, declared in {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}.items():
        installed = {point.name: point for point in entry_points(group=group)}
        for name, target in declared.items():
            assert installed[name].value == target
            installed[name].load()


@pytest.mark.parametrize("script", ["setup", "test", "demo", "lock", "prove"])
def test_the_scripts_are_for_any_posix_shell(script: str) -> None:
    path = ROOT / "scripts" / script
    assert path.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(path)], check=True, timeout=10)
