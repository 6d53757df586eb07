"""Breakpoints alone: bounds hold at the very value, and a text is noticed when its last character comes."""

from __future__ import annotations

from math import log
from typing import Any, cast

import pytest

from byhand.engine.breakpoint import Breakpoint, end_probability
from byhand.sampling.chain import Choice
from byhand.types import Step


class Guess:
    """The numbers of a choice that breakpoints look at."""

    id = 7
    entropy = 1.5
    margin = 0.25
    logprob = log(0.5)


def before(until: Breakpoint, ending: float = 0.125) -> str | None:
    return until.before(cast(Choice, Guess), ending)


@pytest.mark.parametrize(
    ("name", "at", "beyond"),
    [("token", 7, 8), ("entropy", 1.5, 1.5001), ("end_probability", 0.125, 0.1251), ("margin", 0.25, 0.2499)],
)
def test_a_bound_is_met_at_its_very_value(name: str, at: Any, beyond: Any) -> None:
    assert before(Breakpoint(**{name: at})) == name
    assert before(Breakpoint(**{name: beyond})) is None


def test_no_bound_at_all_is_never_met_and_zero_is_a_bound() -> None:
    assert before(Breakpoint()) is None
    assert before(Breakpoint(token=0, margin=0.0)) is None
    assert before(Breakpoint(entropy=0.0)) == "entropy"
    assert before(Breakpoint(end_probability=0.0), 0.0) == "end_probability"


@pytest.mark.parametrize(
    ("pieces", "noticed"),
    [
        (["a stop", " here"], [True, False]),
        (["a st", "o", "p here", "."], [False, False, True, False]),
        (["xstop", "stop"], [True, True]),
        (["stop", "s", "top"], [True, False, True]),
        (["stop", ""], [True, False]),
        (["sto", ""], [False, False]),
    ],
)
def test_a_text_is_noticed_when_its_last_character_comes(pieces: list[str], noticed: list[bool]) -> None:
    until, text, found = Breakpoint(text="stop"), "", []
    for piece in pieces:
        text += piece
        found.append(until.after(text, cast(Step, type("Piece", (), {"text": piece}))) == "text")
    assert found == noticed


def test_the_end_is_as_likely_as_all_its_ids_that_the_model_has() -> None:
    logits = [log(share) for share in (0.1, 0.2, 0.05, 0.05, 0.05, 0.02, 0.03, 0.5)]
    choice = cast(Choice, Guess)
    assert end_probability(logits, [0, 1, 8, 900], choice) == pytest.approx(0.3)
    assert end_probability(logits, [], choice) == 0
