"""A record as it is stepped through: what was read, what was chosen, out of what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from byhand.cli.views.candidates import measures, pass_line, print_candidates, print_chain
from byhand.cli.views.pieces import text_of
from byhand.cli.views.safe import safe, safe_line
from byhand.cli.views.settings import settings_in_words
from byhand.cli.views.streaming import StepLines, closing
from byhand.cli.views.strip import cells, print_strip
from byhand.cli.views.terminal import BAD, QUIET, glyphs, print_pairs, print_words

if TYPE_CHECKING:
    from byhand.record import Record

TOP = 8


class RecordView:
    """Draws a record onto one console."""

    def __init__(self, console: Console, record: Record) -> None:
        self._console = console
        self._record = record
        self._marks = glyphs(console)

    def header(self) -> None:
        """Which run this is."""
        record = self._record
        origin = (record.model.name, record.model.dtype, record.created, f"byhand {record.byhand}")
        settings = (settings_in_words(record.params), f"seed {record.seed}")
        self._quiet(f" {self._marks.dot} ".join(origin))
        self._quiet(f" {self._marks.dot} ".join(settings))
        self._console.print()
        self._strip(0)

    def show(self, place: int) -> None:
        """One step: the strip with it, and what it was chosen from."""
        if place >= len(self._record.steps):
            return
        step = self._record.steps[place]
        self._console.print()
        self._strip(place + 1)
        self._console.print()
        forced = f" {self._marks.dot} forced" if step.forced else ""
        self._console.print(pass_line(step, self._marks).append(forced))
        print_candidates(self._console, step, TOP)
        self._console.print(measures(step, self._marks))

    def lines(self, first: int) -> None:
        """Every step from `first`, a line each."""
        lines = StepLines(self._console)
        for step in self._record.steps[first:]:
            lines.step(step)

    def ending(self) -> None:
        """The text, the rates, and why it ended."""
        record = self._record
        prompt = text_of(token for token in record.prompt if not token.special)
        self._console.print()
        text = Text.assemble((safe(prompt), QUIET), safe(record.text))
        print_words(self._console, text)
        self._console.print(closing(self._console, record))

    def prompt(self, place: int) -> str:
        """What stands before the typed line."""
        return f"{max(0, place + 1)}/{len(self._record.steps)} > "

    def chain(self, place: int) -> None:
        """The chain's table of the step that is shown."""
        if 0 <= place < len(self._record.steps):
            print_chain(self._console, self._record.steps[place], TOP)
        else:
            self._quiet("no step is shown yet")

    def help(self, keys: Sequence[tuple[str, str]]) -> None:
        """All that can be typed."""
        print_pairs(self._console, keys)

    def complain(self, sentence: str) -> None:
        """What could not be done."""
        self._console.print(Text(safe_line(sentence), style=BAD))

    def _strip(self, count: int) -> None:
        print_strip(self._console, cells(self._record.prompt, self._record.steps[:count]))

    def _quiet(self, sentence: str) -> None:
        self._console.print(Text(safe_line(sentence), style=QUIET))
