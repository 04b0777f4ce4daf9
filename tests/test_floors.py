"""Imports point downwards, happen at the top of a module, and load nothing heavy before it is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import steer_llm_sdk

PACKAGE = "steer_llm_sdk"
ROOT = Path(steer_llm_sdk.__file__).parent

WORDS, MECHANISMS, NOUNS, VERBS, FLOW, WAYS = range(6)
FLOORS = {
    "_install": WORDS,
    "_names": WORDS,
    "errors": WORDS,
    "models": WORDS,
    "providers.base": WORDS,
    "reliability": MECHANISMS,
    "streaming": MECHANISMS,
    "evidence": MECHANISMS,
    "providers": MECHANISMS,
    "orchestration.options": NOUNS,
    "orchestration.output": NOUNS,
    "orchestration.errors": NOUNS,
    "orchestration.models": NOUNS,
    "orchestration.planning": NOUNS,
    "orchestration._declared": NOUNS,
    "orchestration.tool_registry": NOUNS,
    "orchestration.release_files": NOUNS,
    "orchestration.versions": NOUNS,
    "orchestration.canaries": NOUNS,
    "orchestration.shared_trials": NOUNS,
    "orchestration._call": NOUNS,
    "orchestration._result": NOUNS,
    "orchestration._calibration": NOUNS,
    "orchestration._html": NOUNS,
    "orchestration._evidence_view": NOUNS,
    "orchestration._evidence_text": NOUNS,
    "orchestration._evidence_page": NOUNS,
    "orchestration._outcome": FLOW,
    "orchestration._observed": FLOW,
    "orchestration._pinned": FLOW,
    "orchestration._versioned": NOUNS,
    "orchestration.reliability": VERBS,
    "orchestration.fallback": VERBS,
    "orchestration.replay": VERBS,
    "orchestration.tools": VERBS,
    "orchestration.strategies": VERBS,
    "orchestration._stages": VERBS,
    "orchestration._in_turn": VERBS,
    "orchestration._side_by_side": VERBS,
    "orchestration.ways_to_run": FLOW,
    "orchestration.direct": FLOW,
    "orchestration.orchestrator_v2": FLOW,
    "orchestration.base": FLOW,
    "orchestration.orchestrator": FLOW,
    "orchestration.reliable_orchestrator": FLOW,
    "durable": WAYS,
    "settings": WAYS,
    "cli": WAYS,
    "testing": WAYS,
    "telemetry": WAYS,
    "service": WAYS,
}
FRONTS = {"": FLOW, "orchestration": FLOW}
"""Packages that only say what is public of the floors below them."""

LIGHT = {"packaging", "pydantic", "pydantic_core", "rfc8785"}
"""What any module may import when it is loaded."""
WHEN_USED = {
    "anthropic",
    "dbos",
    "genai_prices",
    "h11",
    "httpx2",
    "jsonschema_rs",
    "numpy",
    "openai",
    "orjson",
    "psycopg",
    "pydantic_ai",
    "re2",
    "redis",
    "pydantic_settings",
    "yaml",
}
"""Heavy or optional: imported by the function that needs it."""
SLOW = {
    "email.utils",
    "importlib.metadata",
    "packaging.specifiers",
    "packaging.version",
    "pickle",
    "tempfile",
    "tomllib",
    f"{PACKAGE}.orchestration._evidence_page",
    f"{PACKAGE}.orchestration._evidence_text",
}
"""Some ms each: imported by the function that needs it, where few runs do."""
HEAVY_ROOMS = tuple(
    f"{PACKAGE}.{room}"
    for room in (
        "durable._dbos",
        "providers._llm",
        "reliability.shared",
        "reliability.stores._postgres",
        "reliability.stores._redis",
        "reliability.stores.postgres",
        "reliability.stores.redis",
        "reliability.stores.sums_postgres",
        "reliability.stores.sums_redis",
        "service",
        "settings",
        "telemetry",
    )
)
"""Packages of ours that need what is heavy: entered by the function that needs them, never when a module is loaded."""
AT_THE_TERMINAL = {"rich", "typer"}
"""What the command line may import, and nothing else."""
IN_TESTS = {"pytest"}
"""What `testing.fixtures` may import, and nothing else; nothing imports that module but a conftest."""


@dataclass(frozen=True)
class Import:
    importer: str
    module: str
    line: int
    nested: bool
    typing_only: bool

    @property
    def own(self) -> bool:
        return self.module.split(".")[0] == PACKAGE

    @property
    def distribution(self) -> str:
        return self.module.split(".")[0]

    @property
    def of_something_heavy(self) -> bool:
        return self.distribution in WHEN_USED or self.module.startswith(HEAVY_ROOMS)

    @property
    def may_be_nested(self) -> bool:
        return self.of_something_heavy or self.module in SLOW

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}"


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    yield from _walk(tree, module, nested=False, typing_only=False)


def _walk(node: ast.AST, module: str, *, nested: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for name in _names(child):
                yield Import(module, name, child.lineno, nested, typing_only)
        inside = nested or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = typing_only or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        yield from _walk(child, module, nested=inside, typing_only=typing)


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"line {node.lineno}: imports name their whole path"
    assert node.module is not None
    below = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else node.module for name in below]


IMPORTS = [found for module in MODULES for found in _imports_of(module)]


def _floor(module: str) -> int:
    path = module.removeprefix(PACKAGE).removeprefix(".")
    if path in FRONTS:
        return FRONTS[path]
    parts = path.split(".")
    known = [floor for n in range(len(parts), 0, -1) if (floor := FLOORS.get(".".join(parts[:n]))) is not None]
    assert known, f"{module} is on no floor; say in FLOORS where it belongs"
    return known[0]


def _lines(imports: list[Import]) -> str:
    return "\n".join(map(str, imports))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_floor_or_lower(module: str) -> None:
    upwards = [i for i in IMPORTS if i.importer == module and i.own and _floor(i.module) > _floor(module)]
    assert not upwards, _lines(upwards)


def test_nothing_imports_the_packages_that_only_gather_names() -> None:
    fronts = {f"{PACKAGE}.{path}".rstrip(".") for path in FRONTS}
    upwards = [i for i in IMPORTS if i.module in fronts and _floor(i.importer) < WAYS and i.importer not in fronts]
    assert not upwards, _lines(upwards)


def test_no_module_needs_itself() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in IMPORTS:
        if i.own and not i.nested and not i.typing_only and i.module != i.importer:
            graph[i.importer].add(i.module)
    TopologicalSorter(graph).prepare()


def test_an_import_inside_a_function_is_of_something_heavy() -> None:
    """The command line may load anything of its own late, so that --help comes at once."""
    hidden = [
        i for i in IMPORTS if i.nested and not i.typing_only and not i.may_be_nested and _floor(i.importer) < WAYS
    ]
    assert not hidden, _lines(hidden)


def test_nothing_heavy_is_imported_when_a_module_is_loaded() -> None:
    at_once = [i for i in IMPORTS if not (i.nested or i.typing_only or i.importer.startswith(HEAVY_ROOMS))]
    heavy = [i for i in at_once if not _is_light(i)]
    assert not heavy, _lines(heavy)


def _is_light(found: Import) -> bool:
    if found.own:
        return not found.of_something_heavy
    at_the_terminal = found.importer.startswith(f"{PACKAGE}.cli") and found.distribution in AT_THE_TERMINAL
    in_tests = found.importer == f"{PACKAGE}.testing.fixtures" and found.distribution in IN_TESTS
    return at_the_terminal or in_tests or found.distribution in LIGHT | sys.stdlib_module_names


def test_nobody_imports_what_another_package_keeps_private() -> None:
    private = [
        i
        for i in IMPORTS
        if not i.own and i.module != "__future__" and any(part.startswith("_") for part in i.module.split("."))
    ]
    assert not private, _lines(private)


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.orchestration", f"{PACKAGE}.testing"])
def test_importing_the_package_loads_no_client_command_line_server_or_telemetry(module: str) -> None:
    loaded = {name.split(".")[0] for name in _loaded_by(f"import {module}")}
    unwanted = WHEN_USED | AT_THE_TERMINAL | IN_TESTS
    unwanted |= {"click", "fastapi", "httpx", "numpy", "opentelemetry", "requests", "starlette", "uvicorn"}
    assert not loaded & unwanted


def test_importing_orchestration_loads_none_of_its_modules_before_a_name_of_theirs_is_used() -> None:
    loaded = {name for name in _loaded_by(f"import {PACKAGE}.orchestration") if name.startswith(PACKAGE)}
    front = f"{PACKAGE}.orchestration"
    assert loaded == {PACKAGE, f"{PACKAGE}._names", front, f"{front}.tools", f"{front}.tools._runner"}


def test_the_orchestrators_load_nothing_that_only_some_runs_need() -> None:
    loaded = _loaded_by(f"from {PACKAGE}.orchestration import Orchestrator, ReliableOrchestrator, Tool")
    assert f"{PACKAGE}.orchestration.base" in loaded
    bundles = {f"{PACKAGE}.evidence.summary", f"{PACKAGE}.evidence._limits", f"{PACKAGE}.orchestration.tools.base"}
    rare = {"csv", "statistics", "zipfile", f"{PACKAGE}.orchestration.tools.function", f"{PACKAGE}.providers.discover"}
    assert not loaded & (SLOW | bundles | rare)


def _loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))
