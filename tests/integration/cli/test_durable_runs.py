"""`steer-llm run --durable`, `worker` and `runs`: processes that are killed, and what is left of their runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from held import HeldProvider
from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.service._shelf import Shelf

pytestmark = pytest.mark.timeout(180)

QUESTION = shipped_recording().questions[3].text
MODEL = "recorded:gpt-4o-2024-05-13"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


class Ran:
    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        result = CliRunner().invoke(app, arguments, env=env)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr


def runs(store: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Ran("runs", "list", "--store", store, "--json").out)["runs"]
    return found


def test_a_durable_run_is_listed_shown_and_replayed(store: str) -> None:
    asked = ("run", QUESTION, "-m", MODEL, "--durable", "--idempotency-key", "k", "--json")
    first, second = Ran(*asked, "--store", store), Ran(*asked, env={"STEER_STORE": store})
    assert (first.code, second.code) == (Exit.OK, Exit.OK)
    assert json.loads(first.out) == json.loads(second.out)
    (run,) = runs(store)
    assert (run["id"], run["state"], run["about"]["tool"]) == ("default:k", "finished", "ask")
    shown = Ran("runs", "show", "default:k", "--store", store)
    assert shown.code == Exit.OK
    assert "state   finished" in shown.out
    assert "recorded, " in shown.out
    told = json.loads(Ran("runs", "show", "default:k", "--store", store, "--json").out)
    assert told["ended"]["output"] == json.loads(first.out)
    assert list(told["steps"]) == ["plan", next(name for name in told["steps"] if name.startswith("ask@1.0.0+"))]


def test_a_conflict_and_a_budget_leave_as_they_do_without(store: str) -> None:
    asked = ("run", "-m", MODEL, "--durable", "--store", store, "--idempotency-key", "k")
    Ran(*asked, QUESTION)
    assert Ran(*asked, "Another?").code == Exit.CONFLICT
    assert Ran("run", QUESTION, "-m", MODEL, "--durable", "--store", store, "--budget", "tokens=1").code == Exit.BUDGET


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "Why?", "-m", MODEL, "--durable"), "--store is missing; say where the runs are kept"),
        (("run", "Why?", "-m", MODEL, "--durable", "--store", "redis://host"), "store: 'redis://host' cannot be used"),
        (("run", "--batch", "f", "--out", "o", "--durable"), "--durable: True cannot be used; it belongs to a single"),
        (("worker", "--store", "sqlite:///x.db"), "--app is missing; name your tools"),
        (("worker", "--store", "sqlite:///x.db", "--app", "a:b", "-m", MODEL), "give either --app or --model"),
        (("worker", "--store", "sqlite:///x.db", "--app", "json:loads"), "name a ToolRegistry or a"),
        (("worker", "--store", "sqlite:///x.db", "-m", MODEL, "--rate", "openai"), "--rate: 'openai' cannot be used"),
        (("worker", "--store", "sqlite:///x.db", "-m", MODEL, "--concurrency", "a=0"), "give whole numbers from 1"),
        (("runs", "list", "--store", "sqlite:////nowhere/x.db"), "there is no such file"),
        (("runs", "list", "--store", "foo"), "store: 'foo' cannot be used; give sqlite:///file.db"),
        (("runs", "list", "--store", __file__), f"write a file as sqlite:///{__file__}"),
        (("runs", "list", "--store", "sqlite:///x.db", "--state", "odd"), "--state: 'odd' cannot be used; give one of"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(arguments: tuple[str, ...], says: str) -> None:
    ran = Ran(*arguments)
    assert says in ran.err
    assert ran.code == Exit.BAD_INPUT


def test_a_file_of_a_service_that_is_not_durable_is_told_from_a_store(tmp_path: Path) -> None:
    file = tmp_path / "steer-runs.db"
    shelf = Shelf(str(file))
    shelf.open()
    shelf.close()
    ran = Ran("runs", "list", "--store", f"sqlite:///{file}")
    assert "it was made by steer-llm serve without --durable" in ran.err
    assert ran.code == Exit.FAILED


def test_a_store_that_is_none_is_told_before_an_extra_that_is_missing() -> None:
    code = "import sys; sys.modules['dbos'] = None; from steer_llm_sdk.durable import runs_of; runs_of('foo')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "'foo' cannot be used; give sqlite:///file.db" in ran.stderr


def test_only_what_is_under_way_is_cancelled_or_resumed(store: str) -> None:
    Ran("run", QUESTION, "-m", MODEL, "--durable", "--store", store, "--idempotency-key", "k")
    for command in ("cancel", "resume"):
        ran = Ran("runs", command, "default:k", "--store", store)
        assert (ran.code, "it is finished" in ran.err) == (Exit.BAD_INPUT, True)
        assert "there is none of that id" in Ran("runs", command, "ghost", "--store", store).err


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def provider() -> Iterator[HeldProvider]:
    """It holds the third of five replicates, until a test lets it go on."""
    with HeldProvider(let=2) as running:
        yield running


class Steer:
    """A command as a process of its own, which talks to the simulated provider."""

    def __init__(self, provider: HeldProvider, *arguments: str) -> None:
        env = {**os.environ, "OPENAI_BASE_URL": f"{provider.base_url}/v1", "OPENAI_API_KEY": "any"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "steer_llm_sdk.cli", *arguments],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Steer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def says(self, word: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return
        raise AssertionError(f"it ended without saying {word}")


def until(there: Any) -> Any:
    for _ in range(1200):  # Not seconds: while the machine is halted, nobody looks.
        if found := there():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


ASKED = ("-m", "openai:gpt-4o-2024-05-13", "-k", "5")
ONE_BY_ONE = ("-o", "max_parallel=1", "-o", "latency=min")  # And all five, though three that agree would do.


def test_a_worker_goes_on_with_the_run_of_a_command_that_was_killed_and_stops_when_it_is_told(
    store: str, provider: HeldProvider
) -> None:
    with Steer(provider, "worker", "--store", store, *ASKED, "--heartbeat", "2") as worker:
        worker.says("is ready")
        run = ("run", QUESTION, *ASKED, *ONE_BY_ONE, "--durable", "--idempotency-key", "k", "--store", store)
        with Steer(provider, *run) as first:
            until(lambda: provider.asked == 3)
            first.process.kill()
        provider.let_all()
        until(lambda: runs(store)[0]["state"] == "finished")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(30) == 0
    shown = json.loads(Ran("runs", "show", "default:k", "--store", store, "--json").out)
    output = shown["ended"]["output"]
    assert (output["status"], output["per_agent"]["ask"]["attempts"]) == ("succeeded", 5)
    assert shown["about"]["deaths"] == 1
    assert provider.asked == 6  # One call was under way when it was killed.
    left = json.loads(Ran("runs", "list", "--store", store, "--json").out)["workers"]
    assert worker.process.pid not in [one["pid"] for one in left]


def test_the_same_command_goes_on_by_itself_where_there_is_no_worker(store: str, provider: HeldProvider) -> None:
    run = ("run", QUESTION, *ASKED, *ONE_BY_ONE, "--durable", "--idempotency-key", "k", "--store", store)
    with Steer(provider, *run) as first:
        until(lambda: provider.asked == 3)
        first.process.kill()
    provider.let_all()
    with Steer(provider, *run) as second:
        assert second.process.wait(60) == 0
    (found,) = runs(store)
    assert found["state"] == "finished"
    assert provider.asked == 6
