"""**Success is honest.**"""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import pytest

from contract.kit import Model, bundle, failed, plain, reliable
from steer_llm_sdk import tool
from steer_llm_sdk.errors import AllToolsFailed, TruncatedStream
from steer_llm_sdk.orchestration import BundleMetadata, EvidenceBundle, Replicate, ReplicateQuality
from steer_llm_sdk.orchestration.output import RunFailed
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


@BOTH
@pytest.mark.parametrize(
    ("made", "status"),
    [
        (bundle("a", "a", "a"), "succeeded"),
        (bundle("a", "a", invalid=1), "partial"),
        (bundle("a", k=3), "partial"),
        (bundle(invalid=3), "failed"),
        (bundle("a", "a", k=5, early_stopped=True, early_stop_reason="converged"), "succeeded"),
        (bundle("a", "a", k=5, early_stopped=True, early_stop_reason="budget"), "partial"),
        (bundle("a", "a", k=5, early_stopped=True, early_stop_reason="decided", min_valid=3), "partial"),
        (bundle("a", "a", k=5, early_stopped=True, early_stop_reason="decided", min_valid=2), "succeeded"),
        (bundle("a", "a", k=5, early_stopped=True, early_stop_reason="deadline"), "partial"),
        (bundle("a", k_completed=1, k=1), "succeeded"),
    ],
)
async def test_all_replicates_failed_is_failed_and_fewer_than_asked_is_partial(
    orchestrator: Any, made: EvidenceBundle, status: str
) -> None:
    output = await orchestrator(ScriptedTool("t", OK(made))).run("q", "t")
    assert output.status == status
    assert output.metadata["bundle_meta"]["k"] == made.meta.k


@BOTH
async def test_a_bundle_that_claims_more_than_it_has_is_not_believed(orchestrator: Any) -> None:
    none = [Replicate(id=str(n), quality=ReplicateQuality(valid=False)) for n in range(3)]
    some = [Replicate(id="good", data="a"), *none[:2]]
    for replicates, status in ((none, "failed"), (some, "partial")):
        boast = EvidenceBundle(meta=BundleMetadata(task="t", k=3, k_completed=3), replicates=replicates)
        assert (await orchestrator(ScriptedTool("t", OK(boast))).run("q", "t")).status == status


@BOTH
async def test_what_a_failed_bundle_cost_and_said_is_kept_beside_the_error(orchestrator: Any) -> None:
    made = bundle(invalid=2, usage={"total_tokens": 30}, cost=0.5)
    output = await orchestrator(ScriptedTool("t", OK(made))).run("q", "t")
    assert failed(output)["type"] == "NoValidReplicate"
    assert (output.usage, output.cost_usd) == ({"total_tokens": 30}, 0.5)
    assert len(output.evidence.replicates) == 2
    assert output.errors == {"t": output.content["error"]}


@BOTH
async def test_a_truncated_stream_is_never_success(orchestrator: Any) -> None:
    model = Model(TruncatedStream("the stream stopped without its end marker", "p"))
    info = failed(await orchestrator(LLMTool("t", model)).run("q", "t", None, {"retry_on_failure": False}))
    assert (info["type"], info["code"]) == ("TruncatedStream", "bad_response")


@BOTH
async def test_a_bundle_of_truncated_streams_has_failed(orchestrator: Any) -> None:
    model = Model(TruncatedStream("the stream stopped without its end marker", "p"))
    output = await orchestrator(LLMBundleTool("t", model, k=3, options={"latency": "min"})).run(
        "q", "t", None, {"retry_on_failure": False}
    )
    assert output.status == "failed"


@BOTH
async def test_a_model_that_dies_in_the_middle_of_a_bundle_makes_it_partial(orchestrator: Any) -> None:
    model = Model("yes", "yes", ProviderError("down", "p", 503))
    output = await orchestrator(LLMBundleTool("t", model, k=4, options={"latency": "min"})).run(
        "q", "t", None, {"retry_on_failure": False, "max_parallel": 1}
    )
    assert (output.status, output.evidence.meta.k_completed) == ("partial", 2)


@BOTH
async def test_the_events_of_a_failed_run_end_with_an_error_and_of_a_partial_one_say_so(orchestrator: Any) -> None:
    for made, last, status in ((bundle(invalid=2), "error", None), (bundle("a", invalid=1), "complete", "partial")):
        events = RecordedEvents()
        await orchestrator(ScriptedTool("t", OK(made))).run("q", "t", None, None, events)
        assert events.types == ["start", last]
        assert events.all[-1].metadata.get("status") == status


@BOTH
async def test_raise_for_status_raises_for_a_failed_output_and_no_other(orchestrator: Any) -> None:
    for made in (bundle("a"), bundle("a", invalid=1)):
        output = await orchestrator(ScriptedTool("t", OK(made))).run("q", "t")
        assert output.raise_for_status() is output
    output = await orchestrator(ScriptedTool("t", OK(bundle(invalid=2)))).run("q", "t")
    with pytest.raises(RunFailed, match="no replicate of the bundle is valid") as caught:
        output.raise_for_status()
    assert caught.value.output is output


# ── an exception of the tool's own ───────────────────────────────────────────────────────────────────────────────────


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, Any]]:
    return [(r.levelname, r.getMessage(), r.exc_info and r.exc_info[1]) for r in caplog.records]


@pytest.mark.parametrize("bug", [KeyError("price"), ValueError("no such price")])
async def test_a_bug_of_a_tool_is_logged_once_with_its_traceback_and_can_be_reached(
    bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    output = await reliable(ScriptedTool("shop", err(bug))).run("q")
    assert told(caplog) == [("WARNING", f"tool 'shop' raised {type(bug).__name__}", bug)]
    with pytest.raises(RunFailed, match=r"the run failed: tool 'shop': .*price") as caught:
        output.raise_for_status()
    assert caught.value.__cause__ is bug


@pytest.mark.parametrize("in_a_thread", [True, False])
async def test_the_traceback_of_a_bug_begins_in_the_tool(in_a_thread: bool, caplog: pytest.LogCaptureFixture) -> None:
    def broken(city: str) -> str:
        raise KeyError(city)

    async def broken_too(city: str) -> str:
        return broken(city)

    await reliable(tool(broken if in_a_thread else broken_too)).run({"city": "Bern"})
    (record,) = caplog.records
    assert record.exc_info is not None
    names = [frame.name for frame in traceback.extract_tb(record.exc_info[2])]
    assert names == (["broken"] if in_a_thread else ["broken_too", "broken"])


async def test_of_several_tools_that_failed_every_exception_can_be_reached(caplog: pytest.LogCaptureFixture) -> None:
    first, second = KeyError("a"), ProviderError("no", "p", 400)
    output = await reliable(ScriptedTool("a", err(first)), ScriptedTool("b", err(second))).run("q")
    with pytest.raises(RunFailed, match="the run failed: a: 'a'; b: no") as caught:
        output.raise_for_status()
    assert isinstance(caught.value.__cause__, AllToolsFailed)
    assert list(caught.value.__cause__.failures.values()) == [first, second]
    assert [error for _, _, error in told(caplog)] == [first]


async def test_what_a_provider_says_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    output = await reliable(ScriptedTool("t", err(400))).run("q")
    assert (output.status, told(caplog)) == ("failed", [])


async def test_the_exception_is_no_part_of_the_output() -> None:
    runner = reliable(ScriptedTool("t", err(KeyError("x"))))
    output = await runner.run("q", "t", None, {"idempotency_key": "k"})
    again = await runner.run("q", "t", None, {"idempotency_key": "k"})
    read = type(output).model_validate_json(output.model_dump_json())
    for copy in (again, read, output.model_copy(deep=True), pickle.loads(pickle.dumps(output))):
        assert copy == output
        with pytest.raises(RunFailed) as caught:
            copy.raise_for_status()
        assert caught.value.__cause__ is None
