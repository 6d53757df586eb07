"""The run as a strip of tokens: each with its place under it, generated ones coloured by their probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.style import Style
from rich.text import Text

from byhand.cli.views.pieces import columns, fit, piece
from byhand.cli.views.terminal import FORCED, QUIET, Glyphs, chance, glyphs, probability_style
from byhand.types import Step, Token

LONGEST_PIECE = 24


@dataclass(frozen=True, slots=True)
class Cell:
    """One token of the strip."""

    position: int
    token: Token
    style: Style | None = None


def step_style(step: Step) -> Style:
    """Sure is unpainted, then amber to red; forced is underlined."""
    style = probability_style(chance(step.logprob))
    return style + FORCED if step.forced else style


def cells(prompt: Sequence[Token], steps: Sequence[Step]) -> list[Cell]:
    """The prompt's tokens, then the steps'."""
    read = [Cell(position, token) for position, token in enumerate(prompt)]
    return read + [Cell(step.position, step.token, step_style(step)) for step in steps]


def print_strip(console: Console, strip: Sequence[Cell], rows: int = 3) -> None:
    """The last rows of the strip that fit, with a count of what is left out before them."""
    marks = glyphs(console)
    wrapped = list(_rows(strip, console.width, marks))
    left_out = sum(len(row) for row in wrapped[:-rows])
    if left_out:
        console.print(Text(f"{marks.more} {left_out} tokens before", style=QUIET), soft_wrap=True)
    for row in wrapped[-rows:]:
        console.print(Text(" ").join(text for _, text in row), soft_wrap=True)
        places = (str(cell.position).ljust(columns(text.plain)) for cell, text in row)
        console.print(Text(" ".join(places).rstrip(), style=QUIET), soft_wrap=True)


def _rows(strip: Sequence[Cell], width: int, marks: Glyphs) -> Iterator[list[tuple[Cell, Text]]]:
    """Cells, each as wide as its piece or its number, broken into rows."""
    row: list[tuple[Cell, Text]] = []
    used = 0
    for cell in strip:
        text = piece(cell.token, marks, cell.style)
        size = max(min(columns(text.plain), LONGEST_PIECE), len(str(cell.position)))
        if row and used + size > width:
            yield row
            row, used = [], 0
        row.append((cell, fit(text, size, marks)))
        used += size + 1
    if row:
        yield row
