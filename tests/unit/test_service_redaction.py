"""The key of a provider in what it says, however that comes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.service._redaction import Redaction, redacted

SECRET = "abab-abac"
text = st.lists(st.sampled_from([b"a", b"b", b"-", b"c", b"\n", SECRET.encode()]), max_size=30).map(b"".join)


@given(text, st.lists(st.integers(0, 200), max_size=8))
def test_it_is_taken_out_wherever_the_pieces_end_and_no_more_is_held_back_than_it_may_begin_with(
    said: bytes, cuts: list[int]
) -> None:
    places = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    redaction, shown, come = Redaction(SECRET), b"", b""
    for start, end in pairwise(places):
        shown += redaction(said[start:end])
        come += said[start:end]
        rest = come.split(SECRET.encode())[-1]
        held = next(rest[at:] for at in range(len(rest) + 1) if SECRET.encode().startswith(rest[at:]))
        assert shown + held == redacted(SECRET, come)
    shown += redaction(b"", last=True)
    assert shown == said.replace(SECRET.encode(), b"[redacted]")


def test_without_a_key_all_goes_through_at_once() -> None:
    assert Redaction("")(b"sk-anything") == b"sk-anything"
