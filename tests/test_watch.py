"""Stop strings: found wherever ids cut the text, and no part of one is ever shown."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seriatim.codecs import Watch
from seriatim.codecs.byte import ByteCodec
from seriatim.errors import RequestError


class Pieces:
    """A stream whose id n is the n-th piece."""

    def __init__(self, pieces, rest=""):
        self.pieces, self.rest = pieces, rest

    def feed(self, id):
        return self.pieces[id]

    def finish(self):
        return self.rest


def watched(pieces, stop, rest=""):
    """All that was shown, the stop string met and by which id."""
    watch, shown = Watch(Pieces(pieces, rest), stop), []
    for id in range(len(pieces)):
        text, met = watch.feed(id)
        shown.append(text)
        if met is not None:
            return "".join(shown) + watch.finish(), met, id
    return "".join(shown) + watch.finish(), None, None


def first_completed(text, stop):
    """The definition: the first end of any stop string; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        if met := [s for s in stop if text[:end].endswith(s)]:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest, end
    return text, None, None


few_letters = st.text("ab", min_size=1, max_size=5)
cuts = st.lists(st.text("ab", max_size=4), max_size=8)


@given(pieces=cuts, stop=st.lists(few_letters, max_size=4))
@example(pieces=["aaab"], stop=["aab"])
@example(pieces=["a", "a", "a", "b"], stop=["aab", "ab"])
def test_what_is_met_is_what_completes_first_in_the_text_however_it_is_cut(pieces, stop):
    text = "".join(pieces)
    before, met, end = first_completed(text, stop)
    shown, found, id = watched(pieces, stop)
    assert (shown, found) == (before, met)
    if end is not None:
        assert len("".join(pieces[:id])) < end <= len("".join(pieces[: id + 1]))


@given(pieces=cuts, stop=st.lists(few_letters, min_size=1, max_size=4))
def test_exactly_the_longest_tail_that_can_begin_a_stop_string_is_held_back(pieces, stop):
    watch, shown, text = Watch(Pieces(pieces), stop), "", ""
    for id, piece in enumerate(pieces):
        new, met = watch.feed(id)
        shown, text = shown + new, text + piece
        if met is not None:
            return
        tails = (text[start:] for start in range(len(text)))
        held = next((t for t in tails if any(s.startswith(t) for s in stop)), "")
        assert shown == text.removesuffix(held)


def test_of_strings_that_complete_together_the_longest_is_met():
    assert watched(["x", "aab"], ["b", "aab", "ab"]) == ("x", "aab", 1)


def test_a_stop_string_that_begins_another_is_met_first():
    assert watched(["end", "ing"], ["ending", "end"]) == ("", "end", 0)


def test_without_stop_strings_text_is_shown_at_once():
    watch = Watch(Pieces(["a", "b"]))
    assert [watch.feed(0), watch.feed(1), watch.finish()] == [("a", None), ("b", None), ""]


def test_what_only_began_a_stop_string_comes_out_at_the_end():
    assert watched(["say S", "TO"], ["STOP"]) == ("say STO", None, None)


def test_after_a_match_nothing_more_is_shown():
    watch = Watch(Pieces(["a.b", "c"]), ["."])
    assert [watch.feed(0), watch.feed(1), watch.finish()] == [("a", "."), ("", "."), ""]


def test_a_stop_string_of_one_emoji_is_found_across_its_bytes():
    watch = Watch(ByteCodec().stream(), ["👍"])
    seen = [watch.feed(id) for id in "ok👍".encode()]
    assert seen == [("o", None), ("k", None), ("", None), ("", None), ("", None), ("", "👍")]


def test_an_unfinished_character_shows_once_and_only_at_the_end():
    watch = Watch(ByteCodec().stream(), ["zz"])
    shown = [watch.feed(id) for id in b"z\xf0\x9f\x91"]
    assert shown == [("", None)] * 4
    assert watch.finish() == "z\N{REPLACEMENT CHARACTER}"


def test_a_megabyte_of_stop_string_costs_no_more_than_its_length():
    stop = "a" * 1_000_000 + "b"
    watch = Watch(Pieces(["a" * 500, "c"]), [stop])
    assert watch.feed(0) == ("", None)
    assert watch.feed(1) == ("a" * 500 + "c", None)


@pytest.mark.parametrize("wrong", ["", 7, None])
def test_what_is_no_string_or_empty_is_refused_by_value(wrong):
    with pytest.raises(RequestError, match="stop string"):
        Watch(Pieces([]), ["fine", wrong])
