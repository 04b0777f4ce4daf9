"""Known bugs of libraries like this one, planted one at a time in a copy of the source: the tests must notice each.

    sh scripts/prove planted [--only WORDS] [--list]

A defect is what to look for in one file and what to put in its place; it must be there exactly once. The test that
notices it must pass again when it is taken out: else nothing would be shown by its failing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0
"""Seconds for one run of the tests; a defect that makes them hang is noticed too."""

UNIT = ("tests/unit/reliability",)
PAIRS = (
    "tests/unit/reliability",
    "tests/invariants/test_exploration.py",
    "tests/invariants/test_simulation.py",
    "tests/invariants/test_leases.py",
    "tests/contract",
    "tests/compose",
    "tests/invariants/test_policies.py",
)
SHORT = ("tests/contract/test_the_shorter_way.py", "tests/unit/reliability/test_silence_rule.py", "tests/compose")


@dataclass(frozen=True)
class Planted:
    """`file` below src/steer_llm_sdk. `tests` are run in this order, up to the first that fails."""

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str] = PAIRS


CIRCUIT, BREAKER, TALLY = "reliability/circuit.py", "reliability/circuit_breaker.py", "reliability/tally.py"
RETRY, CLASSIFY, ERRORS = "reliability/retry.py", "reliability/classify.py", "errors.py"
BUDGET, DEADLINE = "reliability/budget.py", "reliability/deadline.py"
KEYS, MEMORY = "reliability/idempotency.py", "reliability/stores/memory.py"
FLOW, FALLBACK, LIST = "orchestration/base.py", "orchestration/fallback.py", "orchestration/reliability.py"
EVENTS, WIRE = "streaming/manager.py", "providers/_llm/exchange.py"

DEFECTS = (
    # ── breaker ──
    Planted(
        "a stale result closes the circuit",
        CIRCUIT,
        "        lane = whole.reported(permit, part, outcome, now, cfg, asked)\n",
        "        permit = replace(permit, serial=whole.probes[0][0] if whole.probes else permit.serial)\n"
        "        lane = whole.reported(permit, part, outcome, now, cfg, asked)\n",
    ),
    Planted(
        "an answer from an earlier closed time counts",
        CIRCUIT,
        "if permit.generation != whole.generation or outcome is NEUTRAL or part in self.narrowed:",
        "if outcome is NEUTRAL or part in self.narrowed:",
    ),
    Planted(
        "a late probe of a part answers for its later time",
        CIRCUIT,
        "        if not isinstance(lane, HalfOpen) or lane.generation != permit.generation:\n            return self\n",
        "        if not isinstance(lane, HalfOpen) or not lane.probes:\n            return self\n"
        "        permit = replace(permit, serial=lane.probes[0][0])\n",
    ),
    Planted(
        "a cancelled probe leaks its permit",
        CIRCUIT,
        "return rest if outcome is NEUTRAL else rest.succeeded(now, cfg)",
        "return self if outcome is NEUTRAL else rest.succeeded(now, cfg)",
    ),
    Planted(
        "a cancelled probe closes the circuit",
        CIRCUIT,
        "return rest if outcome is NEUTRAL else rest.succeeded(now, cfg)",
        "return rest.succeeded(now, cfg)",
    ),
    Planted(
        "half-open admits everybody",
        CIRCUIT,
        "if len(live) >= cfg.half_open_requests:",
        "if len(live) >= 1000:",
    ),
    Planted(
        "a lost probe blocks recovery for ever",
        CIRCUIT,
        "return tuple(p for p in self.probes if p[1] > now)",
        "return self.probes",
    ),
    Planted(
        "reopening does not begin a new generation",
        CIRCUIT,
        "return Open(self.generation + 1, until, blamed, confirmed=confirmed, relapses=relapses)",
        "return Open(self.generation, until, blamed, confirmed=confirmed, relapses=relapses)",
    ),
    Planted(
        "a cancelled call counts as a failure",
        BREAKER,
        "            return FAILURE, 0.0\n        return NEUTRAL, 0.0\n",
        "            return FAILURE, 0.0\n        return FAILURE, 0.0\n",
    ),
    Planted(
        "a rate limit trips the breaker",
        BREAKER,
        "            self.config.count_rate_limits and means.category",
        "            means.category",
    ),
    Planted(
        "old failures are never forgotten",
        TALLY,
        "        while spans and at - spans[0][0] > window:",
        "        while spans and at - spans[0][0] > 1e9:",
    ),
    Planted(
        "a rate of three calls opens the circuit",
        TALLY,
        "        if self.calls < cfg.minimum_throughput:",
        "        if self.calls < 1:",
    ),
    # ── retry ──
    Planted(
        "jitter is added, then cut at the cap",
        RETRY,
        "return min(delay, most) * (1 - self.jitter_factor * jitter)",
        "return min(delay * (1 + self.jitter_factor * jitter), most)",
    ),
    Planted(
        "a sleep after the last attempt",
        RETRY,
        "                if delay is None:\n                    raise error\n",
        "                if delay is None:\n"
        "                    await asyncio.sleep(self._policy.initial_delay)\n"
        "                    raise error\n",
    ),
    Planted(
        "a cancellation is retried",
        LIST,
        "        if not isinstance(error, Exception) or isinstance(error, Rejected):\n",
        "        if isinstance(error, asyncio.CancelledError):\n"
        "            error = TimeoutError()\n"
        "        if not isinstance(error, Exception) or isinstance(error, Rejected):\n",
    ),
    Planted(
        "jitter comes earlier than the server asked",
        RETRY,
        "return max(delay, asked * (1 + 0.1 * jitter))",
        "return max(delay, asked * (1 - 0.1 * jitter))",
    ),
    Planted(
        "a long Retry-After is cut to the longest delay",
        RETRY,
        "        if asked > self._max_delay(error.category):\n            return None\n",
        "        asked = min(asked, self._max_delay(error.category))\n",
    ),
    Planted(
        "backoff is not bounded by the deadline",
        RETRY,
        "        if call.deadline is not None and delay >= call.deadline.remaining():\n            return None\n",
        "",
    ),
    Planted(
        "every tool has its own count of all attempts",
        RETRY,
        "return call.sent < self.limit or call.sent < self.per_answer * call.answers",
        "return call.attempts < self.limit or call.attempts < self.per_answer * call.answers",
    ),
    Planted(
        "an exhausted quota is retried",
        ERRORS,
        "        ErrorCategory.BAD_RESPONSE,\n    }\n)\n",
        "        ErrorCategory.BAD_RESPONSE,\n        ErrorCategory.QUOTA,\n    }\n)\n",
        ("tests/unit/reliability", "tests/unit/providers", "tests/contract", "tests/integration/providers"),
    ),
    Planted(
        "Retry-After of 1.5 seconds is not understood",
        CLASSIFY,
        "valid_delay(float(part)) for part in text.split",
        "valid_delay(int(part)) for part in text.split",
        UNIT,
    ),
    Planted(
        "Retry-After as a date is not understood",
        CLASSIFY,
        "return seconds if seconds is not None or text is None else _until_date(text, now)",
        "return seconds",
        UNIT,
    ),
    Planted(
        "a negative Retry-After is believed",
        CLASSIFY,
        "return value if math.isfinite(value) and value >= 0 else None",
        "return value if math.isfinite(value) else None",
        UNIT,
    ),
    # ── retry budget and hedging ──
    Planted(
        "the retry budget never refuses",
        "reliability/retry_budget.py",
        "    if window.older_extras + window.extras + 1 > allowed:\n        return window, False\n",
        "",
    ),
    Planted(
        "hedges do not draw from the retry budget",
        "reliability/hedging.py",
        'return None if self._budget is None or self._budget.draw(call.target) else "retry_budget"',
        "return None",
    ),
    Planted(
        "a hedge comes though the quantile is among the slow ones",
        "reliability/hedging.py",
        "return delay if delay <= self.slow_factor * median and not busy else None",
        "return None if busy else delay",
    ),
    Planted(
        "hedges are not bounded by all attempts",
        "reliability/hedging.py",
        "        if attempts >= call.max_attempts or not self._limit.left_for_another(call):\n",
        "        if attempts >= call.max_attempts:\n",
    ),
    Planted(
        "a hedged call that ends before its first wait leaves its attempt running",
        "reliability/hedging.py",
        "                except BaseException:\n                    if not await answers_all_the_same(task):\n",
        "                except BaseException:\n                    if True:\n",
        SHORT,
    ),
    Planted(
        "a race that has ended hides what comes after it",
        "reliability/silence.py",
        "            if self._covering:\n                self._uncover()\n            if self._running:\n",
        "            if self._running:\n",
        SHORT,
    ),
    # ── the shorter way ──
    Planted(
        "a cancelled call keeps its place in the rate limit",
        LIST,
        "            if gate is not None:\n                gate.leave(tokens, used, True, clock, told)\n",
        "            if gate is not None and isinstance(error, Exception):\n"
        "                gate.leave(tokens, used, True, clock, told)\n",
        SHORT,
    ),
    Planted(
        "after a call its tool is taken for the call",
        LIST,
        "                pulse.ended()\n                current.reset(token)\n        if failed is None:\n",
        "                pulse.ended()\n        if failed is None:\n",
        SHORT,
    ),
    # ── fallback ──
    Planted(
        "fallback after an invalid request",
        FALLBACK,
        "            if len(failures) == 1 and isinstance(objection, ValueError):\n                break\n",
        "",
        ("tests/invariants/test_fallback_flows.py", "tests/contract"),
    ),
    Planted(
        "fallback after the deadline",
        FALLBACK,
        "        if failures and run.deadline is not None and not run.deadline.remaining():\n            break\n",
        "",
        ("tests/invariants/test_fallback_flows.py", "tests/contract"),
    ),
    # ── budget ──
    Planted(
        "check, then spend",
        BUDGET,
        "reserved_tokens, reserved_usd, overrun, starts, ends)), None\n",
        "reserved_tokens - tokens, reserved_usd - (usd or 0), overrun, starts, ends)), None\n",
    ),
    Planted(
        "a call that was cancelled or broke off is charged nothing",
        BUDGET,
        "return worst if classify(error).maybe_billed else Amount()",
        "return Amount()",
    ),
    Planted(
        "an unknown cost is charged as nothing",
        BUDGET,
        "        if usd is None:\n            usd = reserved\n",
        "        if usd is None:\n            usd = 0\n",
    ),
    Planted(
        "an overrun stops nothing",
        BUDGET,
        "overrun = overrun or over is not None\n",
        "overrun = False\n",
    ),
    Planted(
        "what one budget refuses is taken from the others",
        BUDGET,
        "                moved.append(account)\n",
        "                moved.append(account)\n                each.account = account\n",
    ),
    # ── deadline ──
    Planted(
        "a deadline waits for work that ignores it",
        DEADLINE,
        "                await watch(task, end)\n",
        "                await watch(task, None)\n",
    ),
    Planted(
        "what finished just after its deadline is lost",
        DEADLINE,
        "    return Late(True, task.result()) if has_answered(task) else Late()\n",
        "    return Late()\n",
    ),
    Planted(
        "a wake-up is lost",
        DEADLINE,
        "        return await work\n    except SystemExit as exit:\n        raise Exited(exit) from exit\n"
        "    finally:\n        for woken in waiting:\n            wake(woken)\n",
        "        result = await work\n    except SystemExit as exit:\n        raise Exited(exit) from exit\n"
        "    for woken in waiting:\n        wake(woken)\n    return result\n",
    ),
    # ── idempotency ──
    Planted(
        "a zombie settles",
        MEMORY,
        "            if holder != token or now",
        "            if now",
    ),
    Planted(
        "a key that is held can be had",
        MEMORY,
        " if now < claimed.until else None\n",
        " if now < claimed.until - 1e9 else None\n",
    ),
    Planted(
        "a replay does the work again",
        MEMORY,
        "            finished[key] = _new(Finished, (fingerprint, token, result, now + ttl))\n",
        "",
    ),
    Planted(
        "another request joins the work under way",
        KEYS,
        "        elif flight.work.mark != work.mark:\n            raise ConflictError(work.name)\n",
        "",
    ),
    Planted(
        "one who leaves takes the work of all along",
        KEYS,
        "                if not flight.callers and not in_time:\n",
        "                if not in_time:\n",
    ),
    Planted(
        "leases are never renewed",
        KEYS,
        "            beat = loop.create_task(_quietly(self._store.renew(flight.work.key, flight.token, LEASE)))\n",
        "            beat = loop.create_task(_quietly(self._store.renew(flight.work.key, -flight.token, LEASE)))\n",
    ),
    Planted(
        "who leaves before his first wait is still counted among the callers",
        KEYS,
        "            flight.callers += 1\n            try:\n                await turn()\n",
        "            flight.callers += 1\n            await turn()\n            try:\n",
        ("tests/compose/test_cancellation.py",),
    ),
    Planted(
        "a key is not given back after a failure",
        KEYS,
        "            if held:\n                releasing",
        "            if not held:\n                releasing",
    ),
    # ── the flow ──
    Planted(
        "the breaker stands round all retries",
        LIST,
        "                (retry, self._retry(breakers)),\n                *((True, hedge) for hedge in hedges),\n"
        "                *((True, limiter) for limiter in limiters),\n"
        "                (breaker, self.breakers.policy()),\n",
        "                (breaker, self.breakers.policy()),\n"
        "                (retry, self._retry(breakers)),\n                *((True, hedge) for hedge in hedges),\n"
        "                *((True, limiter) for limiter in limiters),\n",
        ("tests/compose", "tests/contract"),
    ),
    Planted(
        "a handler that hangs holds the run",
        EVENTS,
        "await asyncio.wait({drain}, timeout=min(left, ALLOWANCE))",
        "await asyncio.wait({drain})",
        ("tests/unit/streaming", "tests/contract", "tests/compose"),
    ),
    Planted(
        "a tool writes into the caller's request",
        FALLBACK,
        "        work = step.tool.execute(copied(run.request), step.options(run), None)\n",
        "        work = step.tool.execute(run.request, step.options(run), None)\n",
        ("tests/contract", "tests/unit/orchestration"),
    ),
    Planted(
        "a truncated stream is a success",
        WIRE,
        "        return self.over and not self.ended\n",
        "        return False\n",
        ("tests/integration/providers",),
    ),
)

_CIRCUIT = ("test_circuit_reducer.py", "test_circuit_breaker_object.py")
FIRST = {
    CIRCUIT: _CIRCUIT,
    BREAKER: ("test_policies_alone.py", *_CIRCUIT),
    TALLY: _CIRCUIT,
    RETRY: ("test_retry_policy.py", "test_policies_alone.py"),
    CLASSIFY: ("test_retry_after.py", "test_classify.py"),
    BUDGET: ("test_ledger.py", "test_budget_accounts.py", "test_policies_alone.py"),
    DEADLINE: ("test_deadline_until.py",),
    KEYS: ("test_idempotency_once.py",),
    MEMORY: ("test_memory_store.py",),
    "reliability/retry_budget.py": ("test_retry_budget.py",),
    "reliability/hedging.py": ("test_hedging.py",),
}
"""Where a defect of a file is most likely to be noticed; asked first, which saves time and nothing else."""


def tests_for(defect: Planted) -> list[str]:
    likely = [f"tests/unit/reliability/{name}" for name in FIRST.get(defect.file, ())]
    return [*likely, *defect.tests]


def applied(defect: Planted, source: Path) -> tuple[Path, str, str]:
    """The file, its text, and its text with the defect. Raises LookupError unless what it replaces is there once."""
    path = source / "steer_llm_sdk" / defect.file
    text = path.read_text(encoding="utf-8")
    count = text.count(defect.old)
    if count != 1:
        raise LookupError(f"{defect.name}: what it replaces is {count} times in {defect.file}; write it anew")
    return path, text, text.replace(defect.old, defect.new)


def first_failure(copy: Path, tests: Sequence[str], but: Sequence[str] = ()) -> str | None:
    """The first test that fails in the copy, one after the other, `but` for these; None where all pass."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=300"]
    command += [f"--deselect={test}" for test in but]
    for folder in tests:
        try:
            ran = subprocess.run(
                [*command, folder], cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return folder
        if ran.returncode:
            found = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - |$)", ran.stdout, re.MULTILINE)
            return found[1] if found else folder  # It was ended at its limit of time.
    return None


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="defects whose name has these words")
    options.add_argument("--list", action="store_true", help="say whether each can be planted, and stop")
    given = options.parse_args()
    chosen = [defect for defect in DEFECTS if given.only in defect.name]
    for defect in chosen:
        applied(defect, ROOT / "src")
        if given.list:
            print(f"{defect.file}: {defect.name}")
    if given.list:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return plant_each(chosen, Path(folder))


def plant_each(chosen: Sequence[Planted], copy: Path) -> int:
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy / name)
    started = time.monotonic()
    survivors = []
    broken: list[str] = []
    for defect in chosen:
        path, text, planted = applied(defect, copy / "src")
        noticed = None
        while noticed is None:
            path.write_text(planted, encoding="utf-8")
            noticed = first_failure(copy, tests_for(defect), broken)
            path.write_text(text, encoding="utf-8")
            if noticed is None or first_failure(copy, [noticed]) is None:
                break
            print(f"{noticed} fails without the defect too, and shows nothing", flush=True)
            if "::" not in noticed:
                sys.exit("not a test but a whole folder: mend that first")
            broken.append(noticed)
            noticed = None
        if noticed is None:
            survivors.append(defect.name)
        print(f"planted: {defect.name}: {noticed or 'NOT NOTICED'}", flush=True)
    print(f"in {time.monotonic() - started:.0f} s; survivors: {', '.join(survivors) or 'none'}")
    print(f"caught/planted: {len(chosen) - len(survivors)}/{len(chosen)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
