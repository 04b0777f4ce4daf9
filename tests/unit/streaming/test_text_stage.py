"""The stage: of several attempts a reader sees one, and in the end the one that was chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.streaming.text import Screen, Speaker, Stage, Voice
from steer_llm_sdk.testing import run_in_virtual_time


class Reader:
    """Goes by the rule: add each text, drop all of it at a `restart`."""

    def __init__(self) -> None:
        self.text = ""
        self.restarts: list[Any] = []

    def tell(self, event: StreamEvent) -> None:
        assert isinstance(event, StreamDeltaEvent)
        if isinstance(event.delta, str):
            self.text += event.delta
        else:
            assert event.delta["event_type"] == "restart"
            self.restarts.append(event.delta["data"])
            self.text = ""


def stage() -> tuple[Reader, Stage]:
    reader = Reader()
    return reader, Stage(Screen(reader.tell))


def begun(on: Stage, name: str = "m") -> Voice:
    return on.begin(Speaker({"model": name}))


async def test_an_attempt_beside_the_one_that_is_shown_is_kept_back() -> None:
    reader, on = stage()
    first, second = begun(on), begun(on)
    first.say("one ")
    second.say("another ")
    first.say("two")
    assert (reader.text, reader.restarts) == ("one two", [])


async def test_a_silent_attempt_does_not_keep_back_the_one_that_speaks() -> None:
    reader, on = stage()
    _, second = begun(on), begun(on)
    second.say("yes")
    assert (reader.text, reader.restarts) == ("yes", [])


async def test_when_the_one_that_is_shown_fails_the_other_is_shown_from_its_beginning() -> None:
    reader, on = stage()
    first, second = begun(on, "a"), begun(on, "b")
    first.say("wro")
    second.say("ri")
    first.fail()
    assert (reader.text, reader.restarts) == ("ri", [{"model": "b", "chunks": 1}])
    second.say("ght")
    assert reader.text == "right"


async def test_the_winner_is_shown_whole_after_a_restart_if_another_s_text_was_shown() -> None:
    reader, on = stage()
    first, second = begun(on, "a"), begun(on, "b")
    first.say("slow")
    second.say("fast ")
    second.say("answer")
    reply = object()
    second.returned(reply)
    assert reader.text == "slow"
    on.choose(reply)
    assert (reader.text, len(reader.restarts)) == ("fast answer", 1)


async def test_a_loser_that_goes_on_speaking_is_not_heard() -> None:
    reader, on = stage()
    first, second = begun(on), begun(on)
    first.say("yes")
    reply = object()
    first.returned(reply)
    on.choose(reply)
    second.say("no")
    assert (reader.text, reader.restarts) == ("yes", [])


async def test_a_winner_that_said_nothing_takes_back_what_was_shown() -> None:
    reader, on = stage()
    begun(on).say("wrong")
    on.choose(object())
    assert (reader.text, reader.restarts) == ("", [{"chunks": 1}])


async def test_a_winner_that_said_nothing_leaves_no_room_for_a_loser() -> None:
    reader, on = stage()
    first, second = begun(on), begun(on)
    reply = object()
    first.returned(reply)
    on.choose(reply)
    second.say("no")
    assert reader.text == ""


async def test_a_failed_attempt_that_goes_on_speaking_is_not_heard() -> None:
    reader, on = stage()
    first = begun(on)
    first.say("a")
    first.fail()
    first.say("b")
    assert reader.text == "a"


async def test_cancelled_work_that_goes_on_speaking_is_replaced_by_the_next_attempt() -> None:
    reader, on = stage()
    voices: list[Voice] = []

    async def deaf() -> None:
        voices.append(begun(on))
        voices[0].say("a")
        while True:
            try:
                await asyncio.sleep(1)
                return
            except asyncio.CancelledError:
                voices[0].say("b")

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    second = begun(on)
    second.say("x")
    voices[0].say("c")
    second.say("y")
    assert (reader.text, len(reader.restarts)) == ("xy", 1)
    await task


async def test_cancelled_work_that_still_answers_and_is_chosen_is_shown_whole() -> None:
    reader, on = stage()
    voices: list[Voice] = []
    reply = object()

    async def late() -> None:
        voices.append(begun(on))
        voices[0].say("a")
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            voices[0].say("b")
            assert reader.text == "a"
            voices[0].returned(reply)

    task = asyncio.create_task(late())
    await asyncio.sleep(0)
    task.cancel()
    await task
    on.choose(reply)
    assert (reader.text, len(reader.restarts)) == ("ab", 1)


async def test_a_limit_of_the_attempt_s_own_is_no_end_of_it() -> None:
    reader, on = stage()
    voice = begun(on)
    try:
        async with asyncio.timeout(0.1):
            voice.say("a")
            try:
                await asyncio.sleep(1)
            finally:
                voice.say("b")
    except TimeoutError:
        voice.say("c")
    assert reader.text == "abc"


async def test_an_attempt_within_an_attempt_takes_back_its_own_text_only() -> None:
    reader, on = stage()
    outer = begun(on)
    outer.say("Hello, ")
    inner = Stage(outer)
    first = begun(inner)
    first.say("wor")
    first.fail()
    second = begun(inner)
    second.say("world")
    outer.say("!")
    assert (reader.text, len(reader.restarts)) == ("Hello, world!", 1)


async def test_two_stages_side_by_side_take_back_their_own_text_only() -> None:
    reader, on = stage()
    outer = begun(on)
    left, right = Stage(outer), Stage(outer)
    one, other = begun(left), begun(right)
    one.say("l")
    other.say("r")
    one.fail()
    begun(left).say("L")
    assert reader.text == "rL"


async def test_text_of_a_part_that_came_to_nothing_is_taken_back_before_the_next() -> None:
    reader, on = stage()
    outer = begun(on)
    part = Stage(outer)
    voice = begun(part)
    voice.say("half an ans")
    voice.fail()
    part.void()
    assert (reader.text, reader.restarts) == ("half an ans", [])
    outer.say("whole")
    assert (reader.text, len(reader.restarts)) == ("whole", 1)


async def test_a_part_that_came_to_nothing_is_taken_back_when_the_whole_returns() -> None:
    reader, on = stage()
    outer = begun(on)
    part = Stage(outer)
    begun(part).say("half")
    part.void()
    outer.returned(object())
    assert reader.text == ""


Moves = list[tuple[str, int]]
MOVES = st.lists(
    st.tuples(st.sampled_from(["begin", "say", "say", "say", "fail", "return", "choose"]), st.integers(0, 5)),
    max_size=60,
)


@given(MOVES)
def test_whatever_happens_a_reader_has_the_beginning_of_one_attempt_and_the_chosen_one_in_the_end(moves: Moves) -> None:
    run_in_virtual_time(_play(moves))


async def _play(moves: Sequence[tuple[str, int]]) -> None:
    reader, on = stage()
    voices: list[Voice] = []
    said: list[str] = []
    replies: dict[int, object] = {}
    over: set[int] = set()
    for number, (move, which) in enumerate(moves):
        if move == "begin":
            voices.append(begun(on))
            said.append("")
        elif not voices:
            continue
        else:
            place = which % len(voices)
            voice = voices[place]
            if move == "say":
                voice.say(f"{place}:{number} ")
                said[place] += "" if place in over else f"{place}:{number} "
            elif move == "fail" and place not in over and place not in replies:
                voice.fail()
                over.add(place)
            elif move == "return" and place not in over and place not in replies:
                replies[place] = object()
                voice.returned(replies[place])
            elif move == "choose" and place in replies:
                on.choose(replies[place])
                if place not in over:
                    assert reader.text == said[place]
                over.update(range(len(voices)))
                over.discard(place)
        assert any(text.startswith(reader.text) for text in [*said, ""])


@given(MOVES)
def test_text_that_is_shown_of_two_attempts_is_never_mixed(moves: Moves) -> None:
    async def play() -> None:
        reader, on = stage()
        voices: list[Voice] = []
        for move, which in moves:
            if move == "begin":
                voices.append(begun(on, str(len(voices))))
            elif voices and move == "say":
                voices[which % len(voices)].say(f"{which % len(voices)} ")
            elif voices and move == "fail":
                voices[which % len(voices)].fail()
            assert len(set(reader.text.split())) <= 1

    run_in_virtual_time(play())
