"""What an import of the library costs above asyncio and pydantic, and that it loads nothing it must not.

    python benchmarks/imports.py [--rounds N]

Each case runs in a process of its own, the cases in turn, and is measured in CPU time of that process from its start.
Bytecode is kept in a folder of the benchmark's own and is there before the first round, as an installer leaves it.
Exit code 1: an import loaded something forbidden, or costs more than 80 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

BASE = "import asyncio; from pydantic import BaseModel"
LIMIT_MS = 80.0
CASES = {
    "the front": "import steer_llm_sdk.orchestration",
    "both orchestrators": "from steer_llm_sdk.orchestration import Orchestrator, ReliableOrchestrator, Tool",
    "every public name": "from steer_llm_sdk.orchestration import *",
}
FORBIDDEN = {
    "anthropic", "click", "fastapi", "genai_prices", "httpx", "httpx2", "numpy", "openai", "opentelemetry",
    "prometheus_client", "pydantic_ai", "requests", "rich", "starlette", "steer_llm_sdk.cli", "typer", "uvicorn",
}  # fmt: skip
"""Providers' clients, command line, servers, numpy, telemetry: by package, or by module of ours."""


class Cost(NamedTuple):
    """CPU milliseconds of a process, and the modules that it ended with."""

    ms: float
    modules: set[str]


def cost_of(code: str, bytecode: str) -> Cost:
    tell = "import json, sys, time; print(json.dumps([time.process_time() * 1000, list(sys.modules)]))"
    env = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, check=True, env=env)
    ms, modules = json.loads(done.stdout)
    return Cost(ms, set(modules))


def forbidden(modules: set[str]) -> list[str]:
    return sorted(name for name in FORBIDDEN if any(m == name or m.startswith(f"{name}.") for m in modules))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="processes for each case, 11 or more")
    rounds = max(11, parser.parse_args().rounds)
    codes = {"": BASE, **{name: f"{BASE}; {statement}" for name, statement in CASES.items()}}
    taken: dict[str, list[Cost]] = {name: [] for name in codes}
    with tempfile.TemporaryDirectory() as bytecode:
        for code in codes.values():
            cost_of(code, bytecode)
        for _ in range(rounds):
            for name, code in codes.items():
                taken[name].append(cost_of(code, bytecode))

    times = {name: [cost.ms for cost in costs] for name, costs in taken.items()}
    least, middle = ({name: of(ms) for name, ms in times.items()} for of in (min, statistics.median))
    print(f"{BASE}: {least['']:.0f} ms at least, {middle['']:.0f} in the middle, of {rounds} processes\n")
    print(f"{'above that, ms of CPU':<24}{'least':>8}{'middle':>8}{'ratio':>8}  forbidden")
    broken = False
    for name in CASES:
        found = forbidden(taken[name][0].modules)
        above, ratio = least[name] - least[""], least[name] / least[""]
        broken |= bool(found) or above > LIMIT_MS
        print(f"{name:<24}{above:>8.1f}{middle[name] - middle['']:>8.1f}{ratio:>8.2f}  {', '.join(found) or 'none'}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
