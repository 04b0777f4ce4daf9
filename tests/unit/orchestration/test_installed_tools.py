"""Installed tools: found once, by the entry points of what is on the path. (In fresh processes: tests/contract.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_llm_sdk.orchestration import ToolRegistry, tool_registry
from steer_llm_sdk.orchestration.tool_registry import installed_tools, metadata_of
from steer_llm_sdk.testing import ScriptedTool


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tools of a package that is not ours, and three that cannot be loaded."""
    (tmp_path / "other_tools.py").write_text(
        "from steer_llm_sdk.testing import ScriptedTool\n"
        "made = ScriptedTool('other_made')\n"
        "def make(): return ScriptedTool('other_function')\n"
        "def fails(): raise OSError('no licence')\n"
    )
    info = tmp_path / "other_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-tools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[steer_llm_sdk.tools]\na = other_tools:made\nb = other_tools:make\nc = other_tools:fails\n"
        "d = other_tools:nothing\ne = builtins:dict\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tool_registry, "_found", None)
    return tmp_path


def test_instances_and_what_makes_them_are_found_and_the_broken_are_named(
    installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = installed_tools()
    assert {"other_made", "other_function"} <= set(found)
    assert not {"c", "d", "e"} & set(found)
    assert [name for name in "cde" if f"installed tool {name} " not in caplog.text] == []
    assert installed_tools()["other_made"] is found["other_made"]


def test_a_registry_finds_describes_and_lists_them_by_name_only(installed: Path) -> None:
    registry = ToolRegistry()
    assert registry.has_tool("other_made")
    assert registry.get_tool("other_made", "9.9") is None
    described = registry.get_tool_metadata("other_made")
    assert described is not None
    assert described["version"] == "1.0.0"
    assert registry.list_tools() == {}
    assert "other_made" in registry.names()


def test_they_are_in_the_planning_view_only_while_nothing_is_registered(installed: Path) -> None:
    registry = ToolRegistry()
    assert "other_made" in registry.planning_view()
    registry.register_tool(ScriptedTool("mine"))
    assert list(registry.planning_view()) == ["mine"]
    registry.clear()
    assert "other_made" in registry.planning_view()


def test_the_planning_view_is_made_once_per_change_and_cannot_be_written() -> None:
    registry = ToolRegistry()
    registry.register_tool(ScriptedTool("mine"))
    view = registry.planning_view()
    assert registry.planning_view() is view
    with pytest.raises(TypeError):
        view["x"] = metadata_of(ScriptedTool("x"))  # type: ignore[index]
    registry.register_tool(ScriptedTool("mine", version="2.0.0"))
    assert registry.planning_view()["mine"].version == "2.0.0"
