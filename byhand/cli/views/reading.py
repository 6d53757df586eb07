"""The prompt as the model sees it: its tokens, and what it predicts after every one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from byhand.cli.views.pieces import columns, fit, fit_end, hex_bytes, one_line, piece, plain_piece, text_of
from byhand.cli.views.safe import safe
from byhand.cli.views.terminal import (
    GOOD,
    MODEL_BAR,
    QUIET,
    STRONG,
    Glyphs,
    bar,
    chance,
    glyphs,
    milliseconds,
    percent,
    probability_style,
)
from byhand.types import Candidate, Position, Reading, Token

# Of a terminal at least so wide: the bar, and the real next token with its probability.
_LAYOUTS = ((100, 16, 15), (80, 8, 15), (0, 0, 0))
READ = "having read"
WIDEST_PIECE = 18


def print_tokens(console: Console, tokens: Sequence[Token]) -> None:
    """One line a token: its place, id, piece and, where there is room, its bytes."""
    marks = glyphs(console)
    pieces = [piece(token, marks) for token in tokens]
    number = max(1, len(str(len(tokens) - 1)))
    ids = max(2, *(len(str(token.id)) for token in tokens))
    width = min(max(5, *(columns(text.plain) for text in pieces)), max(8, console.width - number - ids - 32))
    console.print(Text(f"{'#':>{number}}  {'id':>{ids}}  {'piece'.ljust(width)}  bytes", style=QUIET), soft_wrap=True)
    room = console.width - number - ids - width - 6
    for place, (token, text) in enumerate(zip(tokens, pieces, strict=True)):
        line = Text.assemble((f"{place:>{number}}", QUIET), f"  {token.id:>{ids}}  ", fit(text, width, marks))
        shown = "special" if token.special else fit_end(hex_bytes(token.bytes), room, marks)
        console.print(line.append(f"  {shown}", style=QUIET), soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Widths:
    """The columns of a reading's table.

    A narrow terminal gets neither bars nor the real next token (both 0), a very narrow one no text read so far either.
    """

    number: int
    token: int
    predicted: int
    bar: int
    actual: int
    context: int

    @classmethod
    def of(cls, console: Console, reading: Reading, top: int) -> _Widths:
        marks = glyphs(console)
        bar_width, actual = next(sizes for least, *sizes in _LAYOUTS if console.width >= least)
        number = len(str(len(reading) - 1))
        # What is left for the three pieces of a line and the text read so far.
        room = console.width - number - bar_width - actual - len("  " * 5 + "  >99.9%") - len(marks.arrow)
        cap = max(8, min(WIDEST_PIECE, (room - len(READ)) // 3))
        shown = [candidate.token for at in reading for candidate in (at.predicted, *at.top[:top])]
        token = max(5, *(columns(plain_piece(at.token, marks)) for at in reading), 5)
        predicted = max(8, *(columns(plain_piece(each, marks)) for each in shown), 8)
        longest = columns(one_line(text_of(at.token for at in reading), marks))
        context = min(room - min(cap, token) - 2 * min(cap, predicted), max(longest, len(READ)))
        if context < len(READ):
            context, cap = 0, max(8, (console.width - number - bar_width - len("    " + "  >99.9%")) // 2)
        return cls(number, min(cap, token), min(cap, predicted), bar_width, actual, context)


def prefill_line(reading: Reading, passes: int, marks: Glyphs) -> str:
    """ "prefill: 8 positions in one pass, cache 0 -> 8, 4 ms"."""
    count = len(reading)
    positions = "1 position" if count == 1 else f"{count:,} positions"
    cache = f"cache 0 {marks.arrow} {count:,}"
    turns = "one pass" if passes == 1 else f"{passes} passes"
    return f"prefill: {positions} in {turns}, {cache}, {milliseconds(reading.seconds)}"


def print_reading(console: Console, reading: Reading, top: int, passes: int) -> None:
    """The phase, the line of gibberish, the prediction at every position, and what to make of it."""
    marks = glyphs(console)
    console.print(Text(prefill_line(reading, passes, marks), style=QUIET))
    console.print()
    console.print(Text("every prediction, joined: ", style=QUIET).append(safe(reading.text), style="not dim"))
    console.print()
    widths = _Widths.of(console, reading, top)
    console.print(_header(widths, marks), soft_wrap=True)
    for at in reading:
        read = text_of(each.token for each in reading.positions[max(0, at.position - console.width) : at.position + 1])
        for line in _position(at, read, widths, top, marks):
            console.print(line, soft_wrap=True)
    console.print()
    console.print(_sense(reading, marks))


def _header(widths: _Widths, marks: Glyphs) -> Text:
    heads = [
        "#".rjust(widths.number),
        "token".ljust(widths.token),
        "predicts".ljust(widths.predicted + widths.bar + 8),
        *(["real next token".ljust(widths.actual)] if widths.actual else []),
        *([f"{READ.rjust(widths.context)} {marks.arrow} predicts"] if widths.context else []),
    ]
    return Text("  ".join(heads).rstrip(), style=QUIET)


def _position(at: Position, read: str, widths: _Widths, top: int, marks: Glyphs) -> Iterator[Text]:
    """One position: its line, and a line for each further candidate asked for."""
    line = Text.assemble((f"{at.position:>{widths.number}}", QUIET), "  ")
    line.append_text(fit(piece(at.token, marks), widths.token, marks)).append("  ")
    line.append_text(_candidate(at.predicted, widths, marks)).append("  ")
    if widths.actual:
        line.append_text(_actual(at.actual, marks)).append("  ")
    if widths.context:
        context = fit_end(one_line(read, marks), widths.context, marks)
        line.append(" " * (widths.context - columns(context)) + context, style=QUIET)
        line.append(f" {marks.arrow} ", style=QUIET)
        line.append_text(fit(piece(at.predicted.token, marks, STRONG), widths.predicted, marks))
    line.rstrip()
    yield line
    indent = " " * (widths.number + widths.token + 4)
    for candidate in at.top[1:top]:
        yield Text(indent).append_text(_candidate(candidate, widths, marks))


def _candidate(candidate: Candidate, widths: _Widths, marks: Glyphs) -> Text:
    probability = chance(candidate.logprob)
    return Text.assemble(
        fit(piece(candidate.token, marks), widths.predicted, marks),
        " ",
        bar(probability, widths.bar, MODEL_BAR, marks),
        f" {percent(probability):>6}",
    )


def _actual(actual: Candidate | None, marks: Glyphs) -> Text:
    """Rank and probability of the token that really follows in the prompt."""
    if actual is None:
        return Text(marks.dash.ljust(15), style=QUIET)
    probability = chance(actual.logprob)
    style = GOOD if actual.rank == 1 else probability_style(probability)
    return Text(f"#{actual.rank:<7,} {percent(probability):>6}", style=style)


def _sense(reading: Reading, marks: Glyphs) -> Text:
    """The sentence that makes sense of the gibberish."""
    last = reading[-1]
    text = Text(
        "Each prediction continues all that was read up to its line; only the last continues the whole prompt: "
    )
    text.append(f'"{fit_end(one_line(text_of(at.token for at in reading), marks), 60, marks)}"')
    return text.append(f" {marks.arrow} ").append_text(piece(last.predicted.token, marks, STRONG)).append(".")
