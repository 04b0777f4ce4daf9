"""Bundles that stop when they know enough, ask for no answer in vain, and say how far to trust them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from scripted_model import Say, ScriptedModel

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.evidence import Calibrator, FieldPolicy, stability
from steer_llm_sdk.orchestration import EvidenceBundle, Orchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.testing import RecordedEvents, VirtualTimeLoop


class Answers:
    """Gives the answers in order of the seeds; an answer may come `after` some seconds, None fails."""

    def __init__(self, *answers: Any, after: Sequence[float] = ()) -> None:
        self.answers = answers
        self.after = after
        self.asked: list[int] = []
        self.running = self.most = self.cancelled = 0

    async def __call__(self, request: Any, seed: int) -> Any:
        self.asked.append(seed)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.after[seed] if seed < len(self.after) else 1.0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if (answer := self.answers[seed % len(self.answers)]) is None:
            raise RuntimeError("no answer")
        return answer


async def bundle(answers: Answers, **options: Any) -> EvidenceBundle:
    return await SimpleBundleTool(answers).execute("q", options)


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "options", "asked", "reason"),
    [
        ("aaaaa", {"k": 5}, 3, "decided"),
        ("aabaa", {"k": 5}, 4, "decided"),
        ("abbaa", {"k": 5}, 5, None),
        ("aaaaaaaaaa", {"k": 10}, 6, "decided"),
        ("aaaaaaaaaa", {"k": 10, "stop": "pcurtail"}, 3, "converged"),
        ("aaaaaaaaaa", {"k": 10, "stop": "pcurtail", "risk": 0.05}, 2, "converged"),
        ("aaaaaaaaaa", {"k": 10, "stop": "certified", "risk": 0.05}, 9, "certified"),
        ("aaaaaaaaaa", {"k": 10, "stop": "distance"}, 2, "distance"),
        ("abaaaaaaaa", {"k": 10, "stop": "distance"}, 10, "distance"),
        ("abaaaaaaaa", {"k": 10, "stop": "distance", "epsilon": 0.5}, 4, "distance"),
        # Futile after seven, when one was still in flight: it is waited for.
        ("abcdeabcde", {"k": 10, "floor": 0.6}, 8, "futile"),
        ("aaaaa", {"k": 5, "latency": "min"}, 5, None),
    ],
)
async def test_a_bundle_stops_when_its_rule_holds(
    said: str, options: dict[str, Any], asked: int, reason: str | None
) -> None:
    answers = Answers(*said)
    made = await bundle(answers, **options)
    stopped = asked < options["k"]
    assert (len(answers.asked), len(made.replicates)) == (asked, asked)
    assert (made.meta.early_stopped, made.meta.early_stop_reason) == (stopped, reason if stopped else None)
    notes = made.metadata["stopping"]
    assert (notes["asked"], notes["k"], len(notes["trace"])) == (asked, options["k"], asked)


async def test_what_cannot_get_valid_enough_stops() -> None:
    answers = Answers(None, "a", None, "a", "a")
    made = await bundle(answers, k=5, min_valid=4, max_parallel=1)
    assert (made.meta.early_stop_reason, answers.asked) == ("too_many_invalid", [0, 1, 2])


@pytest.mark.parametrize("stop", ["curtail", "pcurtail", "distance"])
async def test_a_rule_that_holds_waits_for_as_many_valid_answers_as_are_wanted(stop: str) -> None:
    answers = Answers("a", None, "a", "a", "a", "a")
    made = await bundle(answers, k=6, min_valid=4, stop=stop, max_parallel=1)
    assert (made.meta.k_completed, made.meta.min_valid, len(answers.asked)) == (4, 4, 5)


async def test_every_field_must_be_decided() -> None:
    said = [{"a": 1, "b": seed % 2} for seed in range(5)]
    assert len((await bundle(Answers(*said), k=5)).replicates) == 5
    only_a = SimpleBundleTool(Answers(*said), fields=["a"])
    assert len((await only_a.execute("q", {"k": 5})).replicates) == 3


async def test_a_bundle_that_stopped_because_it_was_decided_has_succeeded() -> None:
    registry = ToolRegistry()
    registry.register_tool(SimpleBundleTool(Answers("a")))
    output = await Orchestrator(registry=registry).run("q", "simple_bundle", {"k": 5})
    assert output.status == "succeeded"


@pytest.mark.parametrize("options", [{"floor": 0.6}, {"min_valid": 10}])
async def test_one_that_gave_up_is_partial(options: dict[str, Any]) -> None:
    registry = ToolRegistry()
    registry.register_tool(SimpleBundleTool(Answers(*"abcd", None, *"efghi")))
    output = await Orchestrator(registry=registry).run("q", "simple_bundle", {"k": 10, **options})
    assert output.status == "partial"


answers_of = st.lists(st.sampled_from(["a", "b", {"x": 1}, {"x": 1, "y": 2}, {"x": 2}, None]), min_size=10, max_size=10)


@settings(deadline=None, max_examples=150)
@given(answers_of, st.integers(2, 10), st.lists(st.floats(0.1, 5), min_size=10, max_size=10))
def test_curtailment_never_changes_the_consensus(said: list[Any], k: int, after: list[float]) -> None:
    """Whatever the answers and whoever is slow: where it stops early, all k would have said the same."""
    if not any(said[:k]):
        return
    early = Answers(*said, after=after)

    async def both() -> tuple[EvidenceBundle, EvidenceBundle]:
        return await bundle(early, k=k), await bundle(Answers(*said), k=k, latency="min")

    loop = VirtualTimeLoop()
    stopped, full = loop.run_until_complete(both())
    loop.close()
    if stopped.meta.early_stopped:
        assert stopped.summary.consensus == full.summary.consensus
    else:
        assert len(stopped.replicates) == k


POLICIES = {
    "near": FieldPolicy(abs_tol=1),
    "middle": FieldPolicy(consensus="median"),
    "text": FieldPolicy(similarity=0.5, consensus="medoid"),
    "set": FieldPolicy(consensus="union"),
    "few": FieldPolicy(consensus="union", threshold=0.3),
    "rows": FieldPolicy(key="id"),
    "found": FieldPolicy(align=True),
    "alike": FieldPolicy(align=True),
    "first": FieldPolicy(consensus="first_valid"),
    "free": FieldPolicy(compare="ignore"),
}
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "near": st.sampled_from([1, 1, 1, 2, 3, 4]),
        "middle": st.sampled_from([1, 1, 1, 5, 9]),
        "text": st.sampled_from(["the cat sat", "the cat sat", "the cat sits", "a dog"]),
        "set": st.sampled_from([["a"], ["a"], ["a", "b"], ["b", "c"]]),
        "few": st.sampled_from([["a"], ["a"], ["a", "b"]]),
        "rows": st.sampled_from([[{"id": 1, "n": 1}], [{"id": 1, "n": 1}], [{"id": 1, "n": 2}, {"id": 2, "n": 1}], []]),
        "found": st.sampled_from(
            [[{"id": 1, "n": 1}, {"id": 2, "n": 5}], [{"id": 1, "n": 1}, {"id": 2, "n": 5}], [{"id": 2, "n": 5}], [{}]]
        ),
        "alike": st.sampled_from(
            [["a cat", "a dog"], ["a cat", "a dog"], ["a dog", "a cat"], ["a dig"], ["a cat"] * 2]
        ),
        "first": st.sampled_from([1, 1, 2]),
    },
)


@settings(deadline=None, max_examples=200)
@given(st.data(), st.lists(RECORDS, min_size=8, max_size=8), st.integers(3, 8))
def test_nor_does_it_under_any_policy(data: st.DataObject, said: list[Any], k: int) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(POLICIES)), min_size=1, max_size=2))
    said = [{name: each[name] for name in names if name in each} | {"free": seed} for seed, each in enumerate(said)]
    tool = {"fields": {**{name: POLICIES[name] for name in names}, "free": POLICIES["free"]}}

    async def both() -> tuple[EvidenceBundle, EvidenceBundle]:
        early = await SimpleBundleTool(Answers(*said), **tool).execute("q", {"k": k})
        return early, await SimpleBundleTool(Answers(*said), **tool).execute("q", {"k": k, "latency": "min"})

    loop = VirtualTimeLoop()
    stopped, full = loop.run_until_complete(both())
    loop.close()
    if stopped.meta.early_stopped:
        one, other = (dict(each.summary.consensus or {}) for each in (stopped, full))
        one.pop("free", None), other.pop("free", None)
        assert one == other


async def test_policies_come_from_the_annotations_of_an_output_model_too() -> None:
    class Bill(BaseModel):
        total: Annotated[float, FieldPolicy(rel_tol=0.05)]

    model = ScriptedModel({"total": 100}, {"total": 101}, {"total": 102}, {"total": 7})
    made = await LLMBundleTool("b", model, output_type=Bill, k=4).execute("What is the total?")
    assert (made.summary.consensus, len(made.replicates)) == ({"total": 101}, 4)


async def test_an_array_that_is_voted_on_element_by_element_is_decided_by_a_majority_of_all() -> None:
    tool = SimpleBundleTool(Answers(["a"], ["a"], ["a"], ["b"], ["c"]), fields={"$": FieldPolicy(consensus="union")})
    assert len((await tool.execute("q", {"k": 5})).replicates) == 3
    first = SimpleBundleTool(Answers("a"), fields={"$": FieldPolicy(consensus="first_valid")})
    assert len((await first.execute("q", {"k": 5})).replicates) == 5


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from("aaabc"), min_size=10, max_size=10),
    st.integers(2, 10),
    st.lists(st.floats(0.1, 5), min_size=10, max_size=10),
    st.sampled_from(["curtail", "pcurtail", "certified"]),
)
def test_what_is_asked_is_used_and_nothing_is_cancelled(said: list[str], k: int, after: list[float], rule: str) -> None:
    answers = Answers(*said, after=after)
    loop = VirtualTimeLoop()
    made = loop.run_until_complete(bundle(answers, k=k, stop=rule))
    loop.close()
    assert (len(answers.asked), answers.cancelled) == (len(made.replicates), 0)
    # Without an invalid answer nothing is in flight when it stops: the trace says so with its last line alone.
    assert [line["need"] == 0 for line in made.metadata["stopping"]["trace"][:-1]].count(True) == 0


async def test_as_many_run_at_once_as_are_needed_and_no_more() -> None:
    answers = Answers(*"aaabbaaaaa")
    await bundle(answers, k=10)
    assert answers.most == 6
    few = Answers(*"aaabbaaaaa")
    await bundle(few, k=10, max_parallel=2)
    assert few.most == 2


async def test_the_slowest_answer_is_waited_for_and_counted() -> None:
    answers = Answers("a", "b", "a", "a", "a", after=[1, 100, 1, 1, 1])
    made = await bundle(answers, k=5)
    assert [replicate.data for replicate in made.replicates] == ["a", "b", "a", "a"]
    assert answers.cancelled == 0


# ── confidence ───────────────────────────────────────────────────────────────────────────────────────────────────────


def calibrator(model: str = "simple_bundle", k: int = 5, **given: Any) -> Calibrator:
    votes = [["a"] * 3 + [None] * 2 if number % 2 else ["a", "a", "b", "a", "b"] for number in range(100)]
    return Calibrator.fit(
        votes, [number % 2 == 1 or number % 4 == 0 for number in range(100)], k=k, model=model, **given
    )


async def test_confidence_is_stability_without_labels_and_says_so() -> None:
    summary = (await bundle(Answers("a"), k=5)).summary
    assert (summary.confidence_is, summary.confidence) == ("stability", pytest.approx(stability(["a"] * 3)))
    assert (summary.support, summary.stability, summary.trust) == (1.0, summary.confidence, None)


async def test_confidence_is_trust_with_a_calibrator() -> None:
    made = calibrator()
    summary = (await SimpleBundleTool(Answers("a"), calibrator=made).execute("q", {"k": 5})).summary
    assert (summary.confidence_is, summary.confidence) == ("trust", pytest.approx(made.trust(["a"] * 3)))
    assert summary.stability == pytest.approx(stability(["a"] * 3))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (calibrator(model="another"), "model = 'simple_bundle': this calibrator is of model = 'another'"),
        (calibrator(k=7), "k = 5: this calibrator is of k = 7"),
        (calibrator(rule="pcurtail"), "rule = 'curtail': this calibrator is of rule = 'pcurtail'"),
    ],
)
async def test_a_calibrator_of_other_answers_is_refused_with_a_warning(made: Calibrator, says: str) -> None:
    events = RecordedEvents()
    answered = await SimpleBundleTool(Answers("a"), calibrator=made).execute("q", {"k": 5}, events)
    assert answered.summary.confidence_is == "stability"
    assert says in answered.metadata["calibrator_refused"]
    assert says in events.data("warning")[0]["message"]


async def test_one_without_labels_is_no_trust() -> None:
    unlabelled = Calibrator.fit([], [], k=5, model="simple_bundle")
    made = await SimpleBundleTool(Answers("a"), calibrator=unlabelled).execute("q", {"k": 5})
    assert (made.summary.confidence_is, made.summary.trust) == ("stability", None)


async def test_a_model_has_its_own_calibrator() -> None:
    tool = LLMBundleTool("b", ScriptedModel("yes"), k=5, calibrator=calibrator(model="test:model"))
    assert (await tool.execute("Why?")).summary.confidence_is == "trust"
    other = LLMBundleTool("b", ScriptedModel("yes"), k=5, calibrator=calibrator(model="test:other"))
    assert (await other.execute("Why?")).summary.confidence_is == "stability"


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_come_as_things_happen_with_the_running_stability() -> None:
    events = RecordedEvents()
    await SimpleBundleTool(Answers(*"abaaa", after=[1, 2, 3, 4, 5])).execute("q", {"k": 5}, events)
    told = [event for event in events.types if event not in ("bundle_started", "bundle_ready")]
    assert told == [
        *["replicate_started"] * 3,
        "replicate_done",
        "replicate_done",
        "partial_summary",
        "replicate_started",
        "replicate_done",
        "partial_summary",
        "replicate_done",
    ]
    first, second = events.data("partial_summary")
    assert (first["need"], second["need"]) == (2, 1)
    assert first["stability"] < second["stability"] < events.data("bundle_ready")[0]["stability"]


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_cost_that_was_saved_is_that_of_the_answers_not_asked_for() -> None:
    made = await SimpleBundleTool(Answers("a"), price_usd=0.02).execute("q", {"k": 5})
    assert (made.cost_total_usd, made.metadata["stopping"]["cost_saved_usd"]) == (
        pytest.approx(0.06),
        pytest.approx(0.04),
    )


async def test_an_unknown_cost_saves_an_unknown_amount() -> None:
    reply = {"cost_usd": None}
    made = await LLMBundleTool("b", ScriptedModel(Say(text="yes", reply=reply)), k=5).execute("Why?")
    assert (made.cost_total_usd, made.metadata["stopping"]["cost_saved_usd"]) == (None, None)


async def test_no_answer_is_asked_for_that_the_budget_does_not_have() -> None:
    answers = Answers(*"abcdefghij")
    tool = SimpleBundleTool(answers, price_usd=0.02)
    made = await tool.execute("q", {"k": 10, "global_budget": {"cost_usd": 0.07}})
    assert (len(answers.asked), made.meta.early_stop_reason) == (3, "budget")
    with pytest.raises(BudgetExceeded):
        await tool.execute("q", {"k": 10, "global_budget": {"cost_usd": 0.01}})
    assert len(answers.asked) == 3


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tool_may_have_its_own_defaults_for_options() -> None:
    assert SimpleBundleTool(options={"stop": "pcurtail", "k": 7}).default_options == {"stop": "pcurtail", "k": 7}
    with pytest.raises(InvalidRequest, match="stop"):
        SimpleBundleTool(options={"stop": "soon"})
    with pytest.raises(InvalidRequest, match="temper"):
        LLMBundleTool("b", ScriptedModel("yes"), options={"temper": 1})


@pytest.mark.parametrize(
    "options", [{"stop": "soon"}, {"risk": 0}, {"risk": 1}, {"floor": 1.1}, {"latency": "max"}, {"min_valid": 0}]
)
async def test_an_option_that_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        await bundle(Answers("a"), **options)
