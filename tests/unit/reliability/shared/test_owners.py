"""Accounts with owners: whatever is lost on the way to the store, nothing is charged twice and nothing is forgotten."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared_model import LINES, ModelLink, Store, look, make
from steer_llm_sdk.reliability.budget import Budget, Claim, Limits, NamedAccount
from steer_llm_sdk.reliability.shared.budgets import AccountCell, SetAside, _held
from steer_llm_sdk.reliability.shared.owners import Give

ESTIMATE = Claim(10, 0)
CALLS = st.lists(st.one_of(st.none(), st.integers(0, 10)), min_size=1, max_size=4)
"""None begins a call; a number ends the oldest one, which has taken so many tokens."""
EVENTS = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(CALLS, st.sampled_from(["look", "renew", "part"])), st.sampled_from(LINES)),
    max_size=30,
)


def account(store: Store, limit: int) -> AccountCell:
    budget = Budget("team", tokens=limit)
    link: Any = ModelLink(store)
    cell = AccountCell(link, budget, Limits(limit), NamedAccount(budget))
    link.cell = cell
    return cell


TWO_ANSWERS_LOST = [
    (0, [None], "good"),
    (0, "part", "good"),
    (0, [None, 4], "good"),
    (0, [3], "good"),
    (0, "look", "answer lost"),
    (0, "look", "answer lost"),
]
"""It has told the store twice what it used alone, and does not know that it was heard."""


@example(TWO_ANSWERS_LOST)
@settings(max_examples=400)
@given(EVENTS)
def test_the_store_has_the_sum_of_what_all_calls_took_and_nothing_stays_reserved(events: Any) -> None:
    store = Store()
    cells = [account(store, 10**6) for _ in range(2)]
    held: list[list[Any]] = [[], []]
    charged = 0
    for who, what, line in events:
        cell = cells[who]
        if what == "look":
            look(cell, line=line)
        elif what == "renew":
            store.now += 1
            make(cell, cell._renew, line=line)
        elif what == "part":
            cell.part()
        else:
            steps: list[Any] = []
            for tokens in what:
                if tokens is None:
                    steps.append(SetAside(cell, ESTIMATE))
                elif held[who]:
                    charged += tokens
                    steps.append(Give(cell, held[who].pop(0), Claim(tokens, 0), _held(ESTIMATE)))
            for step, answer in zip(steps, make(cell, *steps, line=line), strict=True):
                if isinstance(step, SetAside) and answer[0] is None:
                    held[who].append(answer[1])
        standing = cell.decode(store.entry.text) if store.entry.text else None
        assert standing is None or standing.value.reserved_tokens >= 0
    for cell, terms in zip(cells, held, strict=True):
        look(cell)
        for term in terms:
            charged += 7
            make(cell, Give(cell, term, Claim(7, 0), _held(ESTIMATE)))
        assert not cell.alone
    if store.entry.text is not None:
        value = cells[0].decode(store.entry.text).value
        assert (value.spent_tokens, value.reserved_tokens) == (charged, 0)
