"""The reducers, changed a little in one place at a time by mutmut: the unit tests must notice each change.

    sh scripts/prove mutation [MODULE…] [--function WORDS] [--list]

It works on a copy, on one core, at low priority. A change that no test notices survives. Those that change nothing
which anybody could see stand in EQUIVALENT, each with the reason; any other survivor is a gap in the tests. So is a
reason that is needed no more. mutmut does not change properties, nor the defaults of fields and constants of a module.

mutmut makes the changes. The tests are run from here: they are collected once, and each change gets a fork of that
process, which takes a tenth of the time that a start of pytest does.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "steer_llm_sdk.reliability"
CPU_SECONDS, SECONDS = 20.0, 300
"""When the tests of a change have not ended by then, they never will: they are noticed to hang."""


@dataclass(frozen=True)
class Module:
    """`tests` below tests/unit/reliability, without `test_` and `.py`. `only`: the classes and functions that count.
    `slow`: tests with these words in their name are left out."""

    name: str
    tests: Sequence[str]
    only: Sequence[str] = ()
    slow: Sequence[str] = ("no_short_history", "no_history_of_any_configuration")

    @property
    def file(self) -> Path:
        return Path("src", *PACKAGE.split("."), *self.name.split(".")).with_suffix(".py")


MODULES = (
    Module("circuit", ("circuit_reducer", "circuit_breaker_object")),
    Module("tally", ("tally", "circuit_reducer", "circuit_breaker_object")),
    Module(
        "budget",
        ("ledger", "budget_accounts"),
        ("Budget", "picos", "Claim", "Account", "window", "excess"),
    ),
    Module("retry_budget", ("retry_budget",)),
    Module("retry", ("retry_policy", "retry_after", "policies_alone"), ("RetryPolicy", "AttemptLimit")),
    Module("hedging", ("hedging",), ("HedgingPolicy", "Latencies")),
    Module("stores.memory", ("memory_store",)),
    Module(
        "rate_limit",
        ("rate_limit_reducer", "rate_limiter"),
        (
            *("Bucket", "State", "admit", "enqueue", "due_at", "finish", "withdraw"),
            *("block", "heed", "_learned", "advance", "wake_at", "_shorter"),
        ),
        ("the_account_agrees", "in_no_minute_more_goes", "whoever_is_patient", "round_robin"),
    ),
)


@dataclass(frozen=True)
class Change:
    """The lines of a function (`Class.method`) that go, and those that come in their place."""

    function: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.function}\n    - {self.old}\n    + {self.new}"


ONE_BY_ONE = "first attempts go into the window one by one and not together; it takes longer, the sums are the same"

_SLICE = "if count is None or not count.begins <= now < count.ends:"

_ENDS = "ends = counted.ends if isinstance(counted, _Count) else (counted.slice + 1) * self._slice"
_OVER = "return asyncio.get_running_loop().time() >= ends + self._config.window"

LANE = "of that lane the time and the relapses are taken, and nothing else"

EITHER = "where both are the same, either will do"

_PICOS = "return round(usd * _PICO) if 0 < usd < math.inf else None"
_CLAIM = "return _new(cls, (tokens if tokens > 0 else 0, picos(usd)))"
_OUTSIDE = "if per is not None and not self.starts <= now < self.ends:"
_OUTSIDE_TOO = _OUTSIDE.replace("per is", "limits.per is")
_TOKENS = "or (most_tokens is not None and spent_tokens + reserved_tokens > most_tokens)"
_USD = "or (most_usd is not None and (usd is None or spent_usd + reserved_usd > most_usd))"
IN_ITS_WINDOW = "`at` looks again, and gives an account that is in its window, or has none, back as it is"
LOOKED_AT_AGAIN = "whether it is really refused is up to `_refusal`, which goes by what is more"

EQUIVALENT: dict[str, dict[Change, str]] = {
    "circuit": {
        Change(
            "Circuit.state",
            "own = None if part is None else self.narrowed.get(part)",
            "own = None if (part is None) and False else self.narrowed.get(part)",
        ): "no part is called None, so that there is no lane to be found either",
        Change(
            "Circuit._tripped",
            "lane = self.recovered.get(part, Closed(0)).tripped(trip.parts, now, asked, cfg)",
            "lane = self.recovered.get(part, Closed(0)).tripped(None, now, asked, cfg)",
        ): LANE,
        Change(
            "Circuit._tripped",
            "lane = self.recovered.get(part, Closed(0)).tripped(trip.parts, now, asked, cfg)",
            "lane = self.recovered.get(part, Closed(1)).tripped(trip.parts, now, asked, cfg)",
        ): LANE,
        Change(
            "Circuit._admit_part",
            "return self._with_part(part, lane, cfg), Permit(generation, part, self.serial)",
            "return self._with_part(part, lane, None), Permit(generation, part, self.serial)",
        ): "the configuration is looked at where the lane has closed, and one with a probe under way has not",
    },
    "tally": {
        Change("Rates.add", "if number > self.newest:", "if number >= self.newest:"): (
            "from the newest slice to itself there is none to turn to"
        ),
        Change(
            "Rates._turn",
            "for turned in range(max(self.newest + 1, number - SLICES + 1), number + 1):",
            "for turned in range(max(self.newest + 1, number - SLICES - 1), number + 1):",
        ): "after a jump over the whole ring two slices are emptied twice",
        Change(
            "Tally.succeeded",
            "return self._rated(part, now, cfg, False, slow)",
            "return self._rated(part, now, cfg, None, slow)",
        ): "None is as false as False",
    },
    "rate_limit": {
        Change(
            "Bucket.since",
            "return full if full > self.empty_at else self.empty_at",
            "return full if full >= self.empty_at else self.empty_at",
        ): EITHER,
        Change("Bucket.less", "if full > since:", "if full >= since:"): EITHER,
        Change(
            "Bucket.less",
            "if since + (amount if amount < capacity else capacity) / per_second > now + _EARLY:",
            "if since + (amount if amount <= capacity else capacity) / per_second > now + _EARLY:",
        ): EITHER,
        Change(
            "due_at",
            "ahead = state.line.tokens if place == len(waiters) else "
            "math.fsum(each.tokens for each in waiters[:place])",
            "ahead = state.line.tokens if (place == len(waiters)) and False else "
            "math.fsum(each.tokens for each in waiters[:place])",
        ): "what the line says of its tokens is their sum, and spares adding them up",
        Change(
            "advance",
            "line = line._replace(soonest=min((waiter.latest for waiter in waiters), default=math.inf))",
            "line = line._replace(soonest=min((waiter.latest for waiter in waiters), default=None))",
        ): "of a line in which nobody is left nothing but its count of arrivals is kept",
    },
    "budget": {
        Change("Account.at", "if now < self.starts:", "if now <= self.starts:"): (
            "at its start the window has not ended, so the account has been returned as it is before this is asked"
        ),
        Change(
            "window",
            "return first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()",
            "return first.timestamp(), (first + timedelta(days=33)).replace(day=1).timestamp()",
        ): "from the first of a month, 32 days later and 33 days later are both in the next one",
        Change("picos", _PICOS, _PICOS.replace("0 <", "0 <=")): "0 has been returned by then",
        Change("Claim.of", _CLAIM, _CLAIM.replace("> 0", ">= 0")): EITHER,
        Change("Account.reserve", _OUTSIDE, _OUTSIDE.replace("None and", "None or")): IN_ITS_WINDOW,
        Change("Account.reserve", _OUTSIDE, _OUTSIDE.replace("starts <=", "starts <")): IN_ITS_WINDOW,
        Change("Account.settle", _OUTSIDE_TOO, _OUTSIDE_TOO.replace("None and", "None or")): IN_ITS_WINDOW,
        Change("Account.settle", _OUTSIDE_TOO, _OUTSIDE_TOO.replace("starts <=", "starts <")): IN_ITS_WINDOW,
        Change("Account.reserve", _TOKENS, _TOKENS.replace("> most", ">= most")): LOOKED_AT_AGAIN,
        Change("Account.reserve", _USD, _USD.replace("> most", ">= most")): LOOKED_AT_AGAIN,
        Change(
            "Account._refusal", "if self.overrun or usd > limits.usd:", "if self.overrun or usd >= limits.usd:"
        ): "it is asked where one of the two limits is passed, and by then it is not that of tokens",
    },
    "retry_budget": {
        Change("RetryBudget.first", "count = self._counts.get(target)", "count = None"): ONE_BY_ONE,
        Change("RetryBudget.first", "count = self._counts.get(target)", "count = self._counts.get(None)"): ONE_BY_ONE,
        Change("RetryBudget.first", _SLICE, _SLICE.replace("<=", "<")): ONE_BY_ONE,
        Change("RetryBudget.first", _SLICE, _SLICE.replace("now <", "now <=")): "they end in one moment",
        Change("RetryBudget._is_over", _ENDS, _ENDS.replace("+ 1", "+ 2")): "it is forgotten a slice later",
        Change("RetryBudget._is_over", _OVER, _OVER.replace(">=", ">")): "it is forgotten a moment later",
    },
    "stores.memory": {
        Change("MemoryStore.settle_now", "finished.popitem(last=False)", "finished.popitem(last=None)"): (
            "None is as false as False"
        ),
    },
}
"""By module, the changes that nobody could notice, and why."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(each.name for each in MODULES))
    options.add_argument("--function", default="", help="only those whose name has these words")
    options.add_argument("--list", action="store_true", help="print the equivalent changes with the reasons, and stop")
    given = options.parse_args()
    unknown = set(given.modules) - {each.name for each in MODULES}
    if unknown:
        options.error(f"no such module: {', '.join(sorted(unknown))}")
    chosen = [each for each in MODULES if each.name in given.modules or not given.modules]
    if given.list:
        for module in chosen:
            for change, reason in EQUIVALENT.get(module.name, {}).items():
                print(f"{module.name}: {change}\n    {reason}")
        return 0
    install()
    os.nice(15)
    started, total = time.monotonic(), Counter[str]()
    for module in chosen:
        total += tried(module, given.function)
    print(f"in {time.monotonic() - started:.0f} s; equivalent: {total['equivalent']}")
    print(f"caught/planted: {total['killed']}/{total['mutants'] - total['equivalent']}")
    return 1 if total["gaps"] else 0


def install() -> None:
    """mutmut is in no set-up, for nothing but this needs it."""
    if importlib.util.find_spec("mutmut") is not None:
        return
    wanted = ["--require-hashes", "-r", str(ROOT / "requirements/prove.txt")]
    uv = [str(ROOT / ".venv/bin/uv"), "pip", "install", "--quiet", "--system-certs", "--python", sys.executable]
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    if subprocess.run([*uv, *wanted], check=False).returncode:
        subprocess.run([*pip, *wanted], check=True)


def tried(module: Module, words: str) -> Counter[str]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        changes = {name: change for name, change in mutated(module, copy).items() if words in change.function}
        fates = {}
        for name, fate in in_process(copy, module, list(changes)):
            fates[name] = fate
            if fate.startswith("survived") and changes[name] not in EQUIVALENT.get(module.name, {}):
                print(f"{module.name}: {fate}: {changes[name]}", flush=True)
    survivors = [changes[name] for name, fate in fates.items() if fate.startswith("survived")]
    known = EQUIVALENT.get(module.name, {})
    stale = [change for change in known if change not in survivors and words in change.function]
    for change in stale:
        print(f"{module.name}: called equivalent, but did not survive: {change}")
    gaps = sum(change not in known for change in survivors)
    endless = sum(fate == "hung" for fate in fates.values())
    print(
        f"{module.name}: {len(fates)} mutants, {len(fates) - len(survivors)} killed ({endless} of them hung), "
        f"{len(survivors)} survived, {len(survivors) - gaps} of them equivalent; "
        f"in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return Counter(
        mutants=len(fates),
        killed=len(fates) - len(survivors),
        equivalent=len(survivors) - gaps,
        gaps=gaps + len(stale),
    )


# ── what mutmut makes ────────────────────────────────────────────────────────────────────────────────────────────────


def mutated(module: Module, copy: Path) -> dict[str, Change]:
    """Put all changes of the module into the copy, each under the name by which mutmut turns it on."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    path = copy / module.file
    made = mutate_file_contents(str(module.file), path.read_text(encoding="utf-8"))
    path.write_text(made.code, encoding="utf-8")
    lines = made.code.splitlines()

    def body(name: str) -> list[str]:
        span = made.line_span_by_function_name[name]
        return [line.replace(name, "").strip() for line in lines[span.start - 1 : span.end]]

    changes = {}
    for name in made.mutant_names:
        found = re.fullmatch(r"x(?:ǁ(?P<owner>.+)ǁ|_)(?P<function>.+)__mutmut_\d+", name)
        assert found is not None, name
        owner, function = found["owner"], found["function"]
        if module.only and (owner or function) not in module.only:
            continue
        difference = list(difflib.ndiff(body(f"{name.rpartition('_')[0]}_orig"), body(name)))
        old, new = (" ".join(line[2:] for line in difference if line.startswith(mark)) for mark in ("- ", "+ "))
        changes[f"{PACKAGE}.{module.name}.{name}"] = Change(f"{owner}.{function}" if owner else function, old, new)
    return changes


# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_process(copy: Path, module: Module, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What became of each change. A process of its own for each module, for each has another copy of the source."""
    receiver, sender = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=run_tests, args=(copy, module, names, sender))
    process.start()
    sender.close()
    tried = 0
    while tried < len(names):
        try:
            name, fate = receiver.recv()
        except EOFError:
            raise SystemExit(f"{module.name}: the tests could not be run") from None
        if not name:
            raise SystemExit(f"{module.name}: without any change: {fate}")
        tried += 1
        yield name, fate
    process.join()


def run_tests(copy: Path, module: Module, names: Sequence[str], sender: Any) -> None:
    os.chdir(copy)
    sys.path.insert(0, str(copy / "src"))
    paths = [f"tests/unit/reliability/test_{name}.py" for name in module.tests]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Of what pytest and the tests say, nothing is news.
    arguments = ["-q", "-x", "-s", "--tb=no", "--no-summary", "--timeout=0", "-p", "no:cacheprovider"]
    pytest.main(
        [*arguments, *(path for path in paths if Path(path).exists())], plugins=[Loop(module, names, sender.send)]
    )


@dataclass
class Loop:
    """Runs the collected tests once to see which of them come by which function, then those for each change."""

    module: Module
    names: Sequence[str]
    tell: Callable[[tuple[str, str]], None]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        from hypothesis import settings  # pytest wants to be the first to load it

        few = settings(deadline=None, derandomize=True, database=None, max_examples=30)
        settings.register_profile("mutation", few)
        settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        from mutmut.mutation.trampoline import set_mutant_under_test

        seen = forked(lambda: coverage(session, self.module.slow))
        fault = "the tests hang" if seen is None else seen.get("failed")
        if fault:
            self.tell(("", fault))
            return True
        killers: defaultdict[str, list[int]] = defaultdict(list)
        for name in self.names:
            function = name.partition("__mutmut_")[0]
            tests = [number for number, _ in sorted(seen.get(function, {}).items(), key=lambda each: each[1])]
            tests = list(dict.fromkeys([*reversed(killers[function]), *(int(number) for number in tests)]))
            if not tests:
                self.tell((name, "survived, for no test comes by"))
                continue
            set_mutant_under_test(name)
            noticed = forked(lambda tests=tests: first_failure(session, tests))  # type: ignore[misc]
            if noticed is None:
                self.tell((name, "hung"))
            elif noticed["by"] is None:
                self.tell((name, "survived"))
            else:
                self.tell((name, "killed"))
                killers[function].append(noticed["by"])
        return True


def forked(work: Callable[[], Any]) -> Any:
    """What the work comes to, done in a fork that is thrown away; None where that never ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        os.dup2(1, 2)
        try:
            with os.fdopen(writing, "w") as result:
                json.dump(work(), result)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        told = result.read()
    os.waitpid(child, 0)
    return json.loads(told) if told else None


def coverage(session: pytest.Session, slow: Sequence[str]) -> dict[str, Any]:
    """By function, the tests that come by, with how long they take; properties come last."""
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.state import state

    set_mutant_under_test("stats")
    signal.setitimer(signal.ITIMER_PROF, 0)
    seen: dict[str, dict[int, float]] = {}
    for number, item in enumerate(session.items):
        if any(words in item.name for words in slow):
            continue
        state()._stats.clear()
        began = time.process_time()
        if failed(session, number):
            return {"failed": item.nodeid}
        took = time.process_time() - began + 100 * (item.get_closest_marker("hypothesis") is not None)
        for function in state()._stats:
            seen.setdefault(function, {})[number] = took
    return seen


def first_failure(session: pytest.Session, tests: Sequence[int]) -> dict[str, int | None]:
    return {"by": next((number for number in tests if failed(session, number)), None)}


def failed(session: pytest.Session, number: int) -> bool:
    item = session.items[number]
    try:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    except BaseException:
        return True
    return session.testsfailed > 0


if __name__ == "__main__":
    sys.exit(main())
