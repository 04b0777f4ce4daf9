"""What every store promises, on the real thing."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import KINDS, Place, Step, all_of, compare

from steer_llm_sdk.errors import StoreTooNew
from steer_llm_sdk.reliability.stores import Claim, Store

Pair = tuple[Store, Store]
LEASE, TTL = 20.0, 900.0


def asks(store: Store, key: str = "k", fingerprint: str = "f") -> asyncio.Future[Claim]:
    return asyncio.ensure_future(store.claim(key, fingerprint, LEASE, TTL))


async def test_the_first_to_claim_a_key_holds_it_and_the_others_are_told_for_how_long(place: Place, pair: Pair) -> None:
    one, other = pair
    assert (await asks(one)).kind == "ours"
    place.advance(5)
    assert await asks(other) == Claim("theirs", left=LEASE - 5)


@pytest.mark.parametrize("result", [b"null", b'""', '{"a": "ä 😀 \\u0000", "b": [1.5, "%s"]}'.encode()])
async def test_a_settled_key_gives_the_bytes_that_were_settled(pair: Pair, result: bytes) -> None:
    one, other = pair
    token = (await asks(one)).token
    assert await one.settle("k", token, result)
    assert await asks(other) == Claim("settled", token, result)


@pytest.mark.parametrize("state", ["claimed", "lapsed", "settled"])
async def test_another_fingerprint_is_a_conflict_whatever_the_state(place: Place, pair: Pair, state: str) -> None:
    one, other = pair
    token = (await asks(one)).token
    if state == "lapsed":
        place.advance(LEASE + 1)
    if state == "settled":
        await one.settle("k", token, b"1")
    assert (await asks(other, fingerprint="g")).kind == "conflict"


async def test_a_released_key_is_free_for_any_request_and_its_next_token_is_newer(pair: Pair) -> None:
    one, other = pair
    token = (await asks(one)).token
    assert await one.release("k", token)
    again = await asks(other, fingerprint="g")
    assert again.kind == "ours"
    assert again.token > token


async def test_an_owner_without_a_sign_of_life_is_succeeded_after_its_lease(place: Place, pair: Pair) -> None:
    one, other = pair
    await asks(one)
    place.advance(LEASE - 0.001)
    assert (await asks(other)).kind == "theirs"
    place.advance(0.001)
    assert (await asks(other)).kind == "ours"


async def test_a_lease_that_is_renewed_goes_on(place: Place, pair: Pair) -> None:
    one, other = pair
    token = (await asks(one)).token
    place.advance(15)
    assert await one.renew("k", token, LEASE)
    place.advance(15)
    assert (await asks(other)).kind == "theirs"


async def test_a_zombie_writes_nothing(place: Place, pair: Pair) -> None:
    one, other = pair
    zombie = (await asks(one)).token
    place.advance(LEASE)
    heir = (await asks(other)).token
    assert not await one.settle("k", zombie, b'"late"')
    assert not await one.renew("k", zombie, LEASE)
    assert not await one.release("k", zombie)
    assert await other.settle("k", heir, b'"right"')
    assert not await one.settle("k", zombie, b'"later still"')
    assert not await one.release("k", zombie)
    assert (await asks(one)).result == b'"right"'


async def test_an_owner_whom_nobody_succeeded_may_settle_until_the_key_is_forgotten(place: Place, pair: Pair) -> None:
    one, _ = pair
    first, second = (await asks(one, "a")).token, (await asks(one, "b")).token
    place.advance(LEASE + TTL - 1)
    assert await one.settle("a", first, b"1")
    place.advance(1)
    assert not await one.settle("b", second, b"1")


async def test_a_result_is_forgotten_after_its_time_counted_from_the_end_of_the_work(place: Place, pair: Pair) -> None:
    one, other = pair
    token = (await asks(one)).token
    place.advance(LEASE - 1)
    await one.settle("k", token, b"1")
    place.advance(TTL - 1)
    assert (await asks(other)).kind == "settled"
    place.advance(1)
    assert (await asks(other, fingerprint="g")).kind == "ours"


@pytest.mark.parametrize(
    "key", ["{a}b", "a:b%sc %(d)s", "\x00", "'; DROP TABLE steer_keys; --", "😀" * 512, "a" * 7000, "{" * 9, "\n"]
)
async def test_a_key_is_any_text(pair: Pair, key: str) -> None:
    one, other = pair
    token = (await asks(one, key)).token
    assert (await asks(other, key + ".")).kind == "ours"
    assert (await asks(other, key)).kind == "theirs"
    assert await one.settle(key, token, b"1")
    assert (await asks(other, key)).result == b"1"


async def test_of_many_who_claim_at_once_one_gets_the_key(pair: Pair) -> None:
    for key in "abcde":
        claims = await all_of(*(store.claim(key, "f", LEASE, TTL) for store in pair * 20))
        assert sorted(claim.kind for claim in claims) == ["ours", *["theirs"] * 39]


async def test_of_many_who_come_after_a_lease_one_gets_the_key(place: Place, pair: Pair) -> None:
    for key in "abcde":
        await asks(pair[0], key)
        place.advance(LEASE)
        claims = await all_of(*(store.claim(key, "f", LEASE, TTL) for store in pair * 20))
        assert sorted(claim.kind for claim in claims) == ["ours", *["theirs"] * 39]


@pytest.mark.parametrize("place", KINDS[1:], indirect=True)
async def test_who_waits_makes_the_key_wanted(place: Place, pair: Pair) -> None:
    one, other = pair
    token = (await asks(one)).token
    assert await one.wanted("k", token) == 0
    async with other.watch("k", 30):
        assert await one.wanted("k", token) == 30
    async with other.watch("k", 10):
        assert await one.wanted("k", token) == 30
    place.advance(31)
    assert await one.wanted("k", token) == 0
    assert await one.wanted("k", token + 1) == 0
    assert await one.wanted("other", token) == 0


@pytest.mark.parametrize("place", KINDS[1:], indirect=True)
async def test_a_value_of_a_newer_version_is_refused_with_a_sentence(place: Place, pair: Pair) -> None:
    one, other = pair
    await one.settle("k", (await asks(one)).token, b"1")
    place.make_newer("k")
    with pytest.raises(StoreTooNew, match=r"value of key 'k' has version 99, .* up to version 1; upgrade"):
        await asks(other)
    assert (await asks(other, "another")).kind == "ours"


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("claim"),
            st.tuples(st.sampled_from("fffg"), st.sampled_from([1.0, 2.0]), st.sampled_from([1.0, 3.0])),
        ),
        st.tuples(st.sampled_from(["renew", "settle", "release"]), st.integers(0, 5)),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 1.0, 2.0, 3.0, -0.5])),
    ),
    min_size=4,
    max_size=16,
)


async def test_it_does_what_the_model_does(place: Place, pair: Pair) -> None:
    schedules: list[list[Step]] = []

    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
    @given(steps)
    def collect(schedule: list[Step]) -> None:
        schedules.append(schedule)

    collect()
    for number, schedule in enumerate(schedules):
        await compare(place, pair, f"key {number}", schedule)
