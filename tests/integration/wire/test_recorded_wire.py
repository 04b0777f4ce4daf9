"""The official clients ask the recorded answers, in both formats, in one piece and as streams."""

from __future__ import annotations

from collections import Counter

import anthropic
import openai
import pytest
from official_clients import CLAUDE, GPT, QUESTION, Clients

from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording

FIRST = shipped_recording().questions[0]


async def ask(client: openai.AsyncOpenAI, model: str, question: str = QUESTION, seed: int | None = None) -> str:
    """Who answered."""
    reply = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], seed=seed
    )
    return reply.model


async def test_openai_gets_the_recorded_text_with_usage_finish_reason_and_request_id(clients: Clients) -> None:
    reply = await clients.openai.chat.completions.create(model=GPT, messages=[{"role": "user", "content": FIRST.text}])
    assert reply.choices[0].message.content == FIRST.answers[GPT].text
    assert (reply.model, reply.choices[0].finish_reason) == (GPT, "stop")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply._request_id is not None
    assert reply._request_id.startswith("req_")


async def test_openai_streams_the_same_text_and_ends_with_reason_usage_and_done(clients: Clients) -> None:
    stream = await clients.openai.chat.completions.create(
        model=GPT,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == FIRST.answers[GPT].text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert {chunk.usage for chunk in chunks[:-1]} == {None}


async def test_openai_is_sent_no_usage_in_a_stream_unless_it_asks(clients: Clients) -> None:
    stream = await clients.openai.chat.completions.create(
        model=GPT, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    assert {chunk.usage async for chunk in stream} == {None}


async def test_anthropic_gets_the_recorded_text_with_usage_stop_reason_and_request_id(clients: Clients) -> None:
    reply = await clients.anthropic.messages.create(
        model=CLAUDE, max_tokens=1000, messages=[{"role": "user", "content": FIRST.text}]
    )
    assert [block.text for block in reply.content if block.type == "text"] == [FIRST.answers[CLAUDE].text]
    assert (reply.model, reply.stop_reason) == (CLAUDE, "end_turn")
    assert reply.usage.input_tokens > 100
    assert reply._request_id is not None


async def test_anthropic_streams_the_same_text_in_the_documented_order_of_events(clients: Clients) -> None:
    async with clients.anthropic.messages.stream(
        model=CLAUDE, max_tokens=1000, messages=[{"role": "user", "content": QUESTION}]
    ) as stream:
        types = [event.type async for event in stream]
        text, message = await stream.get_final_text(), await stream.get_final_message()
    assert text == FIRST.answers[CLAUDE].text
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 1
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_either_format_serves_every_model(clients: Clients) -> None:
    assert await ask(clients.openai, CLAUDE) == CLAUDE
    reply = await clients.anthropic.messages.create(
        model=GPT, max_tokens=1000, messages=[{"role": "user", "content": QUESTION}]
    )
    assert reply.model == GPT


async def test_max_tokens_cuts_the_answer_and_the_finish_reason_says_so(clients: Clients) -> None:
    one = await clients.openai.chat.completions.create(
        model=GPT, messages=[{"role": "user", "content": QUESTION}], max_tokens=5
    )
    other = await clients.anthropic.messages.create(
        model=GPT, max_tokens=5, messages=[{"role": "user", "content": QUESTION}]
    )
    assert one.usage is not None
    assert (one.choices[0].finish_reason, one.usage.completion_tokens) == ("length", 5)
    assert (other.stop_reason, other.usage.output_tokens) == ("max_tokens", 5)


async def test_the_pool_answers_with_every_model_once_before_it_starts_again(clients: Clients) -> None:
    models = [await ask(clients.openai, "demo") for _ in range(52)]
    assert Counter(models[:51]) == Counter(shipped_recording().models)
    assert models[51] == models[0]
    assert tuple(models[:51]) == shipped_recording().in_turn(FIRST)


async def test_a_seed_picks_the_model_and_does_not_advance_the_pool(clients: Clients) -> None:
    seeded = [await ask(clients.openai, "demo", seed=seed) for seed in (3, 3, 54, 4)]
    assert seeded[0] == seeded[1] == seeded[2] != seeded[3]
    assert await ask(clients.openai, "demo") == shipped_recording().in_turn(FIRST)[0]


async def test_each_question_has_turns_of_its_own(clients: Clients) -> None:
    await ask(clients.openai, "demo")
    other = shipped_recording().questions[1]
    assert await ask(clients.openai, "demo", other.id) == shipped_recording().in_turn(other)[0]


async def test_a_question_outside_the_recording_is_refused_in_a_sentence_in_either_format(clients: Clients) -> None:
    with pytest.raises(openai.NotFoundError, match=r"its own 100 questions .* `steer-llm simulate --list`") as caught:
        await ask(clients.openai, GPT, "What is the capital of France?")
    assert caught.value.code == "question_not_recorded"
    with pytest.raises(anthropic.NotFoundError, match=r"its own 100 questions .* `steer-llm simulate --list`"):
        await clients.anthropic.messages.create(
            model=CLAUDE, max_tokens=9, messages=[{"role": "user", "content": "What is the capital of France?"}]
        )


async def test_a_model_outside_the_recording_is_not_found(clients: Clients) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(clients.openai, "gpt-9")
    assert caught.value.code == "model_not_found"


async def test_the_models_are_listed_and_described_in_either_format(clients: Clients) -> None:
    assert [model.id async for model in clients.openai.models.list()] == ["demo", *shipped_recording().models]
    assert [model.id async for model in clients.anthropic.models.list()] == ["demo", *shipped_recording().models]
    assert (await clients.openai.models.retrieve("Llama-3.1-405B-Inst@sambanova")).id == "Llama-3.1-405B-Inst@sambanova"
    assert (await clients.anthropic.models.retrieve(CLAUDE)).id == CLAUDE


async def test_the_pool_names_a_question_that_it_can_be_asked(clients: Clients) -> None:
    described = (await clients.openai.models.retrieve("demo")).model_dump()
    assert described["first_question"] == {"id": FIRST.id, "text": FIRST.text}
    assert await ask(clients.openai, "demo", described["first_question"]["text"])


async def test_an_answer_says_that_it_is_recorded_and_whether_it_is_the_whole_reply(clients: Clients) -> None:
    said = []
    for model in (GPT, "gpt-4-0314"):
        reply = await clients.openai.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": QUESTION}]
        )
        said.append((reply.headers["x-simulated"], reply.headers["x-simulated-answer"]))
    assert said == [("crux", "raw"), ("crux", "extracted")]


async def test_rate_limit_headers_are_there_in_each_format(clients: Clients) -> None:
    one = await clients.openai.chat.completions.with_raw_response.create(
        model=GPT, messages=[{"role": "user", "content": QUESTION}]
    )
    other = await clients.anthropic.messages.with_raw_response.create(
        model=CLAUDE, max_tokens=9, messages=[{"role": "user", "content": QUESTION}]
    )
    assert int(one.headers["x-ratelimit-remaining-requests"]) > 0
    assert int(other.headers["anthropic-ratelimit-tokens-remaining"]) > 0
    assert "T" in other.headers["anthropic-ratelimit-requests-reset"]


async def test_a_request_that_cannot_be_read_is_a_400(clients: Clients) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        await clients.openai.chat.completions.create(model=GPT, messages=[])
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        await clients.anthropic.messages.create(model=CLAUDE, max_tokens=9, messages=[])


async def test_what_is_not_served_is_a_404_that_lists_what_is(clients: Clients) -> None:
    with pytest.raises(openai.NotFoundError, match="POST /v1/chat/completions"):
        await clients.openai.embeddings.create(model=GPT, input="x")


async def test_two_servers_give_the_same_answers_and_ids() -> None:
    seen = []
    for _ in range(2):
        async with SimulatedServer() as server, Clients(server.base_url) as clients:
            reply = await clients.openai.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": QUESTION}]
            )
            seen.append((reply.id, reply._request_id, reply.model, reply.choices[0].message.content))
    assert seen[0] == seen[1]
