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


def test_a_tree_whose_nodes_know_their_parents_is_copied_and_has_an_end() -> None:
    root: dict[str, Any] = {"children": []}
    root["children"] = [{"parent": root, "children": []} for _ in range(3)]
    copy = copied({"tree": root})["tree"]
    assert copy is not root
    assert [child["parent"] for child in copy["children"]] == [copy] * 3
    assert not any(ours is theirs for ours, theirs in zip(copy["children"], root["children"], strict=True))


def test_what_is_deep_is_copied_as_what_is_not() -> None:
    deep: Any = OrderedDict(a=[Words([(1, [2])])])
    for _ in range(30):
        deep = [deep, {"x": deep}]
    copy = copied(deep)
    assert type(copy) is list
    for _ in range(30):
        copy, deep = copy[0], deep[0]
    assert copy == deep
    assert [type(copy), type(copy["a"][0])] == [OrderedDict, Words]
    assert not set(containers(copy)) & set(containers(deep))


class Unwritable(dict[str, Any]):
    """As a web framework hands out a form."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("it is immutable")


class OfItself(Unwritable):
    def __copy__(self) -> OfItself:
        return self


@pytest.mark.parametrize("kind", [Unwritable, OfItself])
@pytest.mark.parametrize("depth", [0, 20])
def test_a_mapping_that_nobody_can_write_is_kept(kind: type[Unwritable], depth: int) -> None:
    form = kind(a=[1])
    value: Any = form
    for _ in range(depth):
        value = [value]
    copy = copied(value)
    for _ in range(depth):
        copy = copy[0]
    assert copy is form
