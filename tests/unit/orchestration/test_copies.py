"""copied: data that can be written are made anew, anything else is kept, and nothing raises."""

from __future__ import annotations

import threading
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel

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


@pytest.mark.parametrize("value", [object(), b"x", len, date(2026, 1, 1), frozenset({1})])
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


@dataclass
class Plain:
    held: Any
    close: float = 1.0


@dataclass(slots=True)
class Slotted:
    held: Any
    unset: int = field(init=False)


@dataclass(frozen=True, slots=True)
class Frozen:
    held: Any


class Named(NamedTuple):
    held: Any


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)

    held: Any = None
    _kept: list[Any] = PrivateAttr(default_factory=lambda: [1])


class Root(RootModel[Any]):
    pass


def held(value: Any) -> Any:
    return value.held


MADE_ANEW: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (Plain, held),
    (Slotted, held),
    (Frozen, held),
    (Named, held),
    (lambda inner: SimpleNamespace(held=inner), held),
    (lambda inner: Model(held=inner), held),
    (lambda inner: Model(more=inner), lambda model: model.more),
    (Root, lambda model: model.root),
    (lambda inner: deque([inner], maxlen=3), lambda many: many[0]),
    (lambda inner: UserDict(a=inner), lambda some: some["a"]),
    (lambda inner: UserList([inner]), lambda some: some[0]),
    (lambda inner: ChainMap({"a": inner}, {"b": inner}), lambda some: some["b"]),
    (lambda inner: MappingProxyType({"a": inner}), lambda some: some["a"]),
]


@pytest.mark.parametrize(("make", "of"), MADE_ANEW)
@pytest.mark.parametrize("depth", [0, 1, 20])
def test_data_are_copied_with_what_is_in_them(make: Callable[[Any], Any], of: Callable[[Any], Any], depth: int) -> None:
    own = make([1, {"x": [2]}])
    value: Any = own
    for _ in range(depth):
        value = {"in": value}
    copy = copied(value)
    for _ in range(depth):
        copy = copy["in"]
    assert type(copy) is type(own)
    assert of(copy) == of(own)
    assert not set(containers(of(copy))) & set(containers(of(own)))


def test_a_copied_model_keeps_what_is_set_and_has_private_values_of_its_own() -> None:
    model = Model(held=1)
    copy = copied([model])[0]
    assert copy == model
    assert copy.model_fields_set == {"held"}
    copy._kept.append(2)
    assert model._kept == [1]


def test_a_deque_keeps_its_length() -> None:
    assert copied([deque([1, 2], maxlen=2)])[0].maxlen == 2


@pytest.mark.parametrize("value", [bytearray(b"a"), array("i", [1]), np.zeros(2), np.zeros((2, 2)).T])
def test_a_buffer_is_copied(value: Any) -> None:
    copy = copied({"a": value})["a"]
    assert type(copy) is type(value)
    assert bytes(copy) == bytes(value)
    copy[0] = 7
    assert bytes(copy) != bytes(value)


@dataclass
class Client:
    """A dataclass, and yet no data."""

    calls: list[int] = field(default_factory=list)

    async def aclose(self) -> None: ...


@dataclass
class Judge:
    seen: list[int] = field(default_factory=list)

    def __call__(self, answer: Any) -> bool:
        return True


class Connected(BaseModel):
    def __enter__(self) -> None: ...


@dataclass
class Uncopyable:
    held: list[int]

    def __copy__(self) -> Any:
        raise TypeError("there is one of me")


class Odd:
    """An object of somebody's own, which may be anything."""

    def __init__(self) -> None:
        self.held: list[int] = []


@pytest.mark.parametrize("value", [Client(), Judge(), Connected(), Uncopyable([1]), Odd(), threading.Lock(), Plain])
def test_a_handle_and_what_cannot_be_copied_are_kept_also_in_what_is_copied(value: Any) -> None:
    around = Plain({"it": value, "and": [1]})
    copy = copied(around)
    assert copy.held["it"] is value
    assert copy.held["and"] is not around.held["and"]
    assert copied(value) is value


def test_a_dataclass_that_knows_itself_is_copied_and_has_an_end() -> None:
    own = Plain(None)
    own.held = [own]
    copy = copied(own)
    assert copy is not own
    assert copy.held[0] is copy
