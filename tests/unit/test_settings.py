"""`steer.toml` and the environment: what they set, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.settings import line_of, load_settings

WHOLE = """
store = "sqlite:///steer.db"
model = "recorded:demo"

[options]
timeout_ms = 5000
budget = { cost_usd = 0.5 }

[reliability]
max_total_attempts = 6

[reliability.retry_policy]
max_attempts = 5

[reliability.rate_limits.openai]
requests_per_minute = 60
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "steer.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def test_without_a_file_everything_is_as_it_is_by_default() -> None:
    settings = load_settings()
    assert (settings.store, settings.model) == (None, None)
    assert settings.options.model_fields_set == settings.reliability.model_fields_set == set()


def test_the_file_where_the_program_runs_is_read() -> None:
    write(WHOLE)
    settings = load_settings()
    assert (settings.store, settings.model) == ("sqlite:///steer.db", "recorded:demo")
    assert (settings.options.timeout_ms, settings.options.budget) == (5000, {"cost_usd": 0.5})
    assert settings.reliability.max_total_attempts == 6
    assert settings.reliability.retry_policy.max_attempts == 5
    assert settings.reliability.rate_limits["openai"].requests_per_minute == 60


def test_the_environment_goes_before_the_file_and_leaves_the_rest_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write(WHOLE)
    monkeypatch.setenv("STEER_STORE", "memory://")
    monkeypatch.setenv("STEER_RELIABILITY__RETRY_POLICY__MAX_ATTEMPTS", "7")
    settings = load_settings()
    assert (settings.store, settings.model) == ("memory://", "recorded:demo")
    assert settings.reliability.retry_policy.max_attempts == 7
    assert settings.reliability.max_total_attempts == 6


def test_another_file_is_named_by_its_path_or_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write('model = "a:a"', "a.toml")
    write('model = "b:b"', "b.toml")
    monkeypatch.setenv("STEER_CONFIG", "a.toml")
    assert load_settings().model == "a:a"
    assert load_settings("b.toml").model == "b:b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'store = "memory://"\n[reliability.retry_policy]\nmax_attempts = "three"',
            r"reliability\.retry_policy\.max_attempts \(steer\.toml, line 3\): 'three' cannot be used; should be",
        ),
        ("[options]\n\ntimeout = 5", r"options\.timeout \(steer\.toml, line 3\): 5 cannot be used; there is no such"),
        ("colour = 1", r"colour \(steer\.toml, line 1\): 1 cannot be used; there is no such option"),
        (
            '\nstore = "mysql://u:hunter2@host/db"',
            r"store \(steer\.toml, line 2\): 'mysql://host/db' cannot be used; give sqlite:///",
        ),
        ("[options]\nmax_retries = 99", r"options\.max_retries \(steer\.toml, line 2\): 99 cannot be used"),
        ("model = ", r"settings: 'steer\.toml' cannot be used; TOMLDecodeError: Invalid value \(at .*\)"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, says: str) -> None:
    write(text)
    with pytest.raises(InvalidRequest, match=says) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "STEER_OPTIONS__TIMEOUT_MS",
            "soon",
            r"options\.timeout_ms \(STEER_OPTIONS__TIMEOUT_MS\): 'soon' cannot",
        ),
        (
            "STEER_OPTIONS__TIMEOUT",
            "5",
            r"options\.timeout \(STEER_OPTIONS__TIMEOUT\): '5' .* there is no",
        ),
        ("STEER_STORE", "steer.db", r"store \(STEER_STORE\): '.*steer\.db' cannot be used; give sqlite:///"),
        ("STEER_RELIABILITY", "{", r"settings: 'the environment' cannot be used; .*reliability"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_variable(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(WHOLE)
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match=says):
        load_settings()


def test_a_file_that_is_named_and_not_there_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match=r"settings: 'no\.toml' cannot be used; FileNotFoundError"):
        load_settings("no.toml")


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("a = 1\nb = 2\n", "b", 2),
        ("[t]\na = 1\n[u]\na = 2\n", "u.a", 3 + 1),
        ("t.a = 1\nt.b = [\n 1,\n 2,\n]\n", "t.b", 2),
        ('a = """\nb = 1\n"""\nb = 2\n', "b", 4),
        ("[[t]]\na = 1\n[[t]]\na = 2\n", "t.1.a", 4),
        ("[t]\na = 1\n", "t.missing", 1),
        ("a = 1", "b", 1),
    ],
)
def test_the_line_of_a_value_is_found_however_it_is_written(text: str, place: str, line: int) -> None:
    assert line_of(text, place.split(".")) == line
