"""copied: what can be written is made anew, what cannot is kept, and nothing raises."""

from __future__ import annotations

from collections import OrderedDict, UserList, defaultdict
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.models.plain import copied

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def containers(value: Any) -> list[int]:
    """The identities of everything in it that can be written."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    own = [id(value)] if isinstance(value, (dict, list)) else []
    return own + [found for item in items for found in containers(item)]


@given(JSON)
def test_a_copy_is_equal_and_shares_nothing_that_can_be_written(value: Any) -> None:
    copy = copied(value)
    assert copy == value
    assert type(copy) is type(value)
    assert not set(containers(copy)) & set(containers(value))


class Words(list[Any]):
    """A list of somebody's own."""


@pytest.mark.parametrize(
    "value", [OrderedDict(a=[1]), defaultdict(list, a=[1]), Words([[1]]), {1, 2}], ids=lambda x: type(x).__name__
)
def test_a_subclass_is_copied_as_what_it_is(value: Any) -> None:
    copy = copied(value)
    assert (copy, type(copy)) == (value, type(value))
    assert copy is not value
    if isinstance(value, dict):
        assert copy["a"] is not value["a"]
    if isinstance(value, list):
        assert copy[0] is not value[0]


@pytest.mark.parametrize("value", [object(), UserList([1]), MappingProxyType({"a": 1}), b"x", len])
def test_any_other_object_is_kept(value: Any) -> None:
    assert copied([value])[0] is value


def test_what_contains_itself_is_copied_as_far_as_it_goes() -> None:
    own: list[Any] = []
    own.append(own)
    copy = copied(own)
    assert copy is not own
    assert copy[0] is not own
