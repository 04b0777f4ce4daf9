"""Several instances that share one store: real Redis, real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from servers import Server
from shared_kit import Instances


@pytest.fixture(params=["redis", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def server(request: pytest.FixtureRequest, url: str) -> Server:
    """The server behind `url`, to pause and to kill."""
    found: Any = request.getfixturevalue(f"{url.partition('://')[0].replace('ql', '')}_server")
    if not url.startswith(found.url.rpartition("/")[0]):
        pytest.fail("the server that the tests were given is somebody else's to stop; leave TEST_REDIS_URL unset")
    return found


@pytest.fixture
def instances(url: str) -> Iterator[Instances]:
    made = Instances(url)
    yield made
    made.close()
