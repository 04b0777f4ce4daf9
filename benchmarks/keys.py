"""Whether the time that an API key takes tells how much of it was right.

    python benchmarks/keys.py [--rounds N] [--keys N]

What is given is looked up in a ring of keys: one of them, and others that are right at one end only. "Hash" cases are
right in the hash, which is what is compared: whoever could choose those would see most. All cases take turns in one
process, in an order that is drawn anew for each round; medians of a look-up, in nanoseconds of wall time. Exit code 1
where two medians differ by more than 2 %, as they do where a look-up ends at the key that it finds.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time

from steer_llm_sdk.service.keys import PREFIX, Key, KeyRing, digest, new_key

LIMIT = 0.02


def made(count: int) -> tuple[KeyRing, list[str]]:
    pairs = [new_key() for _ in range(count)]
    keys = tuple(Key(tenant=f"t{number}", sha256=hashed) for number, (_, hashed) in enumerate(pairs))
    return KeyRing(keys), [secret for secret, _ in pairs]


def with_hash(right: str, *, first: int = 0, last: int = 0) -> str:
    """A secret whose hash is that of `right` in so many hex digits."""
    while True:
        secret, hashed = new_key()
        if hashed[:first] == right[:first] and hashed[64 - last :] == right[64 - last :]:
            return secret


def other(letter: str) -> str:
    return "A" if letter != "A" else "B"


def cases(secrets: list[str]) -> dict[str, str]:
    one = secrets[0]
    right = digest(one)
    body = len(PREFIX)
    return {
        "there, the first key": one,
        "there, the last key": secrets[-1],
        "nowhere": new_key()[0],
        "right but for the first letter": PREFIX + other(one[body]) + one[body + 1 :],
        "right but for the last letter": one[:-1] + other(one[-1]),
        "hash right in 3 digits at the front": with_hash(right, first=3),
        "hash right in 3 digits at the end": with_hash(right, last=3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=20)
    asked = parser.parse_args()
    ring, secrets = made(asked.keys)
    given = cases(secrets)
    times: dict[str, list[int]] = {name: [] for name in given}
    order = list(given)
    gc.disable()
    for _ in range(asked.rounds):
        random.shuffle(order)
        for name in order:
            secret = given[name]
            began = time.perf_counter_ns()
            ring.find(secret)
            times[name].append(time.perf_counter_ns() - began)
    print(f"{asked.keys} keys, {asked.rounds} rounds")
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in medians.items():
        print(f"  {median:8.0f} ns  {name}")
    apart = max(medians.values()) / min(medians.values()) - 1
    print(f"{100 * apart:.1f} % apart")
    sys.exit(1 if apart > LIMIT else 0)


if __name__ == "__main__":
    main()
