"""`steer-llm simulate` and `steer-llm record`, from the shell."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import typer
from official_clients import Clients
from typer.testing import CliRunner

from steer_llm_sdk.cli.record import record
from steer_llm_sdk.cli.simulate import simulate
from steer_llm_sdk.providers.simulated import SimulatedServer

app = typer.Typer()
app.command()(simulate)
app.command()(record)


def say(*words: str) -> tuple[int, str]:
    """Exit code, and what was said on either channel."""
    result = CliRunner().invoke(app, [*words])
    return result.exit_code, result.output


def test_the_list_has_every_question_and_model_within_80_columns() -> None:
    code, said = say("simulate", "--list")
    lines = said.splitlines()
    assert code == 0
    assert len([line for line in lines if line.startswith("  crux-test-#")]) == 100
    assert len([line for line in lines if line.endswith(("  raw", "  extracted"))]) == 51
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fault", "5O3"], "fault.kind"),
        (["--fault", "503", "--fault", "503:rate=2"], "fault.rate"),
        (["--upstream", "missing.jsonl"], "there is no such file"),
        (["--speed", "2"], "speed"),
        (["--port", "70000"], "port"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_the_name_of_the_field(words: list[str], says: str) -> None:
    code, said = say("simulate", *words)
    assert code == 2
    assert says in said


def test_a_port_that_is_taken_ends_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = say("simulate", "--port", port)
    assert (code, port in said) == (2, True)


def test_recording_needs_an_endpoint_with_a_host(tmp_path: Path) -> None:
    assert say("record", "--upstream", "https://", "--out", str(tmp_path / "t"))[0] == 2


@pytest.mark.parametrize("out", ["missing/t", "."])
def test_recording_needs_a_file_that_can_be_written(tmp_path: Path, out: str) -> None:
    code, said = say("record", "--upstream", "http://127.0.0.1:9", "--out", str(tmp_path / out), "--port", "0")
    assert code == 2
    assert "out" in said


@contextmanager
def running(command: str, *words: str) -> Iterator[dict[str, str]]:
    """The environment that a running command tells its user to set, and as `said` all it says."""
    program = f"import typer; from steer_llm_sdk.cli.{command} import {command}; typer.run({command})"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        lines = list(iter(process.stdout.readline, "Ctrl-C stops it.\n"))
        told = [line.split("export ")[1].strip().partition("=") for line in lines if "export " in line]
        yield {name: value for name, _, value in told} | {"said": "".join(lines)}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert "Traceback" not in process.communicate()[1]


async def test_it_runs_tells_where_and_serves_faults_until_interrupted() -> None:
    with running("simulate", "--fault", "429:first=1,retry-after=3") as told:
        assert told["OPENAI_BASE_URL"] == told["ANTHROPIC_BASE_URL"] + "/v1"
        assert told["OPENAI_API_KEY"] == "simulated"
        async with Clients(told["ANTHROPIC_BASE_URL"]) as clients:
            with pytest.raises(openai.RateLimitError) as caught:
                await clients.openai_whole()
            assert await clients.openai_whole()
    assert caught.value.response.headers["retry-after"] == "3"


async def test_what_record_keeps_simulate_replays_with_faults(server: SimulatedServer, tmp_path: Path) -> None:
    out = str(tmp_path / "traffic.jsonl")
    with running("record", "--upstream", server.base_url, "--out", out, "--redact", "user") as told:
        assert "OPENAI_API_KEY" not in told
        async with Clients(told["ANTHROPIC_BASE_URL"]) as clients:
            first = await clients.openai_stream()
    with running("simulate", "--upstream", out, "--speed", "0", "--fault", "503:after=1") as told:
        async with Clients(told["ANTHROPIC_BASE_URL"]) as clients:
            assert await clients.openai_stream() == first
            with pytest.raises(openai.InternalServerError):
                await clients.openai_stream()


async def test_each_request_is_a_line_on_stderr_and_the_first_fault_is_foretold() -> None:
    program = "import typer; from steer_llm_sdk.cli.simulate import simulate; typer.run(simulate)"
    words = ["--verbose", "--fault", "503:rate=0.2", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        said = list(iter(process.stdout.readline, "Ctrl-C stops it.\n"))
        (url,) = [line.strip().partition("=")[2] for line in said if "ANTHROPIC_BASE_URL" in line]
        async with Clients(url) as clients:
            await clients.openai_whole()
        process.send_signal(signal.SIGINT)
        lines = process.communicate(timeout=10)[1].splitlines()
    assert "  fault 503:rate=0.2  (with seed 0 the first comes at request 14)\n" in said
    assert lines[0].split() == ["1", "200", "gpt-4o-2024-05-13"]


def test_record_says_how_much_it_kept(server: SimulatedServer, tmp_path: Path) -> None:
    program = "import typer; from steer_llm_sdk.cli.record import record; typer.run(record)"
    words = ["--upstream", server.base_url, "--out", str(tmp_path / "t"), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        list(iter(process.stdout.readline, "Ctrl-C stops it.\n"))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=10)[1]
    assert f"kept 0 exchanges in {tmp_path / 't'}" in said


def test_it_listens_on_loopback_only_unless_told() -> None:
    with running("simulate") as told:
        assert told["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")
        urllib.request.urlopen(told["OPENAI_BASE_URL"] + "/models").close()


@pytest.mark.parametrize("command", ["simulate", "record"])
def test_a_password_in_the_upstream_is_not_shown(tmp_path: Path, command: str) -> None:
    more = ["--out", str(tmp_path / "t")] if command == "record" else []
    with running(command, "--upstream", "http://user:canary-0123@127.0.0.1:9", *more) as told:
        assert "http://127.0.0.1:9" in told["said"]
        assert "canary" not in told["said"]
