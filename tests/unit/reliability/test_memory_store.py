"""MemoryStore: claim, renew, settle, release; tokens, leases, memory that ends."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from steer_llm_sdk.reliability.stores import POLL, Claim
from steer_llm_sdk.reliability.stores.memory import MemoryStore


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Table:
    """A store and its clock."""

    max_entries: int = 1000
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.max_entries, self.clock)

    async def claim(self, key: str = "k", fingerprint: str = "f", lease: float = 10, ttl: float = 100) -> Claim:
        return await self.store.claim(key, fingerprint, lease, ttl)

    async def ours(self, key: str = "k", fingerprint: str = "f") -> int:
        claim = await self.claim(key, fingerprint)
        assert claim.kind == "ours"
        return claim.token


async def test_the_first_to_claim_a_key_holds_it_and_the_others_wait() -> None:
    table = Table()
    assert [(await table.claim()).kind for _ in range(3)] == ["ours", "theirs", "theirs"]


async def test_who_waits_is_told_how_long_the_lease_still_lasts() -> None:
    table = Table()
    assert await table.claim() == Claim("ours", 1)
    table.clock.now = 4
    assert await table.claim() == Claim("theirs", left=6)


async def test_an_owner_who_is_forgotten_cannot_write_renew_or_release() -> None:
    table = Table()
    token = await table.ours()
    table.clock.now = 110
    assert not await table.store.settle("k", token, b"r")
    assert not await table.store.renew("k", token, 10)
    assert not await table.store.release("k", token)


async def test_a_settled_key_gives_the_bytes_that_were_settled() -> None:
    table = Table()
    assert await table.store.settle("k", await table.ours(), b"result")
    claim = await table.claim()
    assert (claim.kind, claim.result) == ("settled", b"result")


async def test_an_empty_result_is_a_result() -> None:
    table = Table()
    assert await table.store.settle("k", await table.ours(), b"")
    assert await table.claim() == Claim("settled", 1, b"")


async def test_another_fingerprint_is_a_conflict_whatever_the_state() -> None:
    table = Table()
    token = await table.ours()
    assert (await table.claim(fingerprint="g")).kind == "conflict"
    table.clock.now = 50  # the lease is long over
    assert (await table.claim(fingerprint="g")).kind == "conflict"
    await table.store.settle("k", token, b"r")
    assert (await table.claim(fingerprint="g")).kind == "conflict"


async def test_a_released_key_is_free_for_any_request() -> None:
    table = Table()
    assert await table.store.release("k", await table.ours())
    assert (await table.claim(fingerprint="g")).kind == "ours"


async def test_an_owner_without_a_sign_of_life_is_succeeded_after_its_lease() -> None:
    table = Table()
    first = await table.ours()
    table.clock.now = 9.9
    assert (await table.claim()).kind == "theirs"
    table.clock.now = 10
    assert await table.ours() > first


async def test_a_lease_that_is_renewed_goes_on() -> None:
    table = Table()
    token = await table.ours()
    table.clock.now = 9
    assert await table.store.renew("k", token, 10)
    table.clock.now = 18.9
    assert (await table.claim()).kind == "theirs"


async def test_an_owner_whom_nobody_succeeded_may_still_settle_after_its_lease() -> None:
    table = Table()
    token = await table.ours()
    table.clock.now = 50
    assert await table.store.settle("k", token, b"r")


async def test_a_stale_owner_cannot_write_renew_or_release() -> None:
    table = Table()
    stale = await table.ours()
    table.clock.now = 10
    token = await table.ours()
    assert not await table.store.settle("k", stale, b"old")
    assert not await table.store.renew("k", stale, 100)
    assert not await table.store.release("k", stale)
    assert await table.store.settle("k", token, b"new")
    assert not await table.store.settle("k", stale, b"old")
    assert (await table.claim()).result == b"new"


async def test_what_was_never_claimed_cannot_be_written() -> None:
    store = Table().store
    assert [await store.settle("k", 1, b""), await store.renew("k", 1, 1), await store.release("k", 1)] == [False] * 3


async def test_a_result_is_forgotten_after_its_time_counted_from_the_end_of_the_work() -> None:
    table = Table()
    token = await table.ours()
    table.clock.now = 50
    await table.store.settle("k", token, b"r")
    table.clock.now = 149.9
    assert (await table.claim()).kind == "settled"
    table.clock.now = 150
    assert (await table.claim(fingerprint="g")).kind == "ours"


async def test_a_claim_whose_owner_died_is_forgotten_with_its_time_and_blocks_no_other_request_for_ever() -> None:
    table = Table()
    await table.ours()
    table.clock.now = 109.9
    assert (await table.claim(fingerprint="g")).kind == "conflict"
    table.clock.now = 110
    assert (await table.claim(fingerprint="g")).kind == "ours"


async def test_the_least_recently_used_result_goes_first() -> None:
    table = Table(max_entries=2)
    for key in ("a", "b"):
        await table.store.settle(key, await table.ours(key), b"r")
    await table.claim("a")
    await table.store.settle("c", await table.ours("c"), b"r")
    assert [(await table.claim(key)).kind for key in "acb"] == ["settled", "settled", "ours"]


async def test_a_thousand_results_are_kept_if_nothing_else_is_said() -> None:
    store = MemoryStore()
    for number in range(1001):
        claim = await store.claim(str(number), "f", 10, 100)
        await store.settle(str(number), claim.token, b"r")
    assert [(await store.claim(key, "f", 10, 100)).kind for key in ("1", "0")] == ["settled", "ours"]


async def test_claims_are_never_evicted_and_do_not_count() -> None:
    table = Table(max_entries=1)
    tokens = {str(n): await table.ours(str(n)) for n in range(50)}
    for key, token in tokens.items():
        assert (await table.claim(key)).kind == "theirs"
        assert await table.store.settle(key, token, b"r")
    assert [(await table.claim(key)).kind for key in ("49", "48")] == ["settled", "ours"]


@given(st.lists(st.tuples(st.text(max_size=2), st.text(max_size=1)), max_size=20))
def test_tokens_only_grow(asked: list[tuple[str, str]]) -> None:
    async def main() -> list[int]:
        table = Table()
        claims = [await table.claim(key, fingerprint) for key, fingerprint in asked]
        return [claim.token for claim in claims if claim.kind == "ours"]

    tokens = asyncio.run(main())
    assert tokens == sorted(set(tokens))


class AgainstTheWords(RuleBasedStateMachine):
    """Owners that live, die and come back late; beside them the rules in so many words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.owners: list[tuple[str, str, int]] = []  # key, fingerprint, token; the dead among them
        self.current: dict[str, tuple[int, float]] = {}  # key: its latest token, the end of its lease
        self.results: dict[str, bytes] = {}

    def do(self, coroutine: Any) -> Any:
        # The store never waits, so no loop is needed.
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the store waited")

    @rule(key=st.sampled_from("ab"), fingerprint=st.sampled_from("fg"))
    def claim(self, key: str, fingerprint: str) -> None:
        claim = self.do(self.table.claim(key, fingerprint, 10, 10**9))
        if claim.kind == "ours":
            assert key not in self.results
            assert self.table.clock.now >= self.current.get(key, (0, 0.0))[1]
            assert claim.token > max([token for _, _, token in self.owners], default=0)
            self.current[key] = (claim.token, self.table.clock.now + 10)
            self.owners.append((key, fingerprint, claim.token))
        if claim.kind == "settled":
            assert claim.result == self.results[key]

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.table.clock.now += seconds

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if self.owners:
            key, _, token = data.draw(st.sampled_from(self.owners))
            written = self.do(self.table.store.settle(key, token, str(token).encode()))
            assert written is (self.current.get(key, (0, 0))[0] == token and key not in self.results)
            if written:
                self.results[key] = str(token).encode()

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.owners:
            key, _, token = data.draw(st.sampled_from(self.owners))
            given_back = self.do(self.table.store.release(key, token))
            assert given_back is (self.current.get(key, (0, 0))[0] == token and key not in self.results)
            if given_back:
                del self.current[key]

    @invariant()
    def what_is_settled_never_changes(self) -> None:
        for key, result in self.results.items():
            fingerprint = next(f for k, f, token in self.owners if k == key and str(token).encode() == result)
            assert self.do(self.table.claim(key, fingerprint)) == Claim("settled", int(result), result)


TestAgainstTheWords = AgainstTheWords.TestCase


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Interrupted(str):
    """A key at whose `when`-th look-up another thread comes and does something else, if it is let in."""

    when = 0
    other: threading.Thread

    def __hash__(self) -> int:
        self.when -= 1
        if self.when == 0:
            self.other.start()
            self.other.join(0.05)
        return super().__hash__()

    __eq__ = str.__eq__


@pytest.mark.parametrize("when", range(1, 5))
def test_of_two_threads_that_claim_a_key_in_the_same_moment_one_gets_it(when: int) -> None:
    store, claims = MemoryStore(), list[Claim]()

    def claim(key: str) -> None:
        claims.append(asyncio.run(store.claim(key, "f", 10, 100)))

    key = Interrupted("k")
    key.other, key.when = threading.Thread(target=claim, args=("k",)), when
    claim(key)
    if key.when > 0:  # It was not looked up so often.
        key.other.start()
    key.other.join()
    assert sorted(claim.kind for claim in claims) == ["ours", "theirs"]


@pytest.mark.parametrize("when", range(1, 5))
def test_who_claims_a_key_while_it_is_settled_gets_the_result_or_waits(when: int) -> None:
    store, claims = MemoryStore(), list[Claim]()
    token = asyncio.run(store.claim("k", "f", 10, 100)).token
    key = Interrupted("k")
    key.other = threading.Thread(target=lambda: claims.append(asyncio.run(store.claim("k", "f", 10, 100))))
    key.when = when
    assert asyncio.run(store.settle(key, token, b"r"))
    if key.when > 0:
        key.other.start()
    key.other.join()
    assert claims[0].kind in ("theirs", "settled")
    assert asyncio.run(store.claim("k", "f", 10, 100)).kind == "settled"


def test_a_message_names_it_by_its_url() -> None:
    assert repr(MemoryStore()) == "memory://"


# ── who waits on another event loop ──────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_wanted_as_long_as_the_last_of_those_who_watch_it_will_wait() -> None:
    table = Table()
    store, clock, token = table.store, table.clock, await table.ours()
    assert await store.wanted("k", token) == 0.0
    async with store.watch("k", 5.0):
        assert await store.wanted("k", token) == 5.0
        async with store.watch("k", 8.0), store.watch("other", 50.0):
            assert await store.wanted("k", token) == 8.0
        assert await store.wanted("k", token) == 5.0
        assert await store.wanted("k", token + 1) == await store.wanted("other", token) == 0.0
        clock.now = 4.0
        assert await store.wanted("k", token) == 1.0
        clock.now = 6.0
        assert await store.wanted("k", token) == 0.0
    clock.now = 0.0
    assert await store.wanted("k", token) == 0.0


async def test_who_was_succeeded_is_not_waited_for() -> None:
    table = Table()
    before = await table.ours()
    async with table.store.watch("k", 50.0):
        table.clock.now = 11.0
        after = await table.ours()
        assert (await table.store.wanted("k", before), await table.store.wanted("k", after)) == (0.0, 39.0)


@pytest.mark.parametrize(("most", "after"), [(0.01, 0.01), (7.0, POLL)])
async def test_who_watches_looks_again_every_50_ms_or_sooner(most: float, after: float) -> None:
    loop = asyncio.get_running_loop()
    async with MemoryStore().watch("k", 5.0) as changed:
        began = loop.time()
        await changed(most)
        assert loop.time() - began == pytest.approx(after)
