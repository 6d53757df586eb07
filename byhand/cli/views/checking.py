"""Tables of what was checked: byhand against transformers, a record against a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from byhand.cli.views.pieces import columns, fit_start, plain_piece
from byhand.cli.views.safe import safe_line
from byhand.cli.views.terminal import BAD, GOOD, QUIET, Glyphs, glyphs
from byhand.types import Token

if TYPE_CHECKING:
    from byhand.replay import Difference
    from byhand.verify import Report, Row

# More lines than this say no more.
MOST_DIFFERENCES = 40


def print_report(console: Console, report: Report, token: Callable[[int], Token]) -> None:
    """One line a method and prompt, with the first difference and both margins there; then how the judge was run."""
    marks = glyphs(console)
    method = max(len(row.method) for row in report.rows)
    prompt = min(max(len(_shown(row.prompt)) for row in report.rows), max(12, console.width - method - 30))
    console.print(Text(f"{'method'.ljust(method)}  {'prompt'.ljust(prompt)}  tokens", style=QUIET), soft_wrap=True)
    before = ""
    for row in report.rows:
        name = row.method if row.method != before else ""
        before = row.method
        words = fit_start(_shown(row.prompt), prompt, marks)
        line = Text(f"{name.ljust(method)}  {words}{' ' * (prompt - columns(words))}  {row.tokens:>6}  ")
        console.print(line.append_text(_verdict(row)), soft_wrap=True)
        if not row.equal:
            console.print(Text(f"{' ' * method}  {_difference(row, token, marks)}", style=QUIET))
    console.print()
    console.print(_summary(report))
    console.print(Text(f"judge: {safe_line(report.judge)}", style=QUIET))


def _shown(prompt: str) -> str:
    """A prompt on one line; one that shows nothing of itself stands in quotes."""
    return safe_line(prompt) if prompt.strip() else f'"{safe_line(prompt)}"'


def _verdict(row: Row) -> Text:
    if row.equal:
        return Text("equal", style=GOOD)
    return Text("a rounding tie", style=QUIET) if row.is_tie else Text("DIFFERENT", style=BAD)


def _difference(row: Row, token: Callable[[int], Token], marks: Glyphs) -> str:
    """Where two runs part, and how close the choice was on both sides."""

    def side(id: int | None, margin: float | None) -> str:  # noqa: A002 - the field's word
        if id is None:
            return "nothing more"
        return f"{plain_piece(token(id), marks)} ({id})" + ("" if margin is None else f" by {margin:.2g} nats")

    ours, theirs = side(row.got, row.got_margin), side(row.expected, row.expected_margin)
    return f"token {row.place}: transformers {theirs}, byhand {ours}"


def _summary(report: Report) -> Text:
    ties = sum(row.is_tie for row in report.rows)
    wrong = sum(not row.is_right for row in report.rows)
    if wrong:
        return Text(f"{wrong} of {len(report.rows)} runs differ", style=BAD)
    text = Text(f"all {len(report.rows)} runs give the same ids", style=GOOD)
    return text.append(f", but for {ties} rounding ties" if ties else "")


def print_differences(console: Console, differences: Sequence[Difference], steps: int) -> None:
    """The numbers of a record that a model does not give again."""
    if not differences:
        console.print(Text(f"all {steps} steps give the same numbers again", style=GOOD))
        return
    places = sorted({each.index for each in differences})
    width = max(5, *(len(each.field) for each in differences))
    header = f"{'step':>5}  {'field'.ljust(width)}  {'recorded':>14}  {'now':>14}"
    console.print(Text(header, style=QUIET), soft_wrap=True)
    for each in differences[:MOST_DIFFERENCES]:
        values = f"{_value(each.recorded):>14}  {_value(each.now):>14}"
        console.print(Text(f"{each.index:>5}  {each.field.ljust(width)}  {values}"), soft_wrap=True)
    if len(differences) > MOST_DIFFERENCES:
        console.print(Text(f"and {len(differences) - MOST_DIFFERENCES} more", style=QUIET))
    console.print(Text(f"{len(places)} of {steps} steps differ, the first is step {places[0]}", style=BAD))


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else safe_line(str(value))
