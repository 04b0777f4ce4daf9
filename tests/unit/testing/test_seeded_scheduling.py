"""Seeded scheduling: another order for another seed, the same for the same, and only where an order is not promised."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys

from steer_llm_sdk.testing import VirtualTimeLoop, run_in_virtual_time

SEEDS = range(40)


async def order_of_tasks(count: int = 4) -> list[int]:
    order: list[int] = []

    async def say(n: int) -> None:
        order.append(n)

    await asyncio.gather(*(say(n) for n in range(count)))
    return order


def test_without_a_seed_tasks_run_in_the_order_in_which_they_were_made() -> None:
    assert run_in_virtual_time(order_of_tasks()) == [0, 1, 2, 3]


def test_over_many_seeds_every_order_of_three_ready_tasks_comes_up() -> None:
    seen = {tuple(run_in_virtual_time(order_of_tasks(3), seed=seed)) for seed in SEEDS}
    assert len(seen) == 6


def test_the_same_seed_gives_the_same_order() -> None:
    for seed in SEEDS:
        assert run_in_virtual_time(order_of_tasks(9), seed=seed) == run_in_virtual_time(order_of_tasks(9), seed=seed)


def test_timers_that_are_due_at_the_same_time_fire_in_any_order_and_others_in_theirs() -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        order: list[str] = []
        for name, delay in (("a", 1), ("b", 1), ("later", 2), ("sooner", 0.5)):
            loop.call_later(delay, order.append, name)
        await asyncio.sleep(3)
        return order

    assert {tuple(run_in_virtual_time(main(), seed=seed)) for seed in SEEDS} == {
        ("sooner", "a", "b", "later"),
        ("sooner", "b", "a", "later"),
    }


def test_tasks_that_wake_at_the_same_time_go_on_in_either_order() -> None:
    async def main() -> list[str]:
        order: list[str] = []

        async def sleep(name: str) -> None:
            await asyncio.sleep(1)
            order.append(name)

        await asyncio.gather(sleep("a"), sleep("b"))
        return order

    assert {tuple(run_in_virtual_time(main(), seed=seed)) for seed in SEEDS} == {("a", "b"), ("b", "a")}


def test_callbacks_keep_their_order() -> None:
    async def main() -> tuple[list[int], list[int]]:
        loop = asyncio.get_running_loop()
        soon: list[int] = []
        done: list[int] = []
        future: asyncio.Future[None] = loop.create_future()
        for n in range(5):
            loop.call_soon(soon.append, n)
            future.add_done_callback(lambda _, n=n: done.append(n))  # type: ignore[misc]
        future.set_result(None)
        await asyncio.sleep(1)
        return soon, done

    for seed in SEEDS:
        assert run_in_virtual_time(main(), seed=seed) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_nothing_moves_from_one_turn_to_another() -> None:
    async def main() -> list[tuple[int, int]]:
        order: list[tuple[int, int]] = []

        async def steps(n: int) -> None:
            for turn in range(3):
                order.append((turn, n))
                await asyncio.sleep(0)

        await asyncio.gather(*(steps(n) for n in range(3)))
        return order

    for seed in SEEDS:
        turns = [turn for turn, _ in run_in_virtual_time(main(), seed=seed)]
        assert turns == sorted(turns)


def test_a_lock_a_queue_and_a_socket_work_in_any_order() -> None:
    async def main() -> tuple[int, list[int], bytes]:
        lock, queue = asyncio.Lock(), asyncio.Queue[int](maxsize=2)
        inside = most = 0

        async def careful() -> None:
            nonlocal inside, most
            async with lock:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        async def put() -> None:
            for n in range(5):
                await queue.put(n)

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()

        await asyncio.gather(put(), *(careful() for _ in range(5)), got := asyncio.ensure_future(_take(queue, 5)))
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"over the wire")
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return most, got.result(), answer

    for seed in range(8):
        assert run_in_virtual_time(main(), seed=seed) == (1, [0, 1, 2, 3, 4], b"over the wire")


def test_check_then_act_with_an_await_between_is_found_by_some_seed_and_by_no_fixed_order() -> None:
    """First in, first out hides the race: there, the check of the one always comes before that of the other."""

    async def main() -> int:
        left = 1

        async def take(first: bool) -> None:
            nonlocal left
            if first:
                left = max(0, left - 1)
            elif left:
                await asyncio.sleep(0)
                left -= 1

        await asyncio.gather(take(True), take(False))
        return left

    assert run_in_virtual_time(main()) == 0
    assert {run_in_virtual_time(main(), seed=seed) for seed in SEEDS} == {0, -1}


def test_jitter_repeats_with_the_seed_and_the_module_random_goes_on_where_it_was() -> None:
    async def draw() -> float:
        return random.random()

    random.seed(5)
    expected = [random.random(), random.random()]
    random.seed(5)
    first = random.random()
    drawn = [run_in_virtual_time(draw(), seed=seed) for seed in (1, 1, 2)]
    assert [first, random.random()] == expected
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_seed_means_the_same_in_every_process() -> None:
    """The order of a set of tasks differs from process to process; what a seed makes of it does not."""
    code = """
import asyncio
from steer_llm_sdk.testing import run_in_virtual_time

async def main():
    order = []
    async def wait(n):
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            order.append(n)
            raise
    tasks = {asyncio.ensure_future(wait(n)) for n in range(8)}
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return order

print([run_in_virtual_time(main(), seed=seed) for seed in range(5)])
"""
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
        for _ in range(2)
    }
    assert len(said) == 1


def test_a_loop_of_its_own_takes_the_seed() -> None:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed=3)) as runner:
        assert runner.run(order_of_tasks(9)) == run_in_virtual_time(order_of_tasks(9), seed=3)


async def _take(queue: asyncio.Queue[int], count: int) -> list[int]:
    return [await queue.get() for _ in range(count)]
