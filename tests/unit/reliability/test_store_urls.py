"""A URL is shown without what is secret in it, whatever stands in the password and wherever that stands."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steer_llm_sdk.durable._tables import Store
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.shared.board import open_board
from steer_llm_sdk.reliability.stores import open_store
from steer_llm_sdk.reliability.stores._shared import Where
from steer_llm_sdk.reliability.stores._url import shown

SECRET = "QXZ"
"""Letters that stand in passwords only."""
passwords = st.text(st.sampled_from(f"{SECRET}{SECRET}1/:@?#&=[]%,. \\"), min_size=1, max_size=12)
urls = st.sampled_from(
    [
        "redis://user:{}@host:1/0",
        "rediss://:{}@host",
        "postgresql://user:{}@host:1,other:2/db?sslmode=require",
        "postgresql://user:{}@[::1]:1/db",
        "postgresql://host/db?user=u&password={}",
        "redis://host:1/0?password={}&db=1",
        "mysql://user:{}@host/db",
        "sqlite://user:{}@host/file.db",
        "user:{}@host/db",
        "redis:/user:{}@host",
    ]
)


def tells(text: str) -> bool:
    return any(letter in text for letter in SECRET)


@settings(max_examples=300)
@given(urls, passwords, st.booleans())
@example("postgresql://user:{}@host:1/db", "1/Q", False)
@example("redis://user:{}@host:1/0", "1?Q", False)
@example("redis://user:{}@host:1/0", "1@Q/", False)
@example("postgresql://host/db?user=u&password={}", "1&Q=1", False)
@example("user:{}@host/db", "//Q", False)
@example("postgresql://host/db?user=u&password={}", "  Q", True)
def test_no_letter_of_a_password_is_shown_or_said(url: str, password: str, escaped: bool) -> None:
    stands = quote(password, safe="") if escaped else password
    url = url.format(stands)
    where = Where(url)
    for quoted in (url, stands, unquote(stands), unquote(url)):
        assert not tells(str(where.unavailable(ConnectionError(f"cannot use {quoted}"))))
    for use in (open_store, open_board, lambda url: Store.of(url).shown):
        try:
            said = repr(use(url)) if use is open_store else str(use(url))
        except InvalidRequest as error:
            said = str(error)
        assert not tells(said)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://user:secret@127.0.0.1:6379/0?db=1", "redis://127.0.0.1:6379/0"),
        ("rediss://[::1]/0", "rediss://[::1]/0"),
        ("postgresql://u:p%2Fw@one:1,two.example:2/db", "postgresql://one:1,two.example:2/db"),
        ("postgresql:///db?host=/run", "postgresql:///db"),
        ("sqlite:////abs/a@b.db?synchronous=full", "sqlite:////abs/a@b.db"),
        ("memory://", "memory://"),
        ("steer.db", "steer.db"),
        ("postgresql://u:p/w@host/db", "postgresql://***"),
        ("u:p@host", "***"),
    ],
)
def test_what_can_be_read_in_one_way_is_shown_without_credentials_and_options(url: str, says: str) -> None:
    assert shown(url) == says
