"""Kernels that are compiled at once, beside one another; and how those who wait are told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from byhand import LLM, children
from byhand.cli import talk as page
from byhand.cli.waiting import Waiting
from byhand.kernels.native import compiled, compiling, kernel
from byhand.notes import Progress

SMALL = ["round_rows", "pack_float32", "act_relu"]


class Now:
    """A clock that is set."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_each_kernel_is_counted_and_the_rest_is_guessed_from_the_time_so_far() -> None:
    names, told, now = ["attend_many_float32", "linear_int8", "rms_norm", "round_rows"], list[str](), Now()
    clock = compiling.Clock(names, told.append, now)
    for name, seconds in zip(names, (107, 112, 113, 114), strict=True):  # a second for each unit of cost
        now.seconds = float(seconds)
        clock.done(name)
    assert told == [
        "compiled 1 of 4 kernels, about 7 s to go",
        "compiled 2 of 4 kernels, about 2 s to go",
        "compiled 3 of 4 kernels, about 1 s to go",
        "compiled 4 kernels in 14 s",
    ]
    assert [note.is_last for note in told if isinstance(note, Progress)] == [False, False, False, True]


def test_one_kernel_alone_is_not_counted() -> None:
    told: list[str] = []
    compiling.Clock(["rms_norm"], told.append).done("rms_norm")
    assert told == []


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (8.4, "8 s"), (99, "99 s"), (130, "2 min")])
def test_times_are_no_more_exact_than_a_guess(seconds: float, words: str) -> None:
    assert compiling.in_words(seconds) == words


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one test's own, for the processes that help too; nothing was loaded from another."""
    monkeypatch.setenv("BYHAND_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "cache_folder", compiled.cache_folder.__wrapped__)
    monkeypatch.setattr(compiling, "cache_folder", compiled.cache_folder)
    for name in SMALL:
        monkeypatch.delitem(vars(kernel(name)), "_compiled", raising=False)
    return tmp_path


@pytest.mark.parametrize("helper", ["", "raise SystemExit", "input()", "print('round_rows')", None])
def test_all_are_compiled_whatever_becomes_of_the_helpers(
    helper: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_helpers", lambda groups: 1)
    if helper is None:
        monkeypatch.setattr(children, "module", lambda name: ["/nobody/has/this"])
    elif helper:
        monkeypatch.setattr(children, "module", lambda name: children.code(helper))
    told: list[str] = []
    compiling.compile_kernels(SMALL, told.append)
    assert {path.stem for path in cache.rglob("*.kernel")} == set(SMALL)
    assert told[-1].startswith("compiled 3 kernels in ")


def test_kernels_of_the_same_functions_stay_together_and_the_longest_are_first() -> None:
    names = ["round_rows", "gated_silu_int8", "attend_many_float32", "linear_int8", "act_relu"]
    assert [sorted(group) for group in compiling.in_groups(names)] == [
        ["attend_many_float32"],
        ["gated_silu_int8", "linear_int8"],
        ["round_rows"],
        ["act_relu"],
    ]


NOTES = [Progress.of(f"compiled {count} of 4 kernels, about {9 - count} s to go") for count in (1, 2, 3)]
NOTES.append(Progress.of("compiled 4 kernels in 9 s", is_last=True))


def test_on_a_terminal_one_line_renews_itself() -> None:
    stream, waiting = io.StringIO(), Waiting()
    for note in NOTES:
        waiting.show(note, stream, 60)
    assert stream.getvalue().count("\n") == 1
    shown = [part.rstrip() for part in stream.getvalue().split("\r")[1:]]
    assert shown == [f"byhand: {note}" for note in NOTES]
    last = stream.getvalue().split("\r")[-1]
    assert len(last) - 1 == len(f"byhand: {NOTES[2]}"), "what stood there before is covered"


def test_a_narrow_terminal_and_what_others_say() -> None:
    stream, waiting = io.StringIO(), Waiting()
    waiting.show(NOTES[0], stream, 20)
    assert stream.getvalue() == "\rbyhand: compiled 1 o"
    waiting.leave(stream)
    waiting.leave(stream)
    assert stream.getvalue().endswith("1 o\n")


def test_elsewhere_a_line_is_said_now_and_then_and_the_last_always() -> None:
    stream, now = io.StringIO(), Now()
    waiting = Waiting(now)
    for seconds, note in zip((100, 105, 112, 113), NOTES, strict=True):
        now.seconds = float(seconds)
        waiting.show(note, stream, None)
    assert stream.getvalue().splitlines() == [f"byhand: {NOTES[place]}" for place in (0, 2, 3)]


def test_how_far_it_is_goes_to_who_waits_and_not_into_the_notes_that_stay(tiny_folder: Path) -> None:
    told: list[str] = []
    llm = LLM(tiny_folder, kernels="reference", note=told.append)
    for note in ("compiling 4 kernels", *NOTES):
        llm._note(note)
    assert told == ["compiling 4 kernels", *NOTES]
    assert llm.notes == ["compiling 4 kernels"]


def test_the_command_line_tells_both_kinds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_waiting", Waiting())
    for note in ("compiling 4 kernels", *NOTES):
        page.talk(note)
    assert capsys.readouterr().err.splitlines() == [
        "byhand: compiling 4 kernels",
        "byhand: compiled 1 of 4 kernels, about 8 s to go",
        "byhand: compiled 4 kernels in 9 s",
    ]
