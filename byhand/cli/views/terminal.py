"""The terminal itself: consoles, glyphs that it can show, and the colours that carry meaning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.style import Style
from rich.text import Text

from byhand.cli.views.safe import safe_line
from byhand.reprs import chance as chance
from byhand.reprs import percent as percent

# Mid tones, as legible on black as on white (a contrast of 4.2 for words, 3 for bars); Rich maps them to what a poorer
# terminal has.
MODEL_BAR = Style(color="#4f8fd0")
CHAIN_BAR = Style(color="#2e9e7e")
QUIET = Style(dim=True)
STRONG = Style(bold=True)
FORCED = Style(underline=True)
BAD = Style(color="#d03a3a")
GOOD = Style(color="#27846a")

# (at least this probable, the colour): sure is unpainted, then amber deepening to red.
_SCALE = (
    (0.7, Style()),
    (0.4, Style(color="#947100")),
    (0.15, Style(color="#ac6519")),
    (0.04, Style(color="#c94f28")),
    (0.0, Style(color="#d42a4c", bold=True)),
)


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The marks that the views draw with."""

    space: str
    newline: str
    tab: str
    arrow: str
    dash: str
    dot: str
    more: str
    mark: str
    circle: str
    blocks: str  # of growing width, the last one full


UNICODE = Glyphs("·", "↵", "⇥", "→", "—", "·", "…", "▸", "◌", "▏▎▍▌▋▊▉█")
ASCII = Glyphs("_", "\\n", "\\t", "->", "-", "|", "...", ">", "", "#")


def glyphs(console: Console) -> Glyphs:
    """The marks that this console's encoding can write."""
    return ASCII if console.options.ascii_only else UNICODE


class Screen(Console):
    """A console that prints exactly what it is given: no markup, no emoji codes, no guessed highlights."""

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        # Without a height Rich takes a dumb terminal to be 80 columns wide, whatever it is told.
        height = None if width is None else 25
        super().__init__(file=stream, markup=False, emoji=False, highlight=False, width=width, height=height)

    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to the command line; Rich would end the program here."""
        raise


def console_for(stream: TextIO) -> Console:
    """A console on a stream; what is no terminal gets a fixed width, unless COLUMNS says another."""
    console = Screen(stream)
    if console.is_dumb_terminal and not _width_is_set():
        with suppress(OSError, ValueError):
            return Screen(stream, width=os.get_terminal_size(stream.fileno()).columns)
    return console if console.is_terminal or _width_is_set() else Screen(stream, width=100)


def print_words(console: Console, text: Text) -> None:
    """Running text: on a terminal its lines break between words, elsewhere it is one line."""
    console.print(text, soft_wrap=not console.is_terminal)


def _width_is_set() -> bool:
    return os.environ.get("COLUMNS", "").isdigit()


def probability_style(probability: float) -> Style:
    """The colour of a token this probable."""
    return next(style for least, style in _SCALE if probability >= least or least == 0.0)


def milliseconds(seconds: float) -> str:
    """A short time in people's words."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.1f} ms"


def bar(probability: float, width: int, style: Style, marks: Glyphs) -> Text:
    """A bar of `width` columns, filled in eighths of a column where the terminal has such blocks."""
    steps = len(marks.blocks)
    share = max(0.0, min(1.0, probability)) if probability == probability else 0.0
    filled = round(share * width * steps)
    whole, part = divmod(filled, steps)
    text = marks.blocks[-1] * whole + (marks.blocks[part - 1] if part else "")
    return Text(text.ljust(width), style=style, no_wrap=True, end="")


def print_beside(console: Console, rows: Sequence[tuple[str, Text | str]], style: Style) -> None:
    """Labels in this style, and beside each its text, broken where the console ends."""
    # Line by line, for a table would fill its last column with spaces.
    left = max(len(label) for label, _ in rows) + 2
    for label, value in rows:
        text = value if isinstance(value, Text) else Text(safe_line(value))
        for number, line in enumerate(text.wrap(console, max(1, console.width - left), overflow="fold")):
            line.rstrip()
            console.print(Text.assemble((("" if number else label).ljust(left), style), line), soft_wrap=True)


def print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """What can be typed and what it means, in two columns."""
    print_beside(console, [(f"  {typed}", meaning) for typed, meaning in pairs], STRONG)


def legend() -> Text:
    """What the colours of watched text mean."""
    text = Text("probability: ", style=QUIET)
    for place, (least, style) in enumerate(_SCALE):
        text.append(", " if place else "", style=QUIET)
        text.append(f"{least:.0%} and more" if least else "less", style=style)
    return text
