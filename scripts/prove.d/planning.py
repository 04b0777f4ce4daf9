"""Planted defects in what learns and in what uses several tools: the tests must notice each.

    sh scripts/prove planning [--only WORDS] [--list]

As `planted`, with defects of its own: see there.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import planted
from planted import Planted

LEARNED, BELIEFS = "orchestration/planning/learned.py", "orchestration/planning/beliefs.py"
CHOOSING, PACING = "orchestration/planning/choosing.py", "orchestration/planning/pacing.py"
WEIGHING = "orchestration/planning/weighing.py"
CHANGE, JUDGED = "orchestration/planning/change.py", "orchestration/planning/evaluation.py"
SHARED, SUMS = "orchestration/planning/shared_sums.py", "reliability/stores/sums.py"
WORD_INDEX = "orchestration/planning/_word_index.py"
TRIALS, REGISTRY = "orchestration/shared_trials.py", "orchestration/tool_registry.py"
SIDE_BY_SIDE, IN_TURN = "orchestration/_side_by_side.py", "orchestration/_in_turn.py"
STAGES, OBSERVED = "orchestration/_stages.py", "orchestration/_observed.py"
CALIBRATION = "orchestration/_calibration.py"

OF_CHOICE = ("tests/unit/planning/test_choosing.py", "tests/unit/planning/test_learned.py")
OF_BELIEF = ("tests/unit/planning/test_beliefs.py", "tests/unit/planning/test_learned.py")
OF_LEARNING = ("tests/unit/planning/test_learned.py", "tests/unit/orchestration/test_learned_flow.py")
OF_STRATEGIES = ("tests/unit/orchestration/test_strategies.py",)
OF_RULES = ("tests/unit/planning/test_index.py",)
OF_VERSIONS = ("tests/unit/orchestration/test_versions.py",)
OF_JUDGING = ("tests/unit/planning/test_evaluation.py",)

DEFECTS = (
    # ── choosing ──
    Planted(
        "the gate lets everything through",
        CHOOSING,
        "    return candidate.utility - default.utility > z * error\n",
        "    return candidate.utility > default.utility\n",
        OF_CHOICE,
    ),
    Planted(
        "no run of its own is enough",
        CHOOSING,
        "    if candidate.support <= 0:\n        return False\n",
        "    if candidate.support <= 0:\n        return True\n",
        OF_CHOICE,
    ),
    Planted(
        "the gate does not bind exploration",
        CHOOSING,
        "            if i != default and candidate.support >= LOOK_AT_LEAST and",
        "            if i != default and candidate.support < 0 and",
        OF_CHOICE,
    ),
    Planted(
        "the floor does not fall",
        CHOOSING,
        "    floor = FLOOR / math.sqrt(decided + 1)\n",
        "    floor = FLOOR\n",
        OF_CHOICE,
    ),
    Planted(
        "the propensity is of another tool than the one chosen",
        LEARNED,
        "        propensity = choice.chances[chosen]\n",
        "        propensity = max(choice.chances)\n",
        OF_CHOICE,
    ),
    Planted(
        "auto always explores",
        LEARNED,
        'return self.explore == "thompson" or (last is not None and',
        'return self.explore == "thompson" or (last is None or',
        OF_LEARNING,
    ),
    Planted(
        "a deterministic run explores",
        LEARNED,
        'self.explore == "off" or (context is not None and not context.explore)',
        'self.explore == "off"',
        OF_LEARNING,
    ),
    Planted(
        "the cost counts for nothing",
        WEIGHING,
        "                utility -= price * (self.cost(task, tool, characters) or 0.0) / scale\n",
        "                utility -= 0.0\n",
        OF_LEARNING,
    ),
    # ── believing ──
    Planted(
        "a cell does not shrink to its tool",
        BELIEFS,
        "(weight * prior + seen.reward) / mass",
        "(weight * 0.5 + seen.reward) / mass",
        OF_BELIEF,
    ),
    Planted(
        "a new version inherits nothing",
        BELIEFS,
        "            if before is not None:\n",
        "            if before is not None and not before:\n",
        OF_BELIEF,
    ),
    Planted(
        "the versions are in the order of their letters",
        BELIEFS,
        "        return True, Version(version), version\n",
        "        return True, version, version\n",
        OF_BELIEF,
    ),
    Planted(
        "a change is never seen",
        CHANGE,
        "    return abs(old_sum / old_runs - new_sum / new_runs) > ALARM * error\n",
        "    return False\n",
        OF_BELIEF,
    ),
    Planted("every wobble is a change", CHANGE, "ALARM = 4.0\n", "ALARM = 1.5\n", OF_BELIEF),
    # ── feedback ──
    Planted(
        "a reward that is told twice counts twice",
        LEARNED,
        "        runs = float(first) if reward is not None else 0.0\n",
        "        runs = 1.0 if reward is not None else 0.0\n",
        OF_LEARNING,
    ),
    Planted(
        "a second reward is added to the first",
        LEARNED,
        "reward - (pending.reward or 0.0)",
        "reward",
        OF_LEARNING,
    ),
    Planted(
        "a failure is worth as much as an answer",
        LEARNED,
        "        if not outcome.succeeded:\n            return 0.0\n",
        "        if not outcome.succeeded:\n            return 1.0\n",
        OF_LEARNING,
    ),
    Planted(
        "in the shadow the other one serves",
        LEARNED,
        "        return choice.default or 0 if self.shadow else choice.chosen\n",
        "        return choice.chosen\n",
        OF_LEARNING,
    ),
    # ── budget ──
    Planted(
        "what is reserved does not count",
        PACING,
        "        return self.pacing.budget_usd - self.spent - self.reserved\n",
        "        return self.pacing.budget_usd - self.spent\n",
        OF_BELIEF,
    ),
    Planted(
        "the price never falls",
        PACING,
        "price=max(0.0, self.price + step)",
        "price=self.price + abs(step)",
        OF_BELIEF,
    ),
    Planted(
        "what a fallback costs is not spent",
        LEARNED,
        "characters, None, 0.0, pending.prompt, None, row=pending.row)\n",
        "characters, None, 0.0, pending.prompt, None, row=pending.row, decided=False)\n",
        OF_LEARNING,
    ),
    Planted(
        "a shared budget is not asked for",
        SUMS,
        "            if known + amount > limit:\n",
        "            if known > limit:\n",
        OF_LEARNING,
    ),
    Planted(
        "what others learned never comes",
        SHARED,
        "            for key, row in rows.items():\n",
        "            for key, row in ():\n",
        OF_LEARNING,
    ),
    # ── rules by words ──
    Planted(
        "a word as long as a piece is passed over",
        WORD_INDEX,
        "            if len(word) < shortest or word in dull:\n",
        "            if len(word) <= shortest or word in dull:\n",
        OF_RULES,
    ),
    Planted(
        "of a word that was met before only one rule is found",
        WORD_INDEX,
        "inside[1] if len(inside) == 2 and not inside[0] else inside\n",
        "inside[1]\n",
        OF_RULES,
    ),
    # ── canaries ──
    Planted(
        "what other processes saw of a canary is not believed",
        TRIALS,
        "        self._seen[key] = Seen(*row).plus(self._owed.get(key, Seen()))\n",
        "        self._seen.setdefault(key, Seen())\n",
        OF_VERSIONS,
    ),
    Planted(
        "what this process saw of a canary is not told",
        TRIALS,
        "        self._owe(key, more)\n",
        "",
        OF_VERSIONS,
    ),
    Planted(
        "a canary of another share is on the same trial",
        "orchestration/canaries.py",
        'f"{release.share:g}", ',
        "",
        OF_VERSIONS,
    ),
    Planted(
        "a canary is judged beside one run of the other",
        REGISTRY,
        "other.runs < ENOUGH",
        "other.runs < 1",
        OF_VERSIONS,
    ),
    # ── judging ──
    Planted(
        "a log is judged without its propensities",
        JUDGED,
        "        weight = (line.tool in names) / len(names) / line.propensity\n",
        "        weight = (line.tool in names) / len(names)\n",
        OF_JUDGING,
    ),
    Planted(
        "the estimate is promoted, and not its lower bound",
        JUDGED,
        "    promote = low > -margin\n",
        "    promote = gain >= -margin\n",
        OF_JUDGING,
    ),
    Planted(
        "what was always certain is judged all the same",
        JUDGED,
        "    if all(line.tool is not None and line.propensity == 1 for line in log):\n",
        "    if not log:\n",
        OF_JUDGING,
    ),
    # ── strategies ──
    Planted(
        "the losers of a race go on",
        SIDE_BY_SIDE,
        "        await stop(*running)\n",
        "        pass\n",
        OF_STRATEGIES,
    ),
    Planted(
        "a loser is charged nothing",
        SIDE_BY_SIDE,
        "            lives[tasks[task]].lost = True",
        "            lives[tasks[task]].lost = False",
        OF_STRATEGIES,
    ),
    Planted(
        "a failure wins a race",
        SIDE_BY_SIDE,
        "self.stages, run, wanted, life, any_usable)",
        "self.stages, run, wanted, life, bool)",
        OF_STRATEGIES,
    ),
    Planted(
        "each stage of a chain gets the first request",
        IN_TURN,
        "                    here = View(run, await _request_of(done[-1].answer, stage))\n",
        "                    await _request_of(done[-1].answer, stage)\n",
        OF_STRATEGIES,
    ),
    Planted(
        "what a later stage costs is not counted",
        STAGES,
        '_COUNTED = ("spending", ',
        '_COUNTED = ("spendings", ',
        OF_STRATEGIES,
    ),
    Planted(
        "a chain that broke off loses what it had",
        IN_TURN,
        "    kept = good[-1] if good else done[-1]\n",
        "    kept = done[-1]\n",
        OF_STRATEGIES,
    ),
    Planted(
        "a quorum of one",
        SIDE_BY_SIDE,
        "            return most >= self.size or",
        "            return most >= 1 or",
        OF_STRATEGIES,
    ),
    Planted(
        "a cascade trusts what is below its bound",
        IN_TURN,
        "score is not None and score >= self.bound",
        "score is not None",
        OF_STRATEGIES,
    ),
    Planted(
        "a bound is fitted to the share, and not to its lower bound",
        CALIBRATION,
        "            least = wilson_lower(right, count, z)\n",
        "            least = right / count\n",
        OF_STRATEGIES,
    ),
    Planted(
        "a useless verifier is used",
        CALIBRATION,
        "        if not self.auroc >= LEAST_AUROC:\n",
        "        if not self.auroc >= 0:\n",
        OF_STRATEGIES,
    ),
)


def main() -> int:
    planted.DEFECTS = DEFECTS
    return planted.main()


if __name__ == "__main__":
    sys.exit(main())
