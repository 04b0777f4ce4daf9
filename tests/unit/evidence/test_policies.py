"""How a field is compared, and how its consensus is chosen."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from answers import valid
from pydantic import BaseModel, Field

from steer_llm_sdk.evidence import FieldPolicy, at, parse_path, summarize


def chosen(values: list[Any], **policy: Any) -> tuple[Any, float | None]:
    found = summarize(values, fields={"$": FieldPolicy(**policy)})
    return found.consensus, found.support


# Which values are the same answer.


@pytest.mark.parametrize(
    "same",
    [
        ["Paris", " paris ", "PARIS"],
        ["ﬁne  thing", "fine thing", "Fine\nThing"],
        ["straße", "STRASSE", "Strasse"],
        [42, "42", 42.0],
        ["1.50", 1.5, "15e-1"],
        [["A", 1], ["a", "1"], ["a ", 1.0]],
        [[{"x": "A", "y": 1}], [{"y": 1, "x": "a"}], [{"x": "a", "y": "1"}]],
    ],
)
def test_answers_that_differ_in_form_alone_are_one(same: list[Any]) -> None:
    found = summarize(same)
    assert found.support == 1.0
    assert found.disagreements == []
    assert found.consensus in same


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, True),
        (0, False),
        (None, ""),
        (None, "null"),
        ("", []),
        ("007", 7),
        ("1,000", 1000),
        ({}, []),
        ("a-b", "a b"),
    ],
)
def test_answers_that_mean_something_else_are_two(left: Any, right: Any) -> None:
    assert summarize([left, right, left, right]).support == 0.5


def test_exact_tells_case_and_quotes_apart() -> None:
    assert chosen(["a", "A", "a"], compare="exact") == ("a", 2 / 3)
    assert chosen([1, "1", 1.0], compare="exact") == (1, 2 / 3)


@pytest.mark.parametrize(
    ("values", "policy", "support"),
    [
        ([100, 100.5, 101, 90], {"rel_tol": 0.01}, 3 / 4),
        ([100, 101, 102, 90], {"abs_tol": 1}, 2 / 4),
        (["1,000", 1000, "1000.0", 7], {"compare": "number"}, 3 / 4),
        (["5 kg", "5000 g", "5kg", "6 kg"], {"units": {"kg": 1, "g": 0.001}}, 3 / 4),
        (["$5", "5 $", 5, "five"], {"units": {"$": 1}}, 3 / 4),
        (["12%", 0.12, "12 %", 12], {"units": {"%": 0.01}}, 3 / 4),
        ([0, 1e-12, -1e-12, 1], {"abs_tol": 1e-9}, 3 / 4),
        ([True, 1, True, 0], {"compare": "number"}, 2 / 4),
    ],
)
def test_numbers_within_a_tolerance_or_of_one_unit_are_one(
    values: list[Any], policy: dict[str, Any], support: float
) -> None:
    answer, found = chosen(values, **policy)
    assert found == support
    assert answer in values


def test_every_two_numbers_of_a_class_are_within_the_tolerance() -> None:
    """A chain in which each is near the next is not one answer."""
    found = summarize([1.0, 1.9, 2.8, 3.7, 1.5], fields={"$": FieldPolicy(abs_tol=1)})
    assert [answer.votes for answer in found.disagreements[0].answers] == [3, 2]
    assert found.consensus == 1.5


def test_of_numbers_within_a_tolerance_the_lower_median_speaks_which_somebody_said() -> None:
    assert chosen([100, 101, 100.5, 100.2], rel_tol=0.02) == (100.2, 1.0)


@pytest.mark.parametrize(
    "text",
    ["2026-04-03", "2026/4/3", "3 April 2026", "April 3, 2026", "3rd apr. 2026", "03/04/2026", "2026-04-03T00:00:00"],
)
def test_dates_are_read_in_any_usual_form(text: str) -> None:
    assert chosen(["2026-04-03", text, "2025-01-01"], day_first=True)[1] == 2 / 3


def test_a_date_with_two_meanings_is_text_until_the_policy_says_which() -> None:
    assert chosen(["2026-04-03", "03/04/2026"], compare="date")[1] is None
    assert chosen(["2026-03-04", "03/04/2026"], day_first=False)[1] == 1.0


def test_times_are_compared_in_utc_and_no_date_is_a_date() -> None:
    assert chosen(["2026-01-01T12:00:00Z", "2026-01-01T13:00:00+01:00"], compare="date")[1] == 1.0
    assert chosen(["2026-02-30", "2026-02-30 "], compare="date")[1] == 1.0
    assert chosen(["2026-02-30", "2026-03-02"], compare="date")[1] is None


TEXTS = ["the cat sat on the mat", "the cat sat on a mat", "a dog ran through the park", "The cat sat on the mat."]


def test_texts_that_are_alike_enough_are_one() -> None:
    assert chosen(TEXTS, similarity=0.6)[1] == 3 / 4
    assert chosen(TEXTS, similarity=0.95)[1] is None


def test_a_judge_joins_what_the_rules_tell_apart_and_is_asked_about_each_pair_of_classes_once() -> None:
    asked = []

    def same(left: str, right: str) -> bool:
        asked.append((left, right))
        return {left.lower(), right.lower()} <= {"yes", "yeah", "yep"}

    assert chosen(["yes", "Yes", "yeah", "no", "yep"], judge=same)[1] == 4 / 5
    assert len(asked) == len(set(asked)) <= 6


def test_a_class_joins_only_where_the_judge_says_it_is_the_same_as_all_in_it() -> None:
    near = {frozenset("ab"), frozenset("bc")}
    found = summarize(list("abcb"), fields={"$": FieldPolicy(judge=lambda x, y: frozenset((x, y)) in near)})
    assert [answer.votes for answer in found.disagreements[0].answers] == [3, 1]


def test_a_judge_that_raises_leaves_the_answers_apart_and_is_reported() -> None:
    def broken(left: Any, right: Any) -> bool:
        raise RuntimeError("no model")

    found = summarize(["a", "b", "a"], fields={"$": FieldPolicy(judge=broken)})
    assert (found.consensus, found.warnings) == ("a", ["$: the judge raised RuntimeError: no model"])


def test_an_ignored_field_has_no_vote_and_comes_from_the_nearest_answer() -> None:
    data = [{"a": 1, "why": "x"}, {"a": 2, "why": "y"}, {"a": 2, "why": "z"}]
    found = summarize(data, fields={"why": FieldPolicy(compare="ignore")})
    assert found.consensus in data[1:]
    assert found.distributions is not None
    assert list(found.distributions) == ["a"]
    assert found.pairwise_distance is not None
    assert found.pairwise_distance[1][2] == 0.0


# Which of them is the consensus.


def test_the_median_is_the_lower_one_of_the_numbers_and_counts_weights() -> None:
    assert chosen([1, 2, 9, 10], consensus="median") == (None, None)
    assert chosen([1, 2, 9, 10, 2], consensus="median") == (2, 2 / 5)
    found = summarize([1, 2, 2, 9, 9], fields={"$": FieldPolicy(consensus="median")}, weights=[1, 1, 1, 3, 3])
    assert found.consensus == 9


def test_the_medoid_is_the_text_nearest_to_all() -> None:
    found = summarize([*TEXTS[:3], TEXTS[2]], fields={"$": FieldPolicy(consensus="medoid")})
    assert found.consensus == TEXTS[2]
    three = summarize([TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[2], TEXTS[2]], fields={"$": FieldPolicy(consensus="medoid")})
    assert three.consensus is None  # Nobody else said the medoid.
    assert three.disagreements[0].support == 1 / 5


def test_the_first_valid_is_that_of_the_lowest_id() -> None:
    replicates = valid("b", "a", "a", "b", "a")[::-1]
    assert summarize(replicates, fields={"$": FieldPolicy(consensus="first_valid")}).consensus == "b"


def test_a_set_keeps_what_at_least_the_threshold_has() -> None:
    data = [{"t": ["red", "blue"]}, {"t": ["Blue", "green"]}, {"t": ["blue"]}, {"t": ["green"]}]
    assert summarize(data, fields={"t": FieldPolicy(consensus="union")}).consensus == {"t": ["blue", "green"]}
    strict = FieldPolicy(consensus="union", threshold=0.75)
    assert summarize(data, fields={"t": strict}).consensus == {"t": ["blue"]}


def test_objects_in_an_array_are_aligned_by_their_key_whatever_their_order() -> None:
    one = [{"id": 1, "n": 2}, {"id": 2, "n": 3}]
    found = summarize([{"x": one}, {"x": one[::-1]}, {"x": [{"id": 1, "n": 5}]}], fields={"x": FieldPolicy(key="id")})
    assert found.consensus == {"x": one}
    assert [each.field for each in found.disagreements] == ["x.[id=1].n", "x.[id=2]"]
    assert found.disagreements[1].absent == ["r3"]


def test_an_array_whose_key_is_there_twice_is_voted_on_whole() -> None:
    twice = [{"id": 1}, {"id": 1}]
    assert summarize([twice, twice, [{"id": 1}]], fields={"$": FieldPolicy(key="id")}).consensus == twice


def test_elements_of_an_aligned_array_have_policies_too() -> None:
    data = [{"x": [{"id": 1, "p": 10.0}]}, {"x": [{"id": 1, "p": 10.05}]}]
    policies = {"x": FieldPolicy(key="id"), "x.[].p": FieldPolicy(rel_tol=0.01)}
    assert summarize(data, fields=policies).support == 1.0


def test_a_rule_of_ones_own_chooses_among_what_was_said() -> None:
    assert chosen([1, 2, 3, 3, 1, 1], consensus=lambda said: max(value for value, _ in said)) == (3, 2 / 6)


@pytest.mark.parametrize(
    ("rule", "warning"),
    [(lambda said: 2.5, "returned 2.5, which nobody said"), (lambda said: 1 / 0, "raised ZeroDivisionError")],
)
def test_a_rule_that_averages_or_fails_gives_way_to_the_mode_and_is_reported(rule: Any, warning: str) -> None:
    found = summarize([2, 3, 3], fields={"$": FieldPolicy(consensus=rule)})
    assert found.consensus == 3
    assert [warning in told for told in found.warnings] == [True]


# Where policies come from.


class Line(BaseModel):
    sku: str
    price: Annotated[float, FieldPolicy(rel_tol=0.01)]


class Invoice(BaseModel):
    total: Annotated[float, FieldPolicy(rel_tol=0.01)]
    lines: Annotated[list[Line], FieldPolicy(key="sku")]
    note: Annotated[str, FieldPolicy(compare="ignore")] = Field(alias="remark")


def test_the_annotations_of_the_output_model_are_policies() -> None:
    data = [
        {"total": 10, "lines": [{"sku": "a", "price": 5}, {"sku": "b", "price": 5}], "remark": "x"},
        {"total": 10.05, "lines": [{"sku": "b", "price": 5.01}, {"sku": "a", "price": 5}], "remark": "y"},
    ]
    found = summarize(data, schema=Invoice)
    assert (found.support, found.disagreements) == (1.0, [])
    assert found.consensus["total"] in (10, 10.05)


def test_a_declared_policy_replaces_the_annotated_one() -> None:
    data = [{"total": 10, "lines": [], "remark": ""}, {"total": 10.05, "lines": [], "remark": ""}]
    found = summarize(data, schema=Invoice, fields={"total": FieldPolicy(compare="exact")})
    assert [each.field for each in found.disagreements] == ["total"]


class Tree(BaseModel):
    size: Annotated[int, FieldPolicy(abs_tol=1)]
    inner: Tree | None = None


def test_a_model_that_holds_itself_has_policies_at_its_first_level() -> None:
    assert summarize([{"size": 1}, {"size": 2}], schema=Tree).support == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": "fuzzy"}, "compare: 'fuzzy' is not known; give one of canonical"),
        ({"consensus": "mean"}, "consensus: 'mean' is not known; give one of mode, median"),
        ({"rel_tol": -1}, "rel_tol: -1 cannot be used"),
        ({"abs_tol": float("nan")}, "abs_tol: nan cannot be used"),
        ({"abs_tol": float("inf")}, "abs_tol: inf cannot be used"),
        ({"similarity": 2}, "similarity: 2 cannot be used; give a number from 0 to 1"),
        ({"threshold": 1.1}, "threshold: 1.1 cannot be used"),
        ({"compare": "text", "rel_tol": 0.1}, "does not go with the options of 'number'"),
        ({"similarity": 0.5, "day_first": True}, "does not go with"),
        ({"key": "id", "rel_tol": 0.1}, "give its elements a policy"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldPolicy(**options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("answer", "is one text"),
        ([], "leaves nothing"),
        ({"a": "number"}, "is no FieldPolicy"),
        (["a..b"], "no path|not a path"),
    ],
)
def test_fields_that_say_nothing_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(["a"], fields=fields)


# At the edges.


def test_a_relative_tolerance_is_of_the_larger_number() -> None:
    assert chosen([100, 101.005], rel_tol=0.01)[1] == 1.0
    assert chosen([-100, -101.005], rel_tol=0.01)[1] == 1.0
    assert chosen([100, 101.02], rel_tol=0.01)[1] is None


def test_of_an_even_number_the_lower_median_is_taken() -> None:
    assert chosen([1, 1, 2, 2], consensus="median") == (1, 0.5)


def test_a_field_that_half_of_them_lack_is_chosen_among_the_others() -> None:
    data = [{"n": 1, "k": 0}, {"n": 2, "k": 0}, {"k": 0}, {"k": 0}]
    assert summarize(data, fields={"n": FieldPolicy(consensus="median")}).consensus == {"n": 1, "k": 0}
    assert summarize([*data, {"k": 0}], fields={"n": FieldPolicy(consensus="median")}).consensus == {"k": 0}


def test_elements_stand_where_most_have_them() -> None:
    data = [["z", "a", "m"], ["z", "a", "m"], ["m", "z", "a"]]
    assert summarize(data, fields={"$": FieldPolicy(consensus="union")}).consensus == ["z", "a", "m"]


def test_elements_that_have_nothing_but_their_key_agree_on_it() -> None:
    found = summarize([[{"id": 1}], [{"id": 1}]], fields={"$": FieldPolicy(key="id")})
    assert (found.consensus, found.support) == ([{"id": 1}], 1.0)


def test_what_is_missing_is_no_company_in_a_tie() -> None:
    data = [{"a": "z", "b": 1, "c": 1}, {"a": "z", "b": 1, "d": 2}, {"a": "y"}, {"a": "y"}]
    assert summarize(data).consensus["a"] == "z"


# Arrays of which no key is known.


def aligned(*arrays: Any, **more: Any) -> Any:
    return summarize([{"x": array} for array in arrays], fields={"x": FieldPolicy(align=True, **more)})


def test_a_key_that_tells_the_elements_apart_is_found() -> None:
    one = [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}]
    found = aligned(one, one[::-1], [{"sku": "b", "n": 2}, {"sku": "a", "n": 3}])
    assert found.consensus == {"x": one[::-1]}
    assert [each.field for each in found.disagreements] == ["x.[sku=a].n"]


def test_of_several_keys_the_one_called_id_is_taken_then_one_with_texts() -> None:
    by_id = aligned([{"id": 1, "a": "p", "n": 1}], [{"id": 1, "a": "p", "n": 2}])
    by_text = aligned([{"z": "p", "a": 1, "n": 1}], [{"z": "p", "a": 1, "n": 2}])
    assert [each.field for found in (by_id, by_text) for each in found.disagreements] == ["x.[id=1].n", "x.[z=p].n"]


def test_a_key_may_be_missing_or_twice_in_one_array_of_five_and_that_one_is_voted_on_whole() -> None:
    good = [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}]
    twice = [{"sku": "a", "n": 1}, {"sku": "a", "n": 2}]
    assert aligned(good, good, good, good, twice).consensus == {"x": good}
    found = aligned(good, good, good, twice)
    assert all("sku=" not in each.field for each in found.disagreements)


def test_elements_without_a_key_are_those_that_are_most_alike() -> None:
    hens = {"what": "twelve brown hens", "price": 40}
    cow = {"what": "one old cow", "price": 900}
    found = aligned([hens, cow], [cow, {**hens, "what": "12 brown hens"}], [hens, cow, {"y": 1}])
    assert found.consensus == {"x": [hens, cow]}
    assert [each.field for each in found.disagreements] == ["x.[#=1].what", "x.[#=3]"]


def test_texts_in_an_array_are_aligned_as_well_and_what_most_lack_is_left_out() -> None:
    found = aligned(["send the invoice", "call Ann"], ["Call Ann.", "send the invoice"], ["send the invoice"])
    assert found.consensus["x"][0] == "send the invoice"
    assert len(found.consensus["x"]) == 2
    assert len(aligned(["a b c", "x y z"], ["a b c"], ["a b c"]).consensus["x"]) == 1


def test_arrays_of_more_than_fifty_elements_are_aligned_by_place() -> None:
    long = [[n, n] for n in range(60)]
    found = aligned(long, [*long[:-1], "other"])
    assert [each.field for each in found.disagreements] == ["x.[#=60]"]


def test_a_path_of_an_element_without_a_key_leads_to_the_one_of_the_consensus() -> None:
    found = aligned([["b"], ["a"]], [["b"], ["a"]], [["a"], ["b"]])
    assert at(found.consensus, parse_path("x.[#=2]")) == found.consensus["x"][1]


@pytest.mark.parametrize("more", [{"key": "id"}, {"consensus": "union"}])
def test_align_does_not_go_with_what_says_otherwise(more: Any) -> None:
    with pytest.raises(ValueError, match="align: True is for arrays of which no key is known"):
        FieldPolicy(align=True, **more)
