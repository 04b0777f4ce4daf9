"""What is kept of traffic, what is not, and how a request is found again. Files, but no socket."""

from __future__ import annotations

import base64
import json
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated._http import Headers, HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated._wire import ApiError
from steer_llm_sdk.providers.simulated.traffic import REDACTED, RecordedTraffic, TrafficRecorder

CANARY = "sk-canary-0123456789"
JSON: Headers = (("content-type", "application/json"),)
EVENTS: Headers = (("content-type", "text/event-stream"),)


class Scripted:
    """An upstream that gives its answers in order."""

    def __init__(self, *responses: HttpResponse) -> None:
        self._responses = iter(responses)
        self.closed = 0

    async def respond(self, request: HttpRequest) -> HttpResponse:
        return next(self._responses)

    async def aclose(self) -> None:
        self.closed += 1


def ask(body: object = None, *, query: str = "", **headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = json.dumps({"model": "m"} if body is None else body).encode()
    return HttpRequest(method="POST", target="/v1/chat/completions", query=query, headers=named, body=data)


def answer(body: object, headers: Headers = JSON) -> HttpResponse:
    return HttpResponse(status=200, headers=headers, body=json.dumps(body).encode())


def stream(*events: str) -> HttpResponse:
    return pieces(*(f"data: {event}\n\n".encode() for event in events))


def pieces(*data: bytes, headers: Headers = EVENTS) -> HttpResponse:
    async def body() -> AsyncIterator[bytes]:
        for piece in data:
            yield piece

    return HttpResponse(status=200, headers=headers, body=body())


async def read(response: HttpResponse) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    return b"".join([piece async for piece in response.body])


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def test_keys_cookies_and_tokens_are_never_in_the_file_wherever_they_came_from(tmp_path: Path) -> None:
    told = answer({"error": f"bad key {CANARY}"}, [*JSON, ("set-cookie", CANARY), ("x-odd", CANARY)])
    recorder = TrafficRecorder(Scripted(*[told] * 5), tmp_path / "t")
    await recorder.respond(ask({"note": CANARY}, authorization=f"Bearer {CANARY}"))
    await recorder.respond(ask(x_api_key=CANARY))
    await recorder.respond(ask(cookie=f"session={CANARY}; theme=dark"))
    await recorder.respond(ask(query=f"api_key={CANARY}&page=2"))
    await recorder.respond(ask(proxy_authorization=f"Basic {CANARY}="))
    assert len(lines(tmp_path / "t")) == 5
    assert CANARY not in (tmp_path / "t").read_text()
    assert lines(tmp_path / "t")[0]["request"]["body"] == {"note": REDACTED}


async def test_a_short_dummy_key_does_not_garble_what_is_kept(tmp_path: Path) -> None:
    recorder = TrafficRecorder(Scripted(answer({"text": "a test"})), tmp_path / "t")
    await recorder.respond(ask({"note": "test"}, authorization="Bearer test"))
    assert lines(tmp_path / "t")[0]["request"]["body"] == {"note": "test"}


@pytest.mark.parametrize(
    "body",
    [
        {"user": CANARY},
        {"user": {"name": CANARY}},
        {"deep": [{"er": {"user": [CANARY]}}]},
        {"text": json.dumps({"user": CANARY, "n": 1})},
        [{"user": CANARY}],
    ],
)
async def test_a_named_field_is_replaced_at_any_depth_in_request_answer_and_stream(tmp_path: Path, body: Any) -> None:
    recorder = TrafficRecorder(Scripted(answer(body), stream(json.dumps(body), "[DONE]")), tmp_path / "t", ["user"])
    await recorder.respond(ask({"messages": body}))
    passed = await read(await recorder.respond(ask({"messages": body, "stream": True})))
    assert CANARY in passed.decode()
    assert CANARY not in (tmp_path / "t").read_text()
    assert (tmp_path / "t").read_text().count(REDACTED) == 4


async def test_a_named_field_with_any_letters_is_found_in_escaped_json(tmp_path: Path) -> None:
    recorder = TrafficRecorder(Scripted(answer({"größe": CANARY})), tmp_path / "t", ["größe"])
    await recorder.respond(ask({"größe": CANARY}))
    assert CANARY not in (tmp_path / "t").read_text()


async def test_the_client_gets_what_the_endpoint_gave_byte_by_byte(tmp_path: Path) -> None:
    original = b'{"user":  "me", "b": [1,2]}'
    upstream = Scripted(HttpResponse(status=200, headers=JSON, body=original))
    recorder = TrafficRecorder(upstream, tmp_path / "t", ["user"])
    assert await read(await recorder.respond(ask())) == original


async def test_the_file_is_for_its_owner_only_and_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        await TrafficRecorder(Scripted(answer({})), tmp_path / "t").respond(ask())
    assert len(lines(tmp_path / "t")) == 2
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600


async def test_only_headers_that_matter_to_a_client_are_kept(tmp_path: Path) -> None:
    headers = [*JSON, ("retry-after", "2"), ("x-ratelimit-limit-requests", "9"), ("request-id", "r1"), ("server", "s")]
    recorder = TrafficRecorder(Scripted(answer({}, headers)), tmp_path / "t")
    await recorder.respond(ask(anthropic_version="2023-06-01", user_agent="me"))
    kept = lines(tmp_path / "t")[0]
    assert kept["request"]["headers"] == [["anthropic-version", "2023-06-01"]]
    assert [name for name, _ in kept["response"]["headers"]] == [
        "content-type",
        "retry-after",
        "x-ratelimit-limit-requests",
        "request-id",
    ]


async def test_delays_are_kept_and_replayed_divided_by_the_speed(tmp_path: Path) -> None:
    ticks = iter([0.0, 1.0, 1.0, 1.5, 3.5])
    recorder = TrafficRecorder(Scripted(stream("1", "2")), tmp_path / "t", clock=lambda: next(ticks))
    await read(await recorder.respond(ask()))
    assert await slept(tmp_path / "t", speed=1.0) == [1.0, 0.5, 2.0]
    assert await slept(tmp_path / "t", speed=10.0) == [0.1, 0.05, 0.2]
    assert await slept(tmp_path / "t", speed=0.0) == []


async def slept(path: Path, speed: float) -> list[float]:
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    await read(await RecordedTraffic.read(path, speed=speed, sleep=sleep).respond(ask()))
    return naps


async def kept(
    path: Path, *exchanges: tuple[HttpRequest, HttpResponse], redact: tuple[str, ...] = ()
) -> RecordedTraffic:
    recorder = TrafficRecorder(Scripted(*(response for _, response in exchanges)), path, redact)
    for request, _ in exchanges:
        await read(await recorder.respond(request))
    return RecordedTraffic.read(path, speed=0.0)


async def test_what_was_asked_several_times_is_answered_in_order_and_then_again_from_the_start(tmp_path: Path) -> None:
    replay = await kept(tmp_path / "t", *((ask(), answer(n)) for n in (1, 2, 3)))
    assert [await read(await replay.respond(ask())) for _ in range(4)] == [b"1", b"2", b"3", b"1"]


async def test_a_request_is_found_in_any_order_of_its_fields_and_only_with_the_same_stream(tmp_path: Path) -> None:
    replay = await kept(tmp_path / "t", (ask({"a": 1, "stream": False}), answer("plain")))
    assert await read(await replay.respond(ask({"stream": False, "a": 1}))) == b'"plain"'
    with pytest.raises(ApiError, match="the nearest differs in: stream"):
        await replay.respond(ask({"a": 1, "stream": True}))


async def test_a_redacted_field_may_differ_when_the_request_comes_again(tmp_path: Path) -> None:
    replay = await kept(tmp_path / "t", (ask({"user": "me", "a": 1}), answer("yes")), redact=("user",))
    assert await read(await replay.respond(ask({"user": "you", "a": 1}))) == b'"yes"'


@pytest.mark.parametrize("named", ["user", "User", "USER"])
async def test_a_field_is_redacted_in_whatever_case_it_is_named_or_sent(tmp_path: Path, named: str) -> None:
    sent = {"User": "me", "inner": [{"uSER": "myself"}], "a": 1}
    replay = await kept(tmp_path / "t", (ask(sent), answer({"USER": "secret"})), redact=(named,))
    text = (tmp_path / "t").read_text(encoding="utf-8")
    assert not any(word in text for word in ('"me"', "myself", "secret"))
    again = {"User": "you", "inner": [{"uSER": "yourself"}], "a": 1}
    assert json.loads(await read(await replay.respond(ask(again)))) == {"USER": "[redacted]"}


async def test_a_request_that_was_not_recorded_is_a_404_that_says_how_many_were(tmp_path: Path) -> None:
    replay = await kept(tmp_path / "t", (ask({"a": 1}), answer(1)))
    with pytest.raises(ApiError, match="None of the 1 recorded requests") as caught:
        await replay.respond(HttpRequest(method="POST", target="/elsewhere"))
    assert caught.value.status == 404


async def test_bytes_that_are_no_text_come_back_as_they_were(tmp_path: Path) -> None:
    odd = HttpResponse(status=200, headers=(("content-type", "image/png"),), body=b"\x89PNG\xff\x00")
    replay = await kept(tmp_path / "t", (ask(), odd))
    assert await read(await replay.respond(ask())) == b"\x89PNG\xff\x00"


async def test_a_stream_that_the_client_leaves_is_kept_as_far_as_it_came_and_breaks_there_again(tmp_path: Path) -> None:
    recorder = TrafficRecorder(Scripted(stream("1", "2")), tmp_path / "t")
    response = await recorder.respond(ask())
    assert not isinstance(response.body, bytes)
    assert await anext(response.body) == b"data: 1\n\n"
    assert response.close is not None
    await response.close()
    replayed = await RecordedTraffic.read(tmp_path / "t", speed=0.0).respond(ask())
    with pytest.raises(ConnectionAbortedError):
        await read(replayed)


@pytest.mark.parametrize("line", ["{", "[]", '{"at": 1}', '{"at": "x"}'])
def test_a_file_that_is_no_traffic_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "t").write_text(line + "\n")
    with pytest.raises(InvalidRequest, match=r"t:1\b.*not traffic"):
        RecordedTraffic.read(tmp_path / "t")


async def test_half_a_character_in_escaped_json_is_kept_and_found_again(tmp_path: Path) -> None:
    half = HttpResponse(status=200, headers=JSON, body=b'{"text": "\\ud83d", "user": 1}')
    replay = await kept(tmp_path / "t", (ask({"text": "\ud83d"}), half), redact=("user",))
    assert json.loads(await read(await replay.respond(ask({"text": "\ud83d"})))) == {"text": "\ud83d", "user": REDACTED}


FIELD = b'{"user": "%s", "n": 1}' % CANARY.encode()


@pytest.mark.parametrize(
    "data",
    [
        [b"data: " + FIELD[:20]],
        [b'data: {"n": 1,\ndata: "user": "%s"}\n\n' % CANARY.encode()],
        [b"data: " + FIELD + b"\r\rdata: 1\r\r"],
        [b"data: " + FIELD + b"\r", b"\n\r", b"\ndata: 1\r\n\r\n"],
        [b"\xef\xbb\xbfdata: " + FIELD + b"\n\n"],
        [b"data: " + FIELD[:20] + b"\n\n"],
        [b"data: " + FIELD + b" and more\n\n"],
        [b": " + FIELD + b"\n\n"],
        [FIELD + b"\n\n"],
        [b'data: "\xe9"\ndata: ' + FIELD + b"\n\n"],
    ],
    ids=["cut off", "two lines", "CR", "CRLF in pieces", "BOM", "half", "no JSON", "comment", "no data", "latin-1"],
)
async def test_a_named_field_is_not_kept_however_its_event_is_written(tmp_path: Path, data: list[bytes]) -> None:
    recorder = TrafficRecorder(Scripted(pieces(*data)), tmp_path / "t", ["user"])
    await read(await recorder.respond(ask()))
    assert_nothing_of_the_canary(tmp_path / "t")


def assert_nothing_of_the_canary(path: Path) -> None:
    written = path.read_text("utf-8")
    held = [base64.b64decode(chunk["base64"]) for chunk in kept_chunks(path) if isinstance(chunk, dict)]
    assert CANARY[:8] not in written + repr(held)
    assert REDACTED in written + repr(held)


def kept_chunks(path: Path) -> list[Any]:
    return [chunk for line in lines(path) for _, chunk in line["response"]["chunks"]]


NO_WHOLE_JSON = {
    "BOM": b"\xef\xbb\xbf" + FIELD,
    "lines": FIELD + b"\n" + FIELD + b"\n",
    "cut off": FIELD[:-3],
    "form": b"user=" + CANARY.encode(),
    "latin-1": FIELD.replace(b"1", b'"\xe9"'),
    "too deep": b"[" * 100_000 + FIELD + b"]" * 100_000,
}


@pytest.mark.parametrize("body", NO_WHOLE_JSON.values(), ids=NO_WHOLE_JSON)
async def test_a_named_field_is_not_kept_of_what_is_no_whole_json(tmp_path: Path, body: bytes) -> None:
    whole = HttpResponse(status=200, headers=JSON, body=body)
    in_pieces = pieces(body[:12], body[12:], headers=JSON)
    recorder = TrafficRecorder(Scripted(whole, in_pieces, answer({})), tmp_path / "t", ["user"])
    assert await read(await recorder.respond(ask())) == body
    assert await read(await recorder.respond(ask())) == body
    await recorder.respond(HttpRequest(method="POST", target="/v1/x", body=body))
    assert len(lines(tmp_path / "t")) == 3
    assert_nothing_of_the_canary(tmp_path / "t")


async def test_what_else_an_event_says_is_kept_beside_a_named_field(tmp_path: Path) -> None:
    told = b"event: delta\nid: 7\ndata: " + FIELD + b"\n\ndata: [DONE]\n\n"
    replay = await kept(tmp_path / "t", (ask(), pieces(told)), redact=("user",))
    again = await read(await replay.respond(ask()))
    assert again == told.replace(CANARY.encode(), REDACTED.encode())


@pytest.mark.parametrize("redact", [(), ("user",)])
async def test_a_key_is_not_kept_in_bytes_in_escapes_or_behind_a_basic_header(
    tmp_path: Path, redact: tuple[str, ...]
) -> None:
    quoted = CANARY + '"/+x'
    basic = "Basic " + base64.b64encode(f"me:{CANARY}".encode()).decode()
    told = [
        HttpResponse(status=200, headers=JSON, body=b"\xff" + CANARY.encode()),
        HttpResponse(status=200, headers=JSON, body=json.dumps(quoted).replace("/", "\\/").encode()),
        answer({"text": CANARY}),
        pieces(CANARY[:12].encode(), CANARY[12:].encode(), headers=JSON),
    ]
    recorder = TrafficRecorder(Scripted(*told), tmp_path / "t", redact)
    for headers in ({"x_api_key": CANARY}, {"x_api_key": quoted}, {"authorization": basic}, {"x_api_key": CANARY}):
        await read(await recorder.respond(ask(**headers)))
    assert_nothing_of_the_canary(tmp_path / "t")


async def test_a_cookie_with_a_common_word_leaves_the_file_readable(tmp_path: Path) -> None:
    recorder = TrafficRecorder(Scripted(answer({})), tmp_path / "t")
    await recorder.respond(ask(cookie="state=complete; theme=response"))
    assert await read(await RecordedTraffic.read(tmp_path / "t").respond(ask())) == b"{}"


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "t", tmp_path):
        with pytest.raises(InvalidRequest, match="it cannot be written") as caught:
            TrafficRecorder(Scripted(), path)
        assert caught.value.field == "out"


async def test_an_answer_that_cannot_be_kept_still_reaches_the_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = TrafficRecorder(Scripted(answer(CANARY), stream(CANARY)), tmp_path / "t")
    (tmp_path / "t").unlink()
    (tmp_path / "t").mkdir()
    with caplog.at_level(logging.WARNING):
        assert await read(await recorder.respond(ask())) == json.dumps(CANARY).encode()
        assert await read(await recorder.respond(ask())) == f"data: {CANARY}\n\n".encode()
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == [
        "An answer was passed on but is not kept"
    ] * 2
    assert CANARY not in caplog.text


async def test_json_that_is_too_deep_to_read_is_kept_as_text(tmp_path: Path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    request = HttpRequest(method="POST", target="/v1/chat/completions", body=deep)
    replay = await kept(tmp_path / "t", (request, HttpResponse(status=200, headers=JSON, body=deep)))
    assert await read(await replay.respond(request)) == deep


def test_a_line_that_is_too_deep_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("[" * 100_000)
    with pytest.raises(InvalidRequest, match="not traffic"):
        RecordedTraffic.read(tmp_path / "t")
