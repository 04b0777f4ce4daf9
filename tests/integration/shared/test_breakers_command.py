"""`steer-llm breakers`: an operator sees and moves the breakers of running instances."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from shared_kit import LONG, Instances, nobody_looks, outcome, trip, until, works
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.reliability import BreakerMode


class Ran:
    def __init__(self, *arguments: str, url: str | None = None, env: dict[str, str] | None = None) -> None:
        store = [] if url is None else ["--store", url]
        result = CliRunner().invoke(app, ["breakers", *arguments, *store], env=env)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def command(*arguments: str, url: str) -> Ran:
    """In a thread, as from another terminal."""
    return await asyncio.to_thread(Ran, *arguments, url=url)


async def test_open_and_close_are_pushed_to_every_running_instance(
    instances: Instances, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = nobody_looks(monkeypatch)
    ours = instances.breakers(3, LONG)
    assert {await outcome(breaker, works) for breaker in ours} == {"ok"}
    await until(lambda: len(listening) == 3)
    for verb, holds in (("open", True), ("close", False)):
        assert (await command(verb, "acme", url=url)).code == 0
        await until(lambda holds=holds: all(breaker.is_open is holds for breaker in ours))  # type: ignore[misc]
        assert {await outcome(breaker, works) for breaker in ours} == {"refused" if holds else "ok"}


async def test_what_is_held_open_refuses_the_first_call_of_an_instance_that_starts_later(
    instances: Instances, url: str
) -> None:
    assert (await command("open", "acme", url=url)).out == (
        "acme is held open; `steer-llm breakers close acme` closes it\n"
    )
    (later,) = instances.breakers(1, LONG)
    assert await outcome(later, works) == "refused"


async def test_closed_forgets_what_failed_and_opens_by_itself_again(instances: Instances, url: str) -> None:
    (ours,) = instances.breakers(1, LONG)
    await trip(ours)
    assert (await command("close", "acme", url=url)).out == "acme is closed\n"
    await until(lambda: ours.is_closed)
    await trip(ours)
    assert ours.is_open


async def test_held_closed_it_opens_for_nothing_until_it_is_closed_without_that(instances: Instances, url: str) -> None:
    (ours,) = instances.breakers(1, LONG)
    assert await outcome(ours, works) == "ok"
    assert (await command("close", "acme", "--hold", url=url)).out == "acme is held closed\n"
    await until(lambda: ours.mode is BreakerMode.FORCED_CLOSED)
    await trip(ours)
    assert await outcome(ours, works) == "ok"
    await command("close", "acme", url=url)
    await until(lambda: ours.mode is BreakerMode.AUTO)
    await trip(ours)
    assert ours.is_open


async def test_the_list_says_of_each_what_it_does_and_why(instances: Instances, url: str) -> None:
    (acme,) = instances.breakers(1, LONG)
    others = instances.state().breakers(lambda name: LONG)
    for name in ("held", "[well]*"):
        assert await outcome(others.get_or_create(name), works) == "ok"  # type: ignore[arg-type]
    await trip(acme)
    await command("open", "held", url=url)
    listed = {seen["name"]: seen for seen in (await command("list", "--json", url=url)).json}
    assert {name: (seen["state"], seen["mode"]) for name, seen in listed.items()} == {
        "[well]*": ("closed", None),
        "acme": ("open", None),
        "held": ("closed", "forced_open"),
    }
    assert 50 < listed["acme"]["retry_after"] <= 60
    shown = (await command("list", url=url)).out
    assert "forced open by an operator" in shown
    assert "the next probe in" in shown


async def test_an_empty_store_lists_nothing_and_says_so(url: str) -> None:
    ran = await command("list", url=url)
    assert (ran.code, ran.out) == (0, "")
    assert "no instance has used a breaker" in ran.err
    assert (await command("list", "--json", url=url)).json == []


async def test_the_store_may_be_named_in_the_environment(url: str) -> None:
    ran = await asyncio.to_thread(Ran, "list", "--json", env={"STEER_STORE": url})
    assert (ran.code, ran.json) == (0, [])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://user:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/0 does not answer: ConnectionError"),
        ("postgresql://user:secret@127.0.0.1:1/x", "postgresql://127.0.0.1:1/x does not answer: OperationalError"),
        ("redis://user:sec/ret@127.0.0.1:port/0", "'redis://***' cannot be used"),
        ("sqlite:///steer.db", "what is shared needs a server"),
        ("nonsense", "what is shared needs a server"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_without_its_password(url: str, says: str) -> None:
    for arguments in (("list",), ("open", "acme"), ("close", "acme")):
        ran = Ran(*arguments, url=url)
        assert ran.code in (1, 2)
        assert says in ran.err
        assert "sec" not in ran.err + ran.out


def test_no_store_is_refused_in_one_line_that_shows_one() -> None:
    for arguments in (("list",), ("open", "acme"), ("close", "acme")):
        ran = Ran(*arguments, env={"STEER_STORE": ""})
        assert (ran.code, ran.out) == (2, "")
        (line,) = ran.err.splitlines()
        assert "--store" in line
        assert "redis://" in line
