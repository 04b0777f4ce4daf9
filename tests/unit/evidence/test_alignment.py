"""Which elements belong together, against an oracle."""

from __future__ import annotations

from math import fsum

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from steer_llm_sdk.evidence._alignment import assigned


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_an_assignment_costs_as_little_as_that_of_scipy(rows: int, columns: int, data: st.DataObject) -> None:
    row = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=16), min_size=columns, max_size=columns)
    cost = data.draw(st.lists(row, min_size=rows, max_size=rows))
    pairs = assigned(cost)
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}) == min(rows, columns)
    oracle = np.array(cost)[linear_sum_assignment(np.array(cost))]
    assert abs(fsum(cost[one][other] for one, other in pairs) - oracle.sum()) < 1e-9


def test_nothing_is_assigned_to_nothing() -> None:
    assert assigned([]) == assigned([[]]) == []
