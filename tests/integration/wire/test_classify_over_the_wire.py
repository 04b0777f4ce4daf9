"""What classify makes of the exceptions that unmodified clients raise when a real server misbehaves."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx2
import pytest
from official_clients import CERTIFICATES, CLAUDE, GPT, QUESTION, Clients

from steer_llm_sdk.errors import ErrorCategory
from steer_llm_sdk.providers.simulated import SimulatedServer
from steer_llm_sdk.reliability.classify import ErrorClassification, classify

C = ErrorCategory

WHOLE = ("openai_whole", "anthropic_whole")
STREAMS = ("openai_stream", "anthropic_stream")
OFFICIAL = (*WHOLE, *STREAMS)

STATUSES = {
    "400": C.VALIDATION,
    "401": C.AUTHENTICATION,
    "403": C.PERMISSION_DENIED,
    "404": C.NOT_FOUND,
    "408": C.TIMEOUT,
    "409": C.CONFLICT,
    "413": C.VALIDATION,
    "422": C.VALIDATION,
    "429": C.RATE_LIMIT,
    "quota": C.QUOTA,
    "500": C.SERVER_ERROR,
    "502": C.SERVER_ERROR,
    "503": C.SERVER_ERROR,
    "504": C.SERVER_ERROR,
    "529": C.SERVER_ERROR,
}
RETRIED = (C.TIMEOUT, C.RATE_LIMIT, C.SERVER_ERROR)


async def raised(asking: Awaitable[object]) -> ErrorClassification:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the question
        await asking
    return classify(caught.value)


def of(clients: Clients, call: str) -> Awaitable[object]:
    made: Callable[[], Awaitable[object]] = getattr(clients, call)
    return made()


async def by_hand(library: Any, base_url: str, wire: str, *, stream: bool = False, patience: float = 10.0) -> None:
    """As a program without an official client would ask."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "stream": stream}
    path, model = ("/v1/chat/completions", GPT) if wire == "openai" else ("/v1/messages", CLAUDE)
    timeout = library.Timeout(10.0, read=patience)
    async with library.AsyncClient(base_url=base_url, timeout=timeout, verify=CERTIFICATES) as client:
        response = await client.post(path, json={"model": model, "max_tokens": 100, **body})
        response.raise_for_status()


@pytest.mark.parametrize("fault", STATUSES)
async def test_each_status_has_its_category_through_the_official_clients(
    server: SimulatedServer, clients: Clients, fault: str
) -> None:
    await server.set_faults(fault)
    means = [await raised(of(clients, call)) for call in OFFICIAL]
    assert {each.category for each in means} == {STATUSES[fault]}
    assert {each.is_retryable for each in means} == {STATUSES[fault] in RETRIED}
    assert {each.maybe_billed for each in means} == {False}


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("fault", STATUSES)
async def test_each_status_has_its_category_through_a_bare_client(
    server: SimulatedServer, library: Any, fault: str
) -> None:
    await server.set_faults(fault)
    means = [await raised(by_hand(library, server.base_url, wire)) for wire in ("openai", "anthropic")]
    assert {each.category for each in means} == {STATUSES[fault]}


FORMS = [("2", 2.0), ("1.5", 1.5), ("0", 0.0), ("-1", None), ("nan", None), ("inf", None), ("soon", None)]


@pytest.mark.parametrize(("text", "seconds"), FORMS)
@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_what_the_server_asks_for_is_read_through_every_client(
    server: SimulatedServer, clients: Clients, library: Any, text: str, seconds: float | None
) -> None:
    await server.set_faults(f"429:retry-after={text}")
    official = [await raised(of(clients, call)) for call in OFFICIAL]
    bare = [await raised(by_hand(library, server.base_url, wire)) for wire in ("openai", "anthropic")]
    assert [each.retry_after for each in (*official, *bare)] == [seconds] * 6


async def test_milliseconds_and_dates_are_read_through_every_client(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("429:retry-after-ms=1500")
    assert [(await raised(of(clients, call))).retry_after for call in OFFICIAL] == [1.5] * 4
    await server.set_faults("503:retry-after=date+100")
    for call in OFFICIAL:
        asked = (await raised(of(clients, call))).retry_after
        assert asked is not None
        assert 90 < asked <= 101


async def test_a_conflict_is_worth_another_try_where_the_server_says_when(
    server: SimulatedServer, clients: Clients
) -> None:
    await server.set_faults("409")
    assert [(await raised(of(clients, call))).is_retryable for call in OFFICIAL] == [False] * 4
    await server.set_faults("409:retry-after=1")
    assert [(await raised(of(clients, call))).is_retryable for call in OFFICIAL] == [True] * 4


@pytest.mark.parametrize(("fault", "retryable"), [("503:should-retry=false", False), ("400:should-retry=true", True)])
async def test_x_should_retry_is_believed(
    server: SimulatedServer, clients: Clients, fault: str, retryable: bool
) -> None:
    await server.set_faults(fault)
    assert [(await raised(of(clients, call))).is_retryable for call in OFFICIAL] == [retryable] * 4


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_a_refused_connection_was_not_billed(server: SimulatedServer, clients: Clients, library: Any) -> None:
    await server.set_faults("refuse")
    means = [await raised(of(clients, call)) for call in OFFICIAL]
    means.append(await raised(by_hand(library, server.base_url, "openai")))
    assert {(each.category, each.is_retryable, each.maybe_billed) for each in means} == {(C.NETWORK, True, False)}


@pytest.mark.parametrize("fault", ["drop", "reset"])
@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_a_connection_that_breaks_may_have_been_billed(
    server: SimulatedServer, clients: Clients, library: Any, fault: str
) -> None:
    await server.set_faults(fault)
    means = [await raised(of(clients, call)) for call in OFFICIAL]
    means += [await raised(by_hand(library, server.base_url, "openai", stream=stream)) for stream in (False, True)]
    assert {(each.category, each.is_retryable, each.maybe_billed) for each in means} == {(C.NETWORK, True, True)}


@pytest.mark.parametrize("fault", ["silence", "stall"])
@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_silence_is_a_timeout_that_may_have_been_billed(
    server: SimulatedServer, impatient: Clients, library: Any, fault: str
) -> None:
    await server.set_faults(fault)
    means = [await raised(of(impatient, call)) for call in OFFICIAL]
    means.append(await raised(by_hand(library, server.base_url, "openai", patience=0.1)))
    assert {(each.category, each.is_retryable, each.maybe_billed) for each in means} == {(C.TIMEOUT, True, True)}


@pytest.mark.parametrize("fault", ["malformed", "malformed:chunks=3"])
async def test_a_malformed_answer_is_a_bad_response_whoever_reads_it(
    server: SimulatedServer, clients: Clients, fault: str
) -> None:
    await server.set_faults(fault)
    means = [await raised(of(clients, call)) for call in OFFICIAL]
    assert {(each.category, each.is_retryable, each.maybe_billed) for each in means} == {(C.BAD_RESPONSE, True, True)}


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("fault", ["malformed", "html"])
async def test_an_answer_that_a_bare_client_cannot_read_is_a_bad_response(
    server: SimulatedServer, library: Any, fault: str
) -> None:
    await server.set_faults(fault)

    async def read() -> object:
        async with library.AsyncClient(base_url=server.base_url, verify=CERTIFICATES) as client:
            body = {"model": GPT, "messages": [{"role": "user", "content": QUESTION}]}
            return (await client.post("/v1/chat/completions", json=body)).json()

    assert (await raised(read())).category is C.BAD_RESPONSE


async def test_data_of_the_program_that_is_no_json_is_no_answer() -> None:
    async def read() -> object:
        return json.loads("{")

    assert (await raised(read())).category is C.VALIDATION


@pytest.mark.parametrize(
    ("status", "category"),
    [("429", C.RATE_LIMIT), ("500", C.SERVER_ERROR), ("529", C.SERVER_ERROR), ("400", C.VALIDATION)],
)
async def test_an_error_inside_a_stream_is_what_its_code_says(
    server: SimulatedServer, clients: Clients, status: str, category: ErrorCategory
) -> None:
    await server.set_faults(f"error-event:chunks=2,status={status}")
    means = [await raised(of(clients, call)) for call in STREAMS]
    assert {each.category for each in means} == {category}
