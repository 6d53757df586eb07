"""Stop strings: found in a growing text exactly where a look at the whole text finds them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byhand.errors import BadRequest
from byhand.text import StopStrings


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Look at ever longer beginnings of the text until one ends with a stop string; the longest of those wins."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def could_begin_a_stop(text: str, stops: list[str]) -> int:
    """How many characters at the end of the text could still become a stop string."""
    lengths = [length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])]
    return max(lengths, default=0)


def pushed(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    """All the text shown for these pieces, and the stop string."""
    matcher = StopStrings(stops)
    shown = ""
    for piece in pieces:
        safe, matched = matcher.push(piece)
        shown += safe
        if matched is not None:
            return shown, matched
    return shown + matcher.flush(), None


words = st.text("ab1", min_size=1, max_size=5)


@given(st.lists(st.text("ab1", max_size=4), max_size=12), st.lists(words, max_size=4))
@settings(max_examples=2000)
def test_equals_a_look_at_the_whole_text(pieces: list[str], stops: list[str]):
    assert pushed(pieces, stops) == naive("".join(pieces), stops)


@given(st.lists(st.text("ab", max_size=3), max_size=10), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(max_examples=500)
def test_holds_back_no_more_than_it_must(pieces: list[str], stops: list[str]):
    matcher, shown, seen = StopStrings(stops), "", ""
    for piece in pieces:
        safe, matched = matcher.push(piece)
        shown, seen = shown + safe, seen + piece
        if matched is not None:
            break
        assert shown == seen[: len(seen) - could_begin_a_stop(seen, stops)]


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["a", "a", "a", "b"], ["aab"], ("a", "aab")),
        (["1", "1", "1", "2"], ["112"], ("1", "112")),
        (["ab", "abab", "ac"], ["ababac"], ("ab", "ababac")),
        (["one\n", "\n", "two"], ["\n\n"], ("one", "\n\n")),
        (["x###", "#y"], ["####"], ("x", "####")),
        (["Hello <", "|", "im_", "end", "|", "> there"], ["<|im_end|>"], ("Hello ", "<|im_end|>")),
        (["abcd"], ["abcd", "bc"], ("a", "bc")),  # "bc" ends first
        (["abc"], ["c", "bc"], ("a", "bc")),  # both end here: the longer one
        (["stop"], [], ("stop", None)),
        (["🙂🙃"], ["🙃"], ("🙂", "🙃")),
        (["aaaa"], ["aa"], ("", "aa")),
    ],
)
def test_examples(pieces: list[str], stops: list[str], expected: tuple[str, str | None]):
    assert pushed(pieces, stops) == expected
    assert pushed(["".join(pieces)], stops) == expected
    assert pushed(list("".join(pieces)), stops) == expected


def test_a_false_start_is_shown_when_it_is_one():
    matcher = StopStrings(["END"])
    assert matcher.push("the EN") == ("the ", None)
    assert matcher.push("ERGY") == ("ENERGY", None)
    assert matcher.push(" E") == (" ", None)
    assert matcher.flush() == "E"
    assert matcher.flush() == ""


def test_nothing_is_shown_after_a_stop():
    matcher = StopStrings(["."])
    assert matcher.push("one. two") == ("one", ".")
    assert matcher.push("three.") == ("", ".")
    assert matcher.flush() == ""
    assert matcher.matched == "."


def test_a_search_begins_anew_after_a_flush():
    matcher = StopStrings(["ab"])
    matcher.push("a")
    assert matcher.flush() == "a"
    assert matcher.push("b") == ("b", None)


def test_a_copy_goes_its_own_way():
    matcher = StopStrings(["abc"])
    matcher.push("xab")
    other = matcher.copy()
    assert other.push("c") == ("", "abc")
    assert matcher.matched is None
    assert matcher.push("d") == ("abd", None)


@pytest.mark.parametrize(("stops", "shown"), [([""], "''"), (["ok", 3], "3"), ([None], "None"), ([b"x"], "b'x'")])
def test_what_is_no_stop_string_is_refused(stops: list[str], shown: str):
    with pytest.raises(BadRequest, match=rf"stop\[{len(stops) - 1}\] is {shown}; a stop string is text") as caught:
        StopStrings(stops)
    assert caught.value.param == "stop"


def test_one_stop_string_may_be_given_alone():
    assert StopStrings("ab").stops == ("ab",)


def test_long_texts_take_time_in_proportion():
    matcher = StopStrings(["a" * 500 + "b"])
    shown = sum(len(matcher.push("a" * 100)[0]) for _ in range(500))
    assert shown == 50_000 - 500
    assert matcher.push("b")[1] is not None
