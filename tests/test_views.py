"""What the terminal is shown: nothing it could obey, nothing wider than it is, the same meaning without colours."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from math import exp, inf, log, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

from byhand.cli import words
from byhand.cli.options import UsageError
from byhand.cli.views.candidates import measures, pass_line, print_candidates, print_chain
from byhand.cli.views.checking import print_differences
from byhand.cli.views.facts import print_models
from byhand.cli.views.pieces import columns, fit, fit_end, fit_start, one_line, piece, plain_piece, text_of
from byhand.cli.views.reading import print_reading, print_tokens
from byhand.cli.views.safe import safe, safe_line
from byhand.cli.views.settings import settings_in_words
from byhand.cli.views.streaming import Flow, StepLines, rate
from byhand.cli.views.strip import cells, print_strip, step_style
from byhand.cli.views.terminal import (
    ASCII,
    BAD,
    CHAIN_BAR,
    GOOD,
    MODEL_BAR,
    UNICODE,
    Screen,
    bar,
    chance,
    glyphs,
    percent,
    print_pairs,
    probability_style,
)
from byhand.replay import Difference
from byhand.sampling.params import SamplingParams
from byhand.types import Candidate, ChainStage, Draw, Position, Reading, Step, Token

HOSTILE = "\x1b[31m\x1b]0;title\x07\r\x9b2J\u202e[bold]x[/bold]:smile:"
# What a terminal obeys: escape, its one-byte form, bell, backspace, carriage return, bidi overrides.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def token(text: str, id: int = 7, special: bool = False) -> Token:  # noqa: A002 - the field's word
    return Token(id, text, text.encode(), special)


def candidate(text: str, id: int, prob: float, after: float, removed_by: str | None = None) -> Candidate:  # noqa: A002
    return Candidate(token(text, id), log(prob), id + 1, after, removed_by)


def make_step(texts: list[str], taken: int = 0, sampled: bool = True, **changes: object) -> Step:
    """A step between these candidates, each half as likely as the one before."""
    top = tuple(
        candidate(text, place, 0.5 ** (place + 1), 0.6 ** (place + 1), None if place < 3 else "top_k")
        for place, text in enumerate(texts)
    )
    stages = (
        ChainStage("raw", "", 4096, tuple(float(9 - place) for place in range(len(texts)))),
        ChainStage("top_k", "3", 3, tuple(9.0 - place if place < 3 else -inf for place in range(len(texts)))),
    )
    step = Step(
        index=0,
        position=5,
        token=top[taken].token,
        text=top[taken].token.text,
        logprob=top[taken].logprob,
        rank=taken + 1,
        entropy=1.25,
        margin=0.69,
        tail_mass=0.01,
        top=top,
        chain=stages,
        draw=Draw(0.3, 0.0, 0.6) if sampled else None,
        forced=False,
        phase="decode",
        positions_computed=1,
        positions_reused=5,
        cache_pages=1,
        seconds=0.004,
    )
    return replace(step, **changes)  # type: ignore[arg-type]


def make_reading(texts: list[str]) -> Reading:
    """A reading of these tokens that predicts the next one with 50 %."""
    tokens = [token(text, place) for place, text in enumerate(texts)]
    pieces = tuple(texts)
    positions = []
    for place, here in enumerate(tokens):
        top = tuple(candidate(text, id, 0.5 ** (id + 1), 0.0) for id, text in enumerate(["a", *texts[:3]]))  # noqa: A001
        actual = candidate(texts[place + 1], 4000, 0.001, 0.0) if place + 1 < len(texts) else None
        positions.append(Position(place, here, top[0], top, actual, 1.0, pieces))
    return Reading(positions, 0.004)


def screen(width: int = 80, encoding: str = "utf-8", **options: object) -> tuple[Console, io.StringIO]:
    """A console that writes into a string."""

    class Stream(io.StringIO):
        pass

    Stream.encoding = encoding  # type: ignore[assignment, misc]
    stream = Stream()
    console = Screen(stream, width)
    if options.get("terminal"):
        console._force_terminal = True
        console._color_system = None
    return console, stream


def show_everything(console: Console, texts: list[str]) -> None:
    """Every view that shows a model's text."""
    step = make_step(texts, taken=min(2, len(texts) - 1))
    evil_chain = (ChainStage(HOSTILE, HOSTILE, 3, (1.0,)),)
    print_candidates(console, step, 3)
    print_candidates(console, replace(step, top=(), draw=None), 3)
    print_candidates(console, replace(step, top=tuple(replace(c, removed_by=HOSTILE) for c in step.top)), 9)
    print_chain(console, step, 9)
    print_chain(console, replace(step, chain=evil_chain), 9)
    print_strip(console, cells([token(text) for text in texts], [step, replace(step, forced=True)]))
    print_tokens(console, [token(text) for text in texts])
    print_reading(console, make_reading(texts), 3, 1)
    lines = StepLines(console)
    lines.step(step)
    marks = glyphs(console)
    console.print(pass_line(replace(step, phase=HOSTILE), marks), measures(step, marks))
    print_differences(console, [Difference(0, "removed_by", HOSTILE, None)], 1)
    flow = Flow(console)
    for text in texts:
        flow.write(text, step_style(step))
    flow.end_line()


# Safe, and literal


def test_a_model_cannot_speak_to_the_terminal() -> None:
    console, stream = screen()
    show_everything(console, ["a", HOSTILE, "b", HOSTILE * 3, "\x00", "\x85"])
    found = stream.getvalue()
    assert not OBEYED.search(found)
    assert r"\x1b[31m" in found
    assert "[bold]x[/bold]" in found, "markup is text"
    assert ":smile:" in found, "so are emoji codes"


@given(st.text())
@settings(max_examples=80)
def test_safe_text_has_nothing_to_obey(text: str) -> None:
    assert not OBEYED.search(safe(text))
    assert "\n" not in safe_line(text)
    if text.isprintable():
        assert safe(text) == re.sub("[\u061c\u200e\u200f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def test_running_text_keeps_its_lines() -> None:
    assert safe("a\n\tb\r\n") == "a\n\tb\\x0d\n"
    assert safe_line("a\n\tb") == "a\\n\\tb"


# Pieces


@pytest.mark.parametrize(
    ("given_token", "shown"),
    [
        (token(" red"), "·red"),
        (token("\n\n\t"), "↵↵⇥"),
        (token("a\u200d"), "a\\u200d"),
        (token("\u0301"), "◌\u0301"),
        (token("e\u0301"), "e\u0301"),
        (token("\u00a0"), "\\xa0"),
        (token("漢"), "漢"),
        (token("<s>", special=True), "<s>"),
        (Token(9, "\ufffd", b"\xe6"), "<e6>"),
        (Token(9, "\ufffd\ufffd", b"\xe6\xbc"), "<e6 bc>"),
        (Token(9, "\ufffd", "\ufffd".encode()), "\ufffd"),
        (Token(9, "", b""), "<id 9>"),
    ],
)
def test_pieces(given_token: Token, shown: str) -> None:
    assert plain_piece(given_token, UNICODE) == shown


def test_pieces_in_ascii() -> None:
    assert plain_piece(token(" a\n"), ASCII) == "_a\\n"
    assert plain_piece(token("\u0301"), ASCII) == "\\u0301"


def test_split_characters_are_whole_again() -> None:
    halves = [Token(1, "\ufffd", b"\xe6\xbc"), Token(2, "\ufffd", b"\xa2")]
    assert text_of(halves) == "漢"
    assert text_of(halves[:1]) == "\ufffd"


@given(st.text(max_size=30), st.integers(4, 20))
@settings(max_examples=80)
def test_fitted_text_is_as_wide_as_it_should_be(text: str, width: int) -> None:
    shown = fit(piece(token(text), UNICODE), width, UNICODE)
    assert columns(shown.plain) == width
    line = one_line(text, UNICODE)
    for cut in (fit_end(line, width, UNICODE), fit_start(line, width, UNICODE)):
        assert columns(cut) <= width
        assert cut == line or "…" in cut


def test_what_is_cut_shows_it() -> None:
    assert fit(piece(token("abcdefgh"), UNICODE), 5, UNICODE).plain == "abcd…"
    assert fit_end("abcdefgh", 5, UNICODE) == "…efgh"
    assert fit_start("abcdefgh", 5, UNICODE) == "abcd…"
    assert fit_end("abcdefgh", 5, ASCII) == "...gh"


# Numbers


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(1.0, "100%"), (0.9999, ">99.9%"), (0.998, "99.8%"), (0.0501, "5.0%"), (0.0009, "<0.1%"), (0.0, "0.0%")],
)
def test_percent(probability: float, shown: str) -> None:
    assert percent(probability) == shown
    assert len(shown) <= 6


def test_bars() -> None:
    assert bar(1.0, 4, MODEL_BAR, UNICODE).plain == "████"
    assert bar(0.0, 4, MODEL_BAR, UNICODE).plain == "    "
    assert bar(0.5, 3, MODEL_BAR, UNICODE).plain == "█▌ "
    assert bar(1 / 32, 4, MODEL_BAR, UNICODE).plain == "▏   "
    assert bar(0.5, 4, MODEL_BAR, ASCII).plain == "##  "
    for odd in (nan, -1.0, 7.0):
        assert len(bar(odd, 4, MODEL_BAR, UNICODE).plain) == 4


def test_a_claim_beyond_certainty_is_certainty() -> None:
    assert (chance(log(0.25)), chance(1e9), chance(nan), chance(-inf)) == (pytest.approx(0.25), 1.0, 0.0, 0.0)


def test_the_less_likely_the_redder() -> None:
    assert probability_style(0.7).color is None
    colours = [probability_style(probability).color for probability in (0.69, 0.39, 0.14, 0.03, 0.0)]
    assert None not in colours
    assert len(set(colours)) == 4
    reds = [colour.triplet.red - colour.triplet.green for colour in colours if colour and colour.triplet]
    assert reds == sorted(reds)
    assert step_style(make_step(["a"], forced=True)).underline


# Views


# Nobody agrees on how wide the unassigned are, nor a skin tone that stands on something that has no skin.
SKIN_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
LETTERS = st.characters(exclude_categories=["Cs", "Cn"], exclude_characters=SKIN_TONES)
WORDS = st.text(LETTERS, min_size=1, max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=12), st.sampled_from([40, 48, 60, 72, 80, 100, 120]))
@settings(max_examples=12)
def test_no_line_is_wider_than_the_terminal(texts: list[str], width: int) -> None:
    console, stream = screen(width)
    step = make_step(texts)
    print_candidates(console, step, 8)
    print_strip(console, cells([token(text) for text in texts], [step]))
    print_tokens(console, [token(text) for text in texts])
    print_reading(console, make_reading(texts), 3, 1)
    lines = StepLines(console)
    lines.step(step)
    for line in stream.getvalue().splitlines():
        assert columns(line) <= console.width


def test_candidates_before_and_after_the_chain() -> None:
    console, stream = screen(80)
    print_candidates(console, make_step(["a", " b", "c", "d", "e"], taken=1), 4)
    lines = stream.getvalue().splitlines()
    assert "the model" in lines[0]
    assert "after the chain" in lines[0]
    assert lines[1].split() == ["1", "a", *lines[1].split()[2:]]
    assert "50.0%" in lines[1]
    assert "60.0%" in lines[1]
    assert " 2 ▸ ·b" in lines[2]
    assert "removed by top_k" in lines[4]
    assert lines[5].split()[:2] == ["all", "others"]
    assert "6.2%" in lines[5]


def test_a_token_from_further_down_is_shown_too() -> None:
    console, stream = screen(80)
    print_candidates(console, make_step(["a", "b", "c", "d", "e"], taken=4), 2)
    assert " 5 ▸ e" in stream.getvalue()
    below = replace(make_step(["a", "b"]), token=token("z", 900), logprob=log(0.01), rank=42, draw=Draw(0.9, 0.9, 0.95))
    console, stream = screen(80)
    print_candidates(console, below, 2)
    [line] = [line for line in stream.getvalue().splitlines() if "▸" in line]
    assert line.split()[:3] == ["42", "▸", "z"]
    assert "1.0%" in line
    assert "5.0%" in line


def test_nothing_is_left_of_nearly_all() -> None:
    top = tuple(replace(each, logprob=log(0.4999999)) for each in make_step(["a", "b"]).top)
    console, stream = screen(80)
    print_candidates(console, make_step(["a", "b"], top=top), 4)
    assert stream.getvalue().splitlines()[-1].split()[2] == "0.0%"


def test_greedy_shows_one_bar() -> None:
    top = tuple(replace(each, prob=float(each.rank == 1), removed_by=None) for each in make_step(["a", "b"]).top)
    console, stream = screen(80)
    print_candidates(console, make_step(["a", "b"], sampled=False, top=top), 4)
    assert "after the chain" not in stream.getvalue()


def test_a_narrow_terminal_keeps_the_pieces() -> None:
    console, stream = screen(40)
    print_candidates(console, make_step([" purple", " b", "c", "d"], taken=1), 4)
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["the", "model", "after"]
    assert "·purple" in lines[1]
    assert "60.0%" in lines[1]
    assert lines[4].endswith("— top_k")
    assert len({line.index("%") for line in lines[1:]}) == 1, "the numbers stand under each other"
    console, stream = screen(40)
    print_reading(console, make_reading([" purple", " b", "c"]), 1, 1)
    assert "·purple" in stream.getvalue()
    assert "read so far" not in stream.getvalue()


def test_the_chain_as_a_table() -> None:
    console, stream = screen(80)
    print_chain(console, make_step(["a", "b", "c", "d"]), 8)
    lines = stream.getvalue().splitlines()
    assert [line.split() for line in lines] == [
        ["raw", "top_k"],
        ["3"],
        ["4,096", "kept", "3", "kept"],
        ["a", "9.00", "9.00"],
        ["b", "8.00", "8.00"],
        ["c", "7.00", "7.00"],
        ["d", "6.00", "—"],
    ]


def test_a_wide_chain_is_broken_into_blocks() -> None:
    stage = make_step(["a"]).chain[0]
    console, stream = screen(60)
    print_chain(console, make_step(["a"], chain=(stage,) * 12), 8)
    assert stream.getvalue().count("raw") == 12
    assert max(map(len, stream.getvalue().splitlines())) <= 60


def test_the_strip_says_where_every_token_is_and_what_it_left_out() -> None:
    console, stream = screen(30)
    print_strip(console, cells([token(f" t{place}") for place in range(30)], []), rows=2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "… 19 tokens before"
    assert lines[1].split() == [f"·t{place}" for place in range(19, 25)]
    assert lines[2].split() == [str(place) for place in range(19, 25)]
    assert lines[4].split()[-1] == "29"
    for text, number in zip(re.finditer(r"\S+", lines[1]), re.finditer(r"\S+", lines[2]), strict=True):
        assert text.start() == number.start()


def test_the_reading_makes_sense_of_the_gibberish() -> None:
    console, stream = screen(100)
    print_reading(console, make_reading(["<s>", "A", " list"]), 1, 2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prefill: 3 positions in 2 passes, cache 0 → 3, 4.0 ms"
    assert lines[2] == "every prediction, joined: aaa"
    assert [line[-14:].strip() for line in lines[5:8]] == ["<s> → a", "<s>A → a", "<s>A list → a"]
    assert len({line.index(" → a") for line in lines[5:8]}) == 1, "the arrows stand under each other"
    assert "#4,001" in lines[5]
    assert "—" in lines[7]
    assert " ".join(" ".join(lines[9:]).split()).endswith('continues the whole prompt: "<s>A list" → a.')


def test_no_colour_codes_in_a_pipe() -> None:
    console, stream = screen()
    show_everything(console, ["a", " b", "漢"])
    assert "\x1b" not in stream.getvalue()


def test_ascii_terminals_get_ascii_marks() -> None:
    console, stream = screen(encoding="ascii")
    show_everything(console, ["a", " b\n", "c"])
    print_reading(console, make_reading(["a"]), 1, 1)
    assert stream.getvalue().replace(HOSTILE, "").isascii()


# Flow


def flowed(texts: list[str], width: int) -> list[str]:
    """What stands on the screen after a terminal obeyed the flow: letters, line breaks, moves back, erasures."""
    console, stream = screen(width, terminal=True)
    flow = Flow(console)
    for text in texts:
        flow.write(text, step_style(make_step(["a"])))
    flow.end_line()
    lines = [""]
    for found in re.finditer(r"\x1b\[(\d+)D|\x1b\[0?K|\x1b\[[\d;]*m|(.)", stream.getvalue(), re.DOTALL):
        if found[1]:
            lines[-1] = lines[-1][: -int(found[1])]
        elif found[2] == "\n":
            lines.append("")
        elif found[2]:
            lines[-1] += found[2]
    return lines[:-1]


def test_words_move_down_whole() -> None:
    assert flowed(["one", " two", " three", " fo", "ur", "teen", " five"], 16) == ["one two three ", "fourteen five"]
    assert flowed(["one two", " thr", "eent", "h"], 16) == ["one two ", "threenth"]
    assert flowed(["ab", "\n\ncd ef"], 16) == ["ab", "", "cd ef"]
    assert flowed(["x" * 40], 16) == ["x" * 40], "what fits no line is left to the terminal"


@given(st.lists(st.text(alphabet="ab \n漢é", max_size=9), max_size=12), st.integers(8, 30))
@settings(max_examples=60)
def test_the_flow_loses_nothing(texts: list[str], width: int) -> None:
    lines = flowed(texts, width)
    assert "".join("".join(lines).split()) == "".join("".join(texts).split())
    for word in "".join(texts).split():
        if columns(word) == len(word) < width:
            assert any(word in line for line in lines), "a word stays whole"
    longest_word = max((columns(word) for word in "".join(texts).split()), default=0)
    if longest_word < width:
        assert all(columns(line) < width for line in lines)


def test_a_terminal_that_cannot_move_back_gets_no_word_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert flowed(["one thr", "ee"], 8) == ["one three"]
    assert flowed(["one"], 8) == ["one"]


def test_in_a_pipe_the_flow_is_the_text() -> None:
    console, stream = screen(10)
    flow = Flow(console)
    flow.write("a long line of words that does not wrap", step_style(make_step(["a"])))
    flow.end_line()
    assert stream.getvalue() == "a long line of words that does not wrap\n"


# Words


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("", words.Take()),
        ("3", words.Choose(3)),
        (" ", words.Insert(" ")),
        (" purple", words.Insert(" purple")),
        ("purple rain", words.Insert("purple rain")),
        ("rather", words.Insert("rather")),
        (" r", words.Insert(" r")),
        (" help", words.Insert(" help")),
        ('"help"', words.Insert("help")),
        ("help me", words.Insert("help me")),
        ("go home", words.Insert("go home")),
        ("rewind the tape", words.Insert("rewind the tape")),
        ("set the table", words.Insert("set the table")),
        ("next a=b", words.Insert("next a=b")),
        ("edit the text", words.Insert("edit the text")),
        ('"r"', words.Insert("r")),
        ('"7"', words.Insert("7")),
        (r'"a\nb"', words.Insert("a\nb")),
        (r'"a\q"', words.Insert(r"a\q")),
        ('"', words.Insert('"')),
        ("r", words.Rewind(1)),
        ("r 4", words.Rewind(4)),
        ("e 7  blue", words.Edit(7, " blue")),
        ('e 0 " blue"', words.Edit(0, " blue")),
        ("f", words.Fork()),
        ("f -3", words.Fork(-3)),
        ("b", words.Branches()),
        ("b 2", words.Branches(2)),
        ("p", words.Chain()),
        ("s", words.Set()),
        ("s a=1 b=2", words.Set(("a=1", "b=2"))),
        ("g", words.Go()),
        ("g 9", words.Go(9)),
        ("?", words.Help()),
        ("q", words.Quit()),
    ],
)
def test_words(line: str, action: words.Action) -> None:
    assert words.parse(line) == action


@pytest.mark.parametrize(
    "line", ["r x", "r 0", "r -1", "e", "e 3", "e x y", "b 0", "g -2", "f x", "p 1", "q now", "? r"]
)
def test_words_that_are_nearly_commands(line: str) -> None:
    with pytest.raises(UsageError, match="tak"):
        words.parse(line)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("rewind", "r"),
        ("undo 3", "r 3"),
        ("Help", "?"),
        ("h ", "?"),
        ("quit", "q"),
        ("exit()", "q"),
        ("/quit", "q"),
        (":q", "q"),
        ("fork -5", "f -5"),
        ("branches", "b"),
        ("branch 2", "b 2"),
        ("chain", "p"),
        ("settings", "s"),
        ("set top_k=3 seed=1", "s top_k=3 seed=1"),
        ("go", "g"),
        ("continue 20", "g 20"),
        ("edit", "e"),
        ("edit 7", "e 7"),
        ('edit 7 " blue"', 'e 7 " blue"'),
        ("take", ""),
        ("next", ""),
    ],
)
def test_words_for_commands_are_not_inserted(line: str, meant: str) -> None:
    with pytest.raises(words.SpelledOut, match="nothing was inserted") as refused:
        words.parse(line)
    assert refused.value.meant == meant
    quoted = str(refused.value).partition("as a text ")[2]
    assert words.parse(quoted) == words.Insert(line)


# Sentences


def test_settings_in_words() -> None:
    assert settings_in_words(SamplingParams()) == "greedy"
    params = SamplingParams(temperature=0.8, top_k=5, seed=3, logprobs=20, stop=("x",))
    assert settings_in_words(params) == "temperature=0.8, top_k=5, stop=['x']"


def test_rates() -> None:
    steps = [make_step(["a"], positions_computed=8, seconds=0.5), make_step(["a"], positions_computed=2, seconds=0.5)]
    assert rate(steps, "prefill") == "prefill 10 tokens, 10/s"
    assert rate([make_step(["a"], seconds=0.0)], "decode") == "decode 1 token"
    assert exp(make_step(["a"]).logprob) == pytest.approx(0.5)


@pytest.mark.parametrize("width", [30, 60, 100])
def test_labels_beside_their_texts_end_without_spaces(width: int) -> None:
    out = io.StringIO()
    print_pairs(Screen(out, width=width), words.HELP)
    print_models(Screen(out, width=width), {"architectures": {"opt": "opt.py"}, "embedded": "tiny", "cached": []})
    lines = out.getvalue().splitlines()
    assert not [line for line in lines if line != line.rstrip()]
    assert max(map(len, lines)) <= width
    told = " ".join(out.getvalue().split())
    assert all(meaning.split()[0] in told and typed.split()[0] in told for typed, meaning in words.HELP)


def luminance(style: Style) -> float:
    """Of its colour, as WCAG has it: 0 for black, 1 for white."""
    assert style.color is not None
    assert style.color.triplet is not None
    shares = [value / 255 for value in style.color.triplet]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(part * share for part, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_read_on_black_and_on_white() -> None:
    words_in = [GOOD, BAD, *(probability_style(probability) for probability in (0.5, 0.2, 0.1, 0.0))]
    for styles, least in ((words_in, 4.2), ((MODEL_BAR, CHAIN_BAR), 3.0)):
        for style in styles:
            assert 1.05 / (luminance(style) + 0.05) >= least, style
            assert (luminance(style) + 0.05) / 0.05 >= least, style
