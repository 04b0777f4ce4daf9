"""The interface of what answers behind the faults, and the recorded answers as one."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from steer_llm_sdk.providers.simulated._anthropic import AnthropicWire
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated._openai import OpenAIWire
from steer_llm_sdk.providers.simulated._wire import ApiError, Ask, Reply, Wire, cut, estimate_tokens
from steer_llm_sdk.providers.simulated.recording import POOL, Answer, Question, Recording

OPENAI: Wire = OpenAIWire()
ANTHROPIC: Wire = AnthropicWire()

JSON = ("content-type", "application/json")
EVENTS = ("content-type", "text/event-stream; charset=utf-8")

_ANSWERING: Mapping[str, Wire] = {"/v1/chat/completions": OPENAI, "/v1/messages": ANTHROPIC}
_MODELS = "/v1/models"


class Upstream(Protocol):
    """Answers requests. Raises ApiError for a request that it does not answer."""

    async def respond(self, request: HttpRequest) -> HttpResponse: ...

    async def aclose(self) -> None: ...


def wire_of(request: HttpRequest) -> Wire:
    """The format that the client speaks: by the path, else by the header that only Anthropic's clients send."""
    if request.path in _ANSWERING:
        return _ANSWERING[request.path]
    return ANTHROPIC if "anthropic-version" in request.headers else OPENAI


def json_in(request: HttpRequest) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError."""
    try:
        body = json.loads(request.body)
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ApiError(400, "The body is JSON that is nested too deep to read") from error
    except UnicodeEncodeError as error:
        raise ApiError(400, "The body has half of a surrogate pair in it, which is no text") from error
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body is valid JSON but not an object")
    return body


def error_response(wire: Wire, error: ApiError, request_id: str) -> HttpResponse:
    headers = (JSON, *wire.headers(request_id, time.time()))
    return HttpResponse(status=error.status, headers=headers, body=wire.error(error, request_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """Who answers which question."""

    question: Question
    answer: Answer


class RecordedUpstream:
    """Answers its recording's questions, and no others.

    A model answers with what it once answered. The pool `demo` answers with one model after the other, in an order that
    the question fixes; a `seed` in the request picks the model and does not advance the order. The first user message
    is the question; later messages, temperature, tools and format change nothing. `max_tokens` cuts the answer.
    """

    def __init__(self, recording: Recording, *, clock: Callable[[], float] = time.time) -> None:
        self._recording = recording
        self._asked: Counter[str] = Counter()
        self._replies = 0
        self._clock = clock

    async def respond(self, request: HttpRequest) -> HttpResponse:
        wire = wire_of(request)
        if request.method == "POST" and request.path in _ANSWERING:
            return self._answer(wire, request)
        if request.method == "GET" and (request.path + "/").startswith(_MODELS + "/"):
            return self._list(wire, request.path.removeprefix(_MODELS).strip("/"))
        served = ", ".join([*(f"POST {path}" for path in _ANSWERING), f"GET {_MODELS}"])
        raise ApiError(404, f"Nothing is served at {request.method} {request.path}; there are {served}")

    async def aclose(self) -> None:
        return None

    def _answer(self, wire: Wire, request: HttpRequest) -> HttpResponse:
        ask = wire.ask(json_in(request))
        turn = self._turn(ask)
        reply = self._reply(ask, turn)
        headers = (
            EVENTS if ask.stream else JSON,
            *wire.headers(f"req_{reply.id}", self._clock()),
            ("x-simulated", self._recording.name),
            ("x-simulated-answer", turn.answer.kind),
        )
        body = _as_stream(wire.events(reply)) if ask.stream else wire.whole(reply)
        return HttpResponse(status=200, headers=headers, body=body)

    def _turn(self, ask: Ask) -> _Turn:
        model = self._known(ask.model)
        question = self._recording.find(ask.question)
        if question is None:
            raise ApiError(404, self._not_recorded(), code="question_not_recorded", param="messages")
        if model == POOL:
            order = self._recording.in_turn(question)
            place = self._asked[question.id] if ask.seed is None else ask.seed
            self._asked[question.id] += ask.seed is None
            model = order[place % len(order)]
        return _Turn(question=question, answer=question.answers[model])

    def _known(self, name: str) -> str:
        model = self._recording.model_named(name)
        if model is None:
            message = f"Model {name!r} is not in the recording; GET {_MODELS} lists those that are"
            raise ApiError(404, message, code="model_not_found")
        return model

    def _not_recorded(self) -> str:
        return (
            f"This recording answers its own {len(self._recording.questions)} questions and no others; "
            "`steer-llm simulate --list` shows them. Send one as the first user message, in its words or as its id."
        )

    def _reply(self, ask: Ask, turn: _Turn) -> Reply:
        self._replies += 1
        text = cut(turn.answer.text, ask.max_tokens)
        key = f"{turn.question.id}/{turn.answer.model}/{self._replies}"
        return Reply(
            id=hashlib.sha256(key.encode("utf-8")).hexdigest()[:24],
            model=turn.answer.model,
            text=text,
            finish="stop" if text == turn.answer.text else "length",
            input_tokens=ask.input_tokens,
            output_tokens=estimate_tokens(text),
            created=int(self._clock()),
            include_usage=ask.include_usage,
        )

    def _list(self, wire: Wire, name: str) -> HttpResponse:
        if name:
            model = self._known(name)
            body = wire.model(model, self._about(model))
        else:
            body = wire.models({model: self._about(model) for model in (POOL, *self._recording.models)})
        return HttpResponse(status=200, headers=(JSON, *wire.headers("req_models", self._clock())), body=body)

    def _about(self, model: str) -> Mapping[str, Any]:
        """What a model's entry has besides its name: the source; for the pool also a question it answers."""
        first = self._recording.questions[0]
        if model == POOL:
            return {"recording": self._recording.source, "first_question": {"id": first.id, "text": first.text}}
        return {"recording": self._recording.source, "answers": self._recording.kind_of(model)}


async def _as_stream(events: Iterator[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event
