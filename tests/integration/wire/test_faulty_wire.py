"""What the official clients make of each fault. Nothing here waits longer than the clients' own patience."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime

import anthropic
import httpx2
import openai
import pytest
from official_clients import CLAUDE, GPT, QUESTION, Clients, bare

from steer_llm_sdk.providers.simulated import SimulatedServer

CALLS = ("openai_whole", "openai_stream", "anthropic_whole", "anthropic_stream")


def call(clients: Clients, name: str) -> Awaitable[object]:
    made: Callable[[], Awaitable[object]] = getattr(clients, name)
    return made()


@pytest.mark.parametrize(
    ("fault", "of_openai", "of_anthropic"),
    [
        ("400", openai.BadRequestError, anthropic.BadRequestError),
        ("401", openai.AuthenticationError, anthropic.AuthenticationError),
        ("403", openai.PermissionDeniedError, anthropic.PermissionDeniedError),
        ("404", openai.NotFoundError, anthropic.NotFoundError),
        ("409", openai.ConflictError, anthropic.ConflictError),
        ("422", openai.UnprocessableEntityError, anthropic.UnprocessableEntityError),
        ("429", openai.RateLimitError, anthropic.RateLimitError),
        ("500", openai.InternalServerError, anthropic.InternalServerError),
        ("502", openai.InternalServerError, anthropic.InternalServerError),
        ("503", openai.InternalServerError, anthropic.ServiceUnavailableError),
        ("504", openai.InternalServerError, anthropic.DeadlineExceededError),
        ("529", openai.InternalServerError, anthropic.OverloadedError),
    ],
)
async def test_each_status_is_the_error_that_the_client_has_for_it(
    server: SimulatedServer,
    clients: Clients,
    fault: str,
    of_openai: type[openai.APIStatusError],
    of_anthropic: type[anthropic.APIStatusError],
) -> None:
    await server.set_faults(fault)
    with pytest.raises(of_openai) as one:
        await clients.openai_whole()
    with pytest.raises(of_anthropic) as other:
        await clients.anthropic_stream()
    assert one.value.status_code == other.value.status_code == int(fault)
    assert one.value.request_id is not None
    assert other.value.request_id is not None
    assert server.upstream_calls == 0


async def test_a_spent_quota_is_a_429_for_openai_and_a_402_for_anthropic(
    server: SimulatedServer, clients: Clients
) -> None:
    await server.set_faults("quota")
    with pytest.raises(openai.RateLimitError) as one:
        await clients.openai_whole()
    with pytest.raises(anthropic.APIStatusError) as other:
        await clients.anthropic_whole()
    assert (one.value.code, one.value.type) == ("insufficient_quota", "insufficient_quota")
    assert (other.value.status_code, other.value.type) == (402, "billing_error")


@pytest.mark.parametrize(
    ("fault", "header", "value"),
    [
        ("429:retry-after=2", "retry-after", "2"),
        ("429:retry-after=1.5", "retry-after", "1.5"),
        ("429:retry-after=soon", "retry-after", "soon"),
        ("429:retry-after-ms=250", "retry-after-ms", "250"),
        ("429:should-retry=false", "x-should-retry", "false"),
        ("503:should-retry=true", "x-should-retry", "true"),
        ("429", "retry-after", None),
    ],
)
async def test_retry_after_comes_in_the_form_asked_for(
    server: SimulatedServer, clients: Clients, fault: str, header: str, value: str | None
) -> None:
    await server.set_faults(fault)
    with pytest.raises(openai.APIStatusError) as caught:
        await clients.openai_whole()
    assert caught.value.response.headers.get(header) == value


async def test_retry_after_may_be_an_http_date(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("429:retry-after=date+30")
    with pytest.raises(anthropic.RateLimitError) as caught:
        await clients.anthropic_whole()
    due = parsedate_to_datetime(caught.value.response.headers["retry-after"]).timestamp()
    assert 25 < due - time.time() <= 30


@pytest.mark.parametrize("name", CALLS)
async def test_nobody_listens(server: SimulatedServer, clients: Clients, name: str) -> None:
    await call(clients, name)
    await server.set_faults("refuse")
    with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)) as caught:
        await call(clients, name)
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)
    await server.set_faults()
    await call(clients, name)


async def test_nobody_listens_after_so_many_requests_the_last_of_which_is_answered(
    server: SimulatedServer, clients: Clients
) -> None:
    await server.set_faults("refuse:after=2")
    assert await clients.openai_stream()
    assert await clients.openai_stream()
    with pytest.raises(openai.APIConnectionError) as caught:
        await clients.openai_stream()
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


@pytest.mark.parametrize("name", CALLS)
async def test_a_dropped_request_is_a_connection_that_ended_without_a_word(
    server: SimulatedServer, clients: Clients, name: str
) -> None:
    await server.set_faults("drop")
    with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)) as caught:
        await call(clients, name)
    assert isinstance(caught.value.__cause__, httpx2.RemoteProtocolError)


async def test_a_reset_breaks_an_answer_in_one_piece(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("reset")
    with pytest.raises(openai.APIConnectionError) as one:
        await clients.openai_whole()
    with pytest.raises(anthropic.APIConnectionError) as other:
        await clients.anthropic_whole()
    assert isinstance(one.value.__cause__, httpx2.ReadError)
    assert isinstance(other.value.__cause__, httpx2.ReadError)


async def seen_before(error: type[Exception], stream: AsyncIterator[object]) -> int:
    """How many chunks come before that error."""
    seen = 0
    try:
        async for _ in stream:
            seen += 1
    except error:
        return seen
    raise AssertionError(f"the stream came to a good end after {seen} chunks")


async def test_a_reset_breaks_a_stream_after_its_first_chunks(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("reset:chunks=3")
    stream = await clients.openai.chat.completions.create(
        model=GPT, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    assert await seen_before(openai.APIConnectionError, stream) == 3
    with pytest.raises(httpx2.ReadError):
        await clients.anthropic_stream()


@pytest.mark.parametrize("fault", ["silence", "slow"])
@pytest.mark.parametrize("name", CALLS)
async def test_silence_is_a_timeout_of_the_client(
    server: SimulatedServer, impatient: Clients, fault: str, name: str
) -> None:
    await server.set_faults(fault)
    with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
        await call(impatient, name)


async def test_a_stall_delivers_its_chunks_and_then_nothing(server: SimulatedServer, impatient: Clients) -> None:
    await server.set_faults("stall:chunks=4")
    stream = await impatient.openai.chat.completions.create(
        model=GPT, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    assert await seen_before(openai.APITimeoutError, stream) == 4
    with pytest.raises(httpx2.ReadTimeout):
        await impatient.anthropic_stream()
    with pytest.raises(openai.APITimeoutError):
        await impatient.openai_whole()


@pytest.mark.parametrize("fault", ["slow:seconds=7", "stall:seconds=7"])
@pytest.mark.parametrize("name", CALLS)
async def test_what_is_late_arrives_whole_in_the_end(fault: str, name: str) -> None:
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    async with (
        SimulatedServer(faults=fault, sleep=sleep) as late,
        SimulatedServer() as punctual,
        Clients(late.base_url) as ours,
        Clients(punctual.base_url) as theirs,
    ):
        assert _text(await call(ours, name)) == _text(await call(theirs, name))
    assert naps == [7.0]


def _text(answer: object) -> object:
    """What was said, leaving out when."""
    if isinstance(answer, openai.BaseModel | anthropic.BaseModel):
        return answer.model_dump(exclude={"created"})
    return answer


async def test_silence_with_an_end_is_a_connection_that_ended_without_a_word() -> None:
    async def sleep(seconds: float) -> None:
        return None

    async with (
        SimulatedServer(faults="silence:seconds=60", sleep=sleep) as server,
        Clients(server.base_url) as clients,
    ):
        with pytest.raises(openai.APIConnectionError) as caught:
            await clients.openai_whole()
    assert isinstance(caught.value.__cause__, httpx2.RemoteProtocolError)


async def test_a_stream_without_its_end_looks_complete_but_for_the_finish_reason(
    server: SimulatedServer, clients: Clients
) -> None:
    await server.set_faults("no-end")
    finishes = await clients.openai_stream()
    types = await clients.anthropic_stream()
    assert set(finishes) == {None}
    assert types[-1] == "content_block_stop"


async def test_the_right_end_marker_is_what_is_missing_on_the_wire(server: SimulatedServer) -> None:
    body = {"model": GPT, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    async with bare(server.base_url) as client:
        whole = (await client.post("/v1/chat/completions", json=body)).text
        await server.set_faults("no-end")
        cut = (await client.post("/v1/chat/completions", json=body)).text
    assert whole.endswith("data: [DONE]\n\n")
    assert "[DONE]" not in cut
    assert '"finish_reason":"stop"' not in cut


@pytest.mark.parametrize("name", CALLS)
async def test_malformed_json_is_no_error_of_the_clients_own(
    server: SimulatedServer, clients: Clients, name: str
) -> None:
    await server.set_faults("malformed")
    with pytest.raises(json.JSONDecodeError):
        await call(clients, name)


async def test_html_is_handed_through_as_a_text_or_as_a_stream_of_nothing(
    server: SimulatedServer, clients: Clients
) -> None:
    await server.set_faults("html")
    assert str(await clients.openai_whole()).startswith("<!DOCTYPE html>")
    assert str(await clients.anthropic_whole()).startswith("<!DOCTYPE html>")
    assert await clients.openai_stream() == []
    assert await clients.anthropic_stream() == []
    assert server.upstream_calls == 0


async def test_an_empty_answer_has_everything_but_the_answer(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("empty")
    one = await clients.openai.chat.completions.create(model=GPT, messages=[{"role": "user", "content": QUESTION}])
    other = await clients.anthropic.messages.create(
        model=CLAUDE, max_tokens=9, messages=[{"role": "user", "content": QUESTION}]
    )
    assert one.choices == []
    assert other.content == []
    assert await clients.openai_stream() == []
    assert await clients.anthropic_stream() == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_content_type_stands_over_the_right_answer(server: SimulatedServer, stream: bool) -> None:
    body = {"model": GPT, "stream": stream, "messages": [{"role": "user", "content": QUESTION}]}
    await server.set_faults("wrong-type")
    async with bare(server.base_url) as client:
        response = await client.post("/v1/chat/completions", json=body)
    assert response.headers.get_list("content-type") == ["application/octet-stream"]
    assert response.text.endswith("data: [DONE]\n\n") if stream else response.json()["choices"]


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (500, "api_error"), (529, "overloaded_error")])
async def test_an_error_event_ends_a_stream_that_began_well(
    server: SimulatedServer, clients: Clients, status: int, kind: str
) -> None:
    await server.set_faults(f"error-event:chunks=2,status={status}")
    with pytest.raises(openai.APIError) as one:
        await clients.openai_stream()
    with pytest.raises(anthropic.APIStatusError) as other:
        await clients.anthropic_stream()
    assert type(one.value) is openai.APIError
    assert (other.value.status_code, other.value.type) == (200, kind)


@pytest.mark.parametrize("fault", ["no-end", "error-event"])
async def test_faults_of_a_stream_leave_an_answer_in_one_piece_alone(
    server: SimulatedServer, clients: Clients, fault: str
) -> None:
    await server.set_faults(fault)
    assert isinstance(await clients.openai_whole(), openai.types.chat.ChatCompletion)
    assert isinstance(await clients.anthropic_whole(), anthropic.types.Message)


async def outcomes(seed: int, how_many: int = 40) -> list[int | str]:
    async with SimulatedServer(faults=["503:rate=0.3", "drop:rate=0.2"], seed=seed) as server:
        seen: list[int | str] = []
        async with bare(server.base_url) as client:
            for _ in range(how_many):
                try:
                    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
                    seen.append((await client.post("/v1/chat/completions", json=body)).status_code)
                except httpx2.RemoteProtocolError:
                    seen.append("dropped")
        return seen


async def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    one, same, other = [await outcomes(seed) for seed in (1, 1, 2)]
    assert one == same != other
    assert set(one) == {200, 503, "dropped"}


async def test_an_outage_begins_and_ends_by_the_clock() -> None:
    now = 0.0
    async with (
        SimulatedServer(faults="outage:from=2,to=30,as=529", clock=lambda: now) as server,
        Clients(server.base_url) as clients,
    ):
        assert await clients.anthropic_whole()
        now = 2.0
        with pytest.raises(anthropic.OverloadedError):
            await clients.anthropic_whole()
        now = 30.0
        assert await clients.anthropic_whole()


async def test_nobody_listens_during_an_outage_and_somebody_after_it() -> None:
    now, over, naps = 0.0, asyncio.Event(), []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await over.wait()

    async with (
        SimulatedServer(faults="outage:from=0,to=30,as=refuse", clock=lambda: now, sleep=sleep) as server,
        bare(server.base_url) as client,
    ):
        with pytest.raises(httpx2.ConnectError):
            await client.get("/v1/models")
        now = 30.0
        over.set()
        await until_somebody_listens(server.port)
        assert (await client.get("/v1/models")).status_code == 200
    assert naps == [30.0]


async def until_somebody_listens(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            continue
        writer.close()
        return await writer.wait_closed()


async def test_a_request_under_way_is_finished_when_nobody_listens_any_more(
    server: SimulatedServer, clients: Clients
) -> None:
    stream = await clients.openai.chat.completions.create(
        model=GPT, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    await server.set_faults("refuse")
    finishes = [choice.finish_reason async for chunk in stream for choice in chunk.choices]
    assert finishes[-1] == "stop"
