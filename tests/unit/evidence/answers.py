"""What the tests of evidence make replicates from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from steer_llm_sdk.orchestration.models import Replicate, ReplicateQuality


def valid(*data: Any) -> list[Replicate]:
    """Valid replicates r1, r2, ... with these data."""
    return [Replicate(id=f"r{number}", data=value) for number, value in enumerate(data, start=1)]


def invalid(replicate_id: str) -> Replicate:
    return Replicate(id=replicate_id, quality=ReplicateQuality(valid=False, errors=["no JSON"]))


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.5]) | st.sampled_from("abc")
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "a.b", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)
records = st.fixed_dictionaries({}, optional=dict.fromkeys(("answer", "why", "n"), json_values))
answers = st.one_of(records, json_values)
