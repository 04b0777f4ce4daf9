"""The one recorded server of a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from official_clients import bare

from steer_llm_sdk.providers.simulated import shared_recorded_server


def test_every_thread_gets_the_same_address() -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len({future.result() for future in [threads.submit(shared_recorded_server) for _ in range(32)]}) == 1


def test_it_outlives_the_event_loops_of_its_users() -> None:
    async def models() -> int:
        async with bare(shared_recorded_server()) as client:
            return len((await client.get("/v1/models")).json()["data"])

    assert [asyncio.run(models()) for _ in range(2)] == [52, 52]


def test_a_program_that_used_it_ends_at_once_and_without_a_word() -> None:
    program = (
        "import urllib.request as u;"
        "from steer_llm_sdk.providers.simulated import shared_recorded_server as s;"
        "u.urlopen(s() + '/v1/models').read(); print('done')"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_child_gets_a_server_of_its_own() -> None:
    program = (
        "import os, warnings; warnings.simplefilter('ignore', DeprecationWarning);"
        "import urllib.request as u;"
        "from steer_llm_sdk.providers.simulated import shared_recorded_server as s;"
        "mine = s(); child = os.fork();"
        "theirs = s(); u.urlopen(theirs + '/v1/models').read();"
        "assert (theirs == mine) == bool(child);"
        "os._exit(0) if not child else None;"
        "assert os.waitpid(child, 0)[1] == 0; print('done')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("done\n", "")
