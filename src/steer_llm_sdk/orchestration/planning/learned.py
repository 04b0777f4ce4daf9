"""A planner that learns which tool is worth its price, for each type of task, and is never worse for it than one tool.

    eligible -> rules -> estimate -> gate -> choose -> reserve -> (the run) -> settle -> learn

Rules come first: what they pin is not chosen again, and what they forbid is not looked at. What is believed is in
`beliefs`, what a tool is worth by it in `weighing`, how a choice is made in `choosing`, what a budget does to it in
`pacing`, when a cell forgets in `change`: none of them waits for anything. This is the shell round them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, NoEligibleTool
from steer_llm_sdk.orchestration.planning._request import default_options, names_in, task_type_of
from steer_llm_sdk.orchestration.planning._search import FAILED_BEFORE, WOULD_RATHER_NOT
from steer_llm_sdk.orchestration.planning.beliefs import Beliefs, Line, Seen
from steer_llm_sdk.orchestration.planning.change import Watch, kept, watched
from steer_llm_sdk.orchestration.planning.choosing import (
    Candidate,
    Choice,
    best,
    chances,
    confidence_in,
    drawn,
    reasoning_of,
)
from steer_llm_sdk.orchestration.planning.eligibility import characters_of
from steer_llm_sdk.orchestration.planning.learning_log import Decided, line_of
from steer_llm_sdk.orchestration.planning.neighbours import Known, Nearby, Neighbours, Prompt
from steer_llm_sdk.orchestration.planning.pacing import Paced, Pacing
from steer_llm_sdk.orchestration.planning.pending import Pending, packed, unpacked
from steer_llm_sdk.orchestration.planning.planner import Outcome, PlanDecision, Planner, PlanRequest, ToolMetadata
from steer_llm_sdk.orchestration.planning.rule_based import Allowed, RuleBasedPlanner
from steer_llm_sdk.orchestration.planning.rules import PlanningRule
from steer_llm_sdk.orchestration.planning.shared_beliefs import SharedBeliefs
from steer_llm_sdk.orchestration.planning.shared_sums import sums_at
from steer_llm_sdk.orchestration.planning.weighing import Case, Weighing, arm_of
from steer_llm_sdk.reliability.stores.sums import SumStore

__all__ = ["LearnedPlanner", "Neighbours", "Pacing"]

MOST_PENDING = 100_000
"""Decisions whose feedback is waited for; the oldest go first."""
STILL_COMES = 1_000
"""With `explore="auto"`: decisions since the last feedback, after which nobody seems to give any."""
MARGIN = 1.05
"""What is reserved, over the worst ratio of paid to expected cost that was seen."""
MOST_FALLBACKS = 10

NOT_THERE = "it is not registered"
TOO_DEAR = "it is too dear for what is left of the budget"

Tools = Mapping[str, ToolMetadata]
Explore = Literal["auto", "thompson", "off"]
Evaluator = Callable[[Any, Any], float | Awaitable[float | None] | None]
_log = logging.getLogger(__name__)


class _Home(NamedTuple):
    """The default tool; whether only the order of registration says that it is; and what rules passed over for it."""

    name: str
    by_order: bool = False
    passed_over: Mapping[str, str] = MappingProxyType({})


class LearnedPlanner(Planner):
    """Chooses by what was learned from rewards, within what rules allow.

    `default_tool` serves where nothing better is known; None: what the rules would choose. Where only the order of
    registration says which that is, the decision's metadata has `order_of_registration`; nothing else depends on it.
    `rules` is a RuleBasedPlanner, or rules for one. `cost_weight` is how much reward (of 0 to 1) a request must gain
    for costing as much as the default tool; `latency_weight` the same for each multiple of `latency_target_ms` beyond
    it.

    `explore`: "thompson" tries each tool as often as it may be the best one; "off" takes the best by what is known, and
    leaves the default only for a gain beyond `gate` standard errors; "auto", the default, explores while feedback
    comes. True and False stand for "thompson" and "off". A deterministic run explores nothing.

    `pacing` spends a budget over the requests it is for. `neighbours` adds what is known from prompts that read alike
    (extra `numpy`). `store`, the URL of a store or a SumStore, shares what is learned, and the budget, among processes
    under the name `space`. `shadow`: the rules' own choice, or the default, is what is decided; what would have been
    chosen is in `metadata["shadow"]`. `log` gets a line of JSON for each word on the reward of a decision, for
    `steer-llm plan evaluate`, which takes the last one of each.

    Of runs that an orchestrator made it learns cost and duration by itself, and that a failure is worth 0. How good an
    answer was says `evaluator(request, content)`, 0 to 1 or None, which may be async; with `trust_confidence` the
    confidence of an evidence bundle; and `feedback`, from whoever knows, whose word replaces the others. All of it is
    said of the tool that answered. Where that is a fallback, the tool that was chosen and failed keeps its 0, and so
    does the decision in the `log`: with its propensity the other tool was not chosen.

    A decision's `metadata` has `decision_id` and `propensity`, the chance with which the tool was chosen.
    """

    def __init__(
        self,
        default_tool: str | None = None,
        rules: RuleBasedPlanner | Iterable[PlanningRule] | None = None,
        cost_weight: float = 0.0,
        explore: Explore | bool | None = "auto",
        store: SumStore | str | None = None,
        *,
        latency_weight: float = 0.0,
        latency_target_ms: float | None = None,
        gate: float = 1.0,
        pacing: Pacing | None = None,
        neighbours: Neighbours | bool | None = None,
        shadow: bool = False,
        evaluator: Evaluator | None = None,
        trust_confidence: bool = False,
        log: Callable[[str], object] | None = None,
        space: str = "planner",
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.rules = rules if isinstance(rules, RuleBasedPlanner) else RuleBasedPlanner(rules)
        self.default_tool = default_tool
        self.cost_weight = _from_zero("cost_weight", cost_weight)
        latency_weight = _from_zero("latency_weight", latency_weight)
        self.gate = _from_zero("gate", gate)
        if latency_weight and not (latency_target_ms and latency_target_ms > 0):
            raise InvalidRequest("latency_target_ms", latency_target_ms, "latency_weight needs one, in ms above 0")
        self.explore: Explore = _explore(explore)
        self.shadow = shadow
        self.beliefs = Beliefs()
        self._weighing = Weighing(self.beliefs, latency_weight, latency_target_ms, chance)
        self.neighbours = Neighbours() if neighbours is True else None if neighbours is False else neighbours
        self._paced = None if pacing is None else Paced(pacing)
        self._evaluator = evaluator
        self._trust_confidence = trust_confidence
        self._telling: set[asyncio.Task[Any]] = set()
        self._log = log
        self._chance = chance
        self._watches: dict[tuple[str, str], Watch] = {}
        self._worst: dict[str, float] = {}
        self._pending: OrderedDict[str, Pending] = OrderedDict()
        self._decided: dict[str, int] = {}
        self._decisions = 0
        self._last_feedback: int | None = None
        self._shared = None if store is None else SharedBeliefs(sums_at(store), space, self.beliefs)

    @property
    def paced(self) -> Paced | None:
        """What was spent of the budget, what is reserved, and the price that follows; None without `pacing`."""
        return self._paced

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def plan(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> PlanDecision:
        """Decide. NoEligibleTool as with rules; BudgetExceeded where `pacing` has nothing left for any tool."""
        shared = self._shared
        if shared is None:
            return self.decide(request, available_tools, context)
        await self._catch_up(shared)
        while True:
            decision = self.decide(request, available_tools, context)
            pending = self._pending[decision.metadata["decision_id"]]
            if self._paced is None or await shared.reserve(pending.reserved, self._paced.pacing.budget_usd):
                break
            # Somebody else was faster: with what is left now, another tool may do.
            self._give_back(decision.metadata["decision_id"])
            await self._catch_up(shared, at_once=True)
        await shared.keep(decision.metadata["decision_id"], packed(pending))
        return decision

    def decide(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> PlanDecision:
        """What `plan` answers, without a loop and without the store."""
        asked = {"query": request} if isinstance(request, str) else request
        allowed = self.rules.allowed(asked, available_tools, context)
        task = task_type_of(asked) or ""
        if allowed.pinned is not None:
            return self._pinned(allowed.pinned, task, asked, available_tools)
        names, put_back = self._usable(allowed, context)
        home = self._home(asked, available_tools, context)
        characters = characters_of(asked)
        prompt = None if self.neighbours is None else Prompt.of(_text_of(asked))
        nearby = self._nearby(task, prompt)
        case = Case(task, available_tools, home.name, allowed.weights, self._price())
        few = self._weighing.few(case, names, self._decided.get(task, 0))
        weighed = self._weighing.weighed(case, few, characters, nearby)
        affordable = self._affordable(task, weighed, names, available_tools, characters)
        choice = self._choose(task, affordable, home.name, available_tools, context)
        out = {**allowed.eligible.reasons, **put_back}
        if len(affordable) < len(weighed):
            out |= dict.fromkeys({candidate.name for candidate in weighed} - {c.name for c in affordable}, TOO_DEAR)
        met = self._met(choice, case, allowed, home, out, characters, nearby)
        return self._decision(
            choice, task, asked, available_tools, context, characters, prompt, allowed, home.name, met
        )

    def expected(self, request: Any, available_tools: Tools, context: PlanRequest | None = None) -> list[Candidate]:
        """What is believed of each tool that may serve the request, the one worth most first. Nothing is decided."""
        asked = {"query": request} if isinstance(request, str) else request
        allowed = self.rules.allowed(asked, available_tools, context)
        (names, _), task = self._usable(allowed, context), task_type_of(asked) or ""
        home = self._home(asked, available_tools, context)
        nearby = self._nearby(task, None if self.neighbours is None else Prompt.of(_text_of(asked)))
        case = Case(task, available_tools, home.name, allowed.weights, self._price())
        found = self._weighing.weighed(case, names, characters_of(asked), nearby)
        return sorted(found, key=lambda candidate: -candidate.utility)

    def _usable(self, allowed: Allowed, context: PlanRequest | None) -> tuple[Sequence[str], Mapping[str, str]]:
        """Those that may serve; and why others are put back, that could."""
        names = allowed.eligible.names
        if not names:
            raise NoEligibleTool(allowed.eligible.reasons)
        if context is None or not (context.previous_failures or context.user_preferences):
            return names, {}
        avoided = dict.fromkeys(names_in(context.user_preferences.get("avoid_tools")), WOULD_RATHER_NOT)
        avoided |= dict.fromkeys(context.previous_failures, FAILED_BEFORE)
        usable = [name for name in names if name not in avoided]
        return (usable, {name: avoided[name] for name in names if name in avoided}) if usable else (names, {})

    def _home(self, asked: Any, tools: Tools, context: PlanRequest | None) -> _Home:
        if self.default_tool is not None:
            return _Home(self.default_tool)
        decision = self.rules.decide(asked, tools, context)
        told = decision.metadata
        by_order = "selected_tool" in told.get("order_of_registration", ())
        return _Home(decision.selected_tool, by_order, told.get("passed_over", {}))

    def _met(
        self,
        choice: Choice,
        case: Case,
        allowed: Allowed,
        home: _Home,
        out: Mapping[str, str],
        characters: int,
        nearby: Mapping[str, Nearby],
    ) -> dict[str, Any]:
        """What the decision tells of the way to it, as that of rules does. `out`: why tools could not be chosen. Passed
        over is of these the default, what rules pin, and what is known to be worth more than the chosen one."""
        taken = choice.candidates[self._taken(choice)]
        passed_over = {**home.passed_over, **allowed.passed_over}
        if out:
            cells, tools = self.beliefs.cells, case.tools
            known = [name for name in out if name in tools and (case.task, arm_of(tools[name])) in cells]
            for other in self._weighing.weighed(case, known, characters, nearby) if known else ():
                if other.support > 0 and other.utility > taken.utility:
                    passed_over[other.name] = out[other.name]
        weighed = {candidate.name for candidate in choice.candidates}
        if home.name not in weighed:
            passed_over[home.name] = out.get(home.name, NOT_THERE)
        told = {
            "applied_rules": list(allowed.rules),
            "skipped_rules": dict(allowed.skipped),
            "passed_over": {name: reason for name, reason in passed_over.items() if name not in weighed},
            "order_of_registration": ["selected_tool"] if home.by_order and len(weighed) > 1 else [],
        }
        return {name: value for name, value in told.items() if value}

    def _taken(self, choice: Choice) -> int:
        """Of the candidates the one that serves."""
        return choice.default or 0 if self.shadow else choice.chosen

    def _price(self) -> float:
        return self.cost_weight + (0.0 if self._paced is None else self._paced.price)

    def _affordable(
        self, task: str, weighed: list[Candidate], names: Sequence[str], tools: Tools, characters: int
    ) -> list[Candidate]:
        paced = self._paced
        if paced is None:
            return weighed
        most = [self._most(task, tools[candidate.name], characters) for candidate in weighed]
        kept = [candidate for candidate, cost in zip(weighed, most, strict=True) if paced.admits(cost)]
        # What the others will need at least is not spent on this one.
        least = min([self._weighing.usual_cost(tools[name]) or 0.0 for name in (c.name for c in weighed)])
        for_all = [c for c, cost in zip(weighed, most, strict=True) if paced.leaves_enough(cost, least)]
        if for_all:
            return for_all
        if not kept:
            used = paced.spent + paced.reserved
            raise BudgetExceeded("cost", paced.pacing.budget_usd, used + min(most), [c.name for c in weighed])
        return [min(zip(weighed, most, strict=True), key=lambda pair: pair[1])[0]]

    def _most(self, task: str, tool: ToolMetadata, characters: int) -> float:
        """USD that a request is held to cost at most: what is reserved for it."""
        arm = arm_of(tool)
        expected = self._weighing.cost(task, tool, characters) or 0.0
        return expected * MARGIN * self._worst.get(arm, 1.0)

    def _nearby(self, task: str, prompt: Prompt | None) -> Mapping[str, Nearby]:
        if prompt is None or self.neighbours is None:
            return {}
        return self.neighbours.near(prompt, task, lambda of, arm: self.beliefs.reward(of, arm).mean)

    def _explores(self, context: PlanRequest | None) -> bool:
        if self.explore == "off" or (context is not None and not context.explore):
            return False
        last = self._last_feedback
        return self.explore == "thompson" or (last is not None and self._decisions - last < STILL_COMES)

    def _choose(
        self, task: str, weighed: list[Candidate], home: str, tools: Tools, context: PlanRequest | None
    ) -> Choice:
        default = next((i for i, candidate in enumerate(weighed) if candidate.name == home), None)
        if default is None and len(weighed) > 1:
            # Where the default cannot serve, its place is taken by the one that does best in general.
            usual = [self.beliefs.usual(arm_of(tools[candidate.name])) for candidate in weighed]
            default = max(range(len(weighed)), key=lambda i: (usual[i], weighed[i].utility))
        if self.shadow:
            would = best(weighed, default, self.gate)
            at = default or 0
            return Choice(weighed, [float(i == at) for i in range(len(weighed))], would, at)
        if not self._explores(context):
            chosen = best(weighed, default, self.gate)
            return Choice(weighed, [float(i == chosen) for i in range(len(weighed))], chosen, default)
        odds = chances(weighed, default, self.gate, self._decided.get(task, 0))
        return Choice(weighed, odds, drawn(odds, self._chance()), default)

    def _decision(
        self,
        choice: Choice,
        task: str,
        asked: Any,
        tools: Tools,
        context: PlanRequest | None,
        characters: int,
        prompt: Prompt | None,
        allowed: Allowed,
        home: str,
        met: Mapping[str, Any],
    ) -> PlanDecision:
        chosen = self._taken(choice)
        taken = choice.candidates[chosen]
        tool = tools[taken.name]
        if context is not None and taken.name in context.versions:
            tool = tool.at(context.versions[taken.name]) or tool
        arm = arm_of(tool)
        predicted = self._weighing.cost(task, tool, characters)
        options = default_options(tool, asked, context)
        order = sorted(choice.candidates, key=lambda candidate: -candidate.utility)
        propensity = choice.chances[chosen]
        reasoning = reasoning_of(choice, chosen, home, self.shadow)
        if allowed.unserved:
            reasoning = f"No tool of rule {allowed.unserved[0]} can be used. {reasoning}"
        metadata: dict[str, Any] = {
            "selection_method": "learned",
            "propensity": propensity,
            "task_type": task,
            "candidates": {
                candidate.name: {"expected_reward": round(candidate.reward, 4), "runs": round(candidate.support)}
                for candidate in order[:MOST_FALLBACKS]
            },
            **met,
        }
        if self.shadow:
            metadata["shadow"] = choice.candidates[choice.chosen].name
        duration = self.beliefs.duration(task, arm)
        decision = PlanDecision.model_validate(
            {
                "selected_tool": taken.name,
                "tool_version": tool.version,
                "tool_options": options,
                "fallback_tools": [other.name for other in order if other.name != taken.name][:MOST_FALLBACKS],
                "estimated_cost": predicted,
                "estimated_duration_ms": self.estimate_duration(tool, options)
                if duration is None
                else math.ceil(duration),
                "confidence": confidence_in(choice, chosen),
                "reasoning": reasoning,
                "metadata": metadata,
            }
        )
        logged = None
        if self._log is not None:
            names = [candidate.name for candidate in choice.candidates]
            logged = Decided(task, names, taken.name, propensity, self.default_tool, _text_of(asked) or None)
        self._remember(decision, Pending(task, arm, characters, predicted, 0.0, prompt, logged), tool)
        return decision

    def _pinned(self, pinned: PlanDecision, task: str, asked: Any, tools: Tools) -> PlanDecision:
        metadata = {**pinned.metadata, "propensity": 1.0, "task_type": task}
        own = {"tool_options": {**pinned.tool_options}, "fallback_tools": [*pinned.fallback_tools]}
        decision = pinned.model_copy(update={**own, "metadata": metadata}, deep=False)
        tool = tools[pinned.selected_tool]
        if pinned.tool_version is not None and pinned.tool_version != tool.version:
            tool = tool.at(f"=={pinned.tool_version}") or tool
        characters, paced = characters_of(asked), self._paced
        most = self._most(task, tool, characters)
        if paced is not None and not paced.admits(most):
            used = paced.spent + paced.reserved
            raise BudgetExceeded("cost", paced.pacing.budget_usd, used + most, [pinned.selected_tool])
        arm = arm_of(tool)
        predicted = self._weighing.cost(task, tool, characters)
        prompt = None if self.neighbours is None else Prompt.of(_text_of(asked))
        self._remember(decision, Pending(task, arm, characters, predicted, 0.0, prompt, None), tool)
        return decision

    def _remember(self, decision: PlanDecision, pending: Pending, tool: ToolMetadata) -> None:
        decision_id = decision.metadata["decision_id"] = random.getrandbits(128).to_bytes(16, "big").hex()
        if self._paced is not None:
            pending.reserved = self._most(pending.task, tool, pending.characters)
            self._paced = self._paced.admit(pending.predicted or 0.0, pending.reserved)
        self._decisions += 1
        self._decided[pending.task] = self._decided.get(pending.task, 0) + 1
        self._pending[decision_id] = pending
        if len(self._pending) > MOST_PENDING:
            # What it reserved stays reserved: nobody said what it cost.
            self._pending.popitem(last=False)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def feedback(
        self,
        decision_id: str,
        reward: float | None,
        cost_usd: float | None = None,
        latency_ms: float | None = None,
    ) -> bool:
        """How good the answer was, 0 to 1 (None: nobody knows yet), what it cost in USD and took in ms.

        Told again, the newer reward takes the place of the older one: a person's verdict that of a first guess. Of a
        run that a fallback answered, it is the fallback's. False: the decision is not known, or no longer; nothing was
        learned.
        """
        reward = _told("reward", reward, 1.0)
        cost_usd, latency_ms = _told("cost_usd", cost_usd, math.inf), _told("latency_ms", latency_ms, math.inf)
        pending = self._pending.get(decision_id)
        shared = self._shared
        if pending is None and shared is not None:
            note = await shared.kept(decision_id)
            pending = None if note is None else unpacked(note)
        if pending is None:
            _log.debug("feedback for the decision %s, which is not known", decision_id)
            return False
        await self._fed(decision_id, pending, pending.answered or pending, reward, cost_usd, latency_ms)
        return True

    async def _fed(
        self,
        decision_id: str,
        pending: Pending,
        of: Pending,
        reward: float | None,
        cost: float | None,
        ms: float | None,
    ) -> None:
        """Learn it, here and for all. `of`: the decision's own tool, or another that its run came to."""
        more, line, freed = self._feed(decision_id, of, reward, cost, ms)
        if self._shared is not None:
            await self._shared.add((of.task, of.arm), of.arm, more, line, freed)
            await self._shared.keep(decision_id, packed(pending))

    def _feed(
        self, decision_id: str, pending: Pending, reward: float | None, cost: float | None, ms: float | None
    ) -> tuple[Seen, Line | None, float]:
        added = self._learn(pending, reward, cost, ms)
        if reward is not None:
            self._last_feedback = self._decisions
            if self._log is not None and pending.logged is not None:
                self._log(line_of(decision_id, pending.logged, reward, pending.cost, pending.ms))
        return added

    def observe(self, request: Any, decision: PlanDecision, outcomes: Sequence[Outcome]) -> None:
        self.rules.observe(request, decision, outcomes)
        decision_id = decision.metadata.get("decision_id", "")
        pending = self._pending.get(decision_id)
        if pending is None:
            return
        for outcome in outcomes:
            of = self._concerned(pending, outcome)
            reward = self._judged(request, outcome)
            if self._shared is None and not inspect.isawaitable(reward):
                self._feed(decision_id, of, reward, outcome.cost_usd, outcome.duration_ms)
            else:
                self._tell(self._observed(decision_id, pending, of, reward, outcome))

    def _concerned(self, pending: Pending, outcome: Outcome) -> Pending:
        """The decision itself, or the same for a fallback: what that cost is spent from the same budget. The one that
        answered is kept for who says later what the answer is worth, and what was reserved is settled by its cost."""
        arm = f"{outcome.tool}@{outcome.version}"
        if arm == pending.arm:
            return pending
        other = Pending(pending.task, arm, pending.characters, None, 0.0, pending.prompt, None, row=pending.row)
        if outcome.succeeded:
            pending.answered = other
            other.reserved, pending.reserved = pending.reserved, 0.0
        return other

    def _judged(self, request: Any, outcome: Outcome) -> float | Awaitable[float | None] | None:
        if not outcome.succeeded:
            return 0.0
        if self._evaluator is None:
            return outcome.confidence if self._trust_confidence else None
        try:
            found = self._evaluator(request, outcome.content)
            return found if inspect.isawaitable(found) else _told("the evaluator's reward", found, 1.0)
        except Exception:
            _log.warning("the evaluator failed; nothing is learned of the answer of %r", outcome.tool, exc_info=True)
            return None

    async def _observed(
        self,
        decision_id: str,
        pending: Pending,
        of: Pending,
        reward: float | Awaitable[float | None] | None,
        outcome: Outcome,
    ) -> None:
        try:
            known = await reward if inspect.isawaitable(reward) else reward
            _told("the evaluator's reward", known, 1.0)
        except Exception:
            _log.warning("the evaluator failed; nothing is learned of the answer of %r", outcome.tool, exc_info=True)
            known = None
        await self._fed(decision_id, pending, of, known, outcome.cost_usd, outcome.duration_ms)

    def _tell(self, work: Coroutine[Any, Any, Any]) -> None:
        """No run waits for what is learned of it."""
        task = asyncio.get_running_loop().create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._was_told)

    def _was_told(self, task: asyncio.Task[Any]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("what a run told could not be learned", exc_info=task.exception())

    async def settled(self) -> None:
        """Wait until everything that runs told has been learned."""
        while self._telling:
            await asyncio.wait(self._telling)

    async def aclose(self) -> None:
        """Wait until everything is learned, and close the store. It is opened again if the planner is used again."""
        await self.settled()
        if self._shared is not None:
            await self._shared.aclose()

    def _learn(
        self, pending: Pending, reward: float | None, cost: float | None, ms: float | None
    ) -> tuple[Seen, Line | None, float]:
        """Move the state; what was added to the cell and to the line of costs, and by how much spending changed."""
        cell = (pending.task, pending.arm)
        first = pending.reward is None
        if pending.prompt is not None and reward is not None and self.neighbours is not None:
            expected = self.beliefs.reward(*cell).mean
            outcome = Known(pending.task, pending.arm, reward)
            pending.row = self.neighbours.add(pending.prompt, outcome, expected, pending.row)
        runs = float(first) if reward is not None else 0.0
        gain = 0.0 if reward is None else reward - (pending.reward or 0.0)
        told_cost, told_ms = cost is not None and pending.cost is None, ms is not None and pending.ms is None
        line, ratio = None, 0.0
        if told_cost and cost is not None:
            ratio = self._ratio(pending, cost)
            line = Line.point(pending.characters, cost)
            self.beliefs.add_cost(pending.arm, line)
        more = Seen(runs, gain, float(told_cost), ratio, float(told_ms), ms if told_ms and ms is not None else 0.0)
        self.beliefs.add(cell, more)
        freed = self._settle(pending, cost)
        pending.cost = cost if told_cost else pending.cost
        pending.ms = ms if told_ms else pending.ms
        if reward is not None:
            pending.reward = reward
            if first and pending.decided:
                self._look_for_change(cell, reward)
        return more, line, freed

    def _ratio(self, pending: Pending, cost: float) -> float:
        """What was paid over what the tool's line says for this length."""
        line = self.beliefs.lines.get(pending.arm)
        by_line = None if line is None else line.at(pending.characters)
        if pending.predicted:
            self._worst[pending.arm] = max(self._worst.get(pending.arm, 1.0), cost / pending.predicted)
        return cost / by_line if by_line else 1.0

    def _settle(self, pending: Pending, cost: float | None) -> float:
        if self._paced is None or cost is None or pending.cost is not None or not pending.decided:
            return 0.0
        self._paced = self._paced.settle(pending.reserved, cost)
        freed, pending.reserved = cost - pending.reserved, 0.0
        return freed

    def _look_for_change(self, cell: tuple[str, str], reward: float) -> None:
        self._watches[cell], changed = watched(self._watches.get(cell, Watch()), reward)
        if not changed:
            return
        runs, total = kept(self._watches[cell])
        was = self.beliefs.cells[cell]
        _log.warning(
            "%s does differently on %r than it did (%.2f over %d runs, now %.2f over %d): what was learned of it "
            "there before is forgotten",
            cell[1],
            cell[0],
            (was.reward - total) / max(was.runs - runs, 1),
            was.runs - runs,
            total / max(runs, 1),
            runs,
        )
        forgotten = was._replace(runs=float(runs), reward=total)
        if self._shared is not None:
            self._shared.forget(cell, was, forgotten)
        self.beliefs.replace(cell, forgotten)

    async def release(self, decision_id: str) -> None:
        """The request was given up before anything was sent: what was reserved for it is free again."""
        freed = self._give_back(decision_id)
        if self._shared is not None and freed:
            await self._shared.free(freed)

    def _give_back(self, decision_id: str) -> float:
        pending = self._pending.pop(decision_id, None)
        if pending is None or self._paced is None or not pending.reserved:
            return 0.0
        self._paced = self._paced.settle(pending.reserved, 0.0)
        return pending.reserved

    async def _catch_up(self, shared: SharedBeliefs, at_once: bool = False) -> None:
        await shared.catch_up(time.monotonic(), at_once)
        if self._paced is not None:
            used = shared.used
            self._paced = replace(self._paced, spent=max(used - self._paced.reserved, 0.0))

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Start from what is known already. A row has `type`, `query` and `scores` (reward by tool), and may have
        `costs` (USD by tool). How many outcomes were learned. Not with a store: there everything is told by feedback.
        """
        if self._shared is not None:
            raise InvalidRequest("store", "given", "learn from rows without one; with a store, use feedback")
        count = 0
        for row in rows:
            task, text = row.get("type") or "", row.get("query") or ""
            costs = row.get("costs") or {}
            prompt = None if self.neighbours is None else Prompt.of(text)
            at: int | None = None
            for name, reward in row["scores"].items():
                arm = name if "@" in name else f"{name}@1.0.0"
                pending = Pending(task, arm, len(text), None, 0.0, prompt, None, row=at, decided=False)
                self._learn(pending, _told("reward", reward, 1.0), costs.get(name), None)
                at = pending.row
                count += 1
        return count


def _explore(given: Any) -> Explore:
    named: dict[Any, Explore] = {True: "thompson", False: "off", None: "off"}
    if isinstance(given, str) and given in ("auto", "thompson", "off"):
        return given  # type: ignore[return-value]
    if given is None or isinstance(given, bool):
        return named[given]
    raise InvalidRequest("explore", given, 'give "auto", "thompson" or "off"')


def _from_zero(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
        raise InvalidRequest(name, given, "give a number from 0")
    return float(given)


def _told(name: str, given: Any, most: float) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given <= most or given == math.inf:
        raise InvalidRequest(name, given, f"give a number from 0{' to 1' if most == 1.0 else ''}")
    return float(given)


def _text_of(asked: Any) -> str:
    if isinstance(asked, Mapping):
        for key in ("query", "prompt", "text", "content", "input"):
            if isinstance(value := asked.get(key), str):
                return value
    return ""
