"""What the stepper shows: the strip of tokens, the pass, the candidates, the branches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from byhand.cli.views.candidates import measures, pass_line, print_candidates, print_chain
from byhand.cli.views.pieces import fit_end, one_line, piece, plain_piece, text_of
from byhand.cli.views.safe import safe, safe_line
from byhand.cli.views.settings import settings_in_words
from byhand.cli.views.streaming import Flow, ending
from byhand.cli.views.strip import cells, print_strip, step_style
from byhand.cli.views.terminal import BAD, QUIET, STRONG, chance, glyphs, percent, print_pairs, print_words
from byhand.cli.words import HELP
from byhand.types import Step

if TYPE_CHECKING:
    from byhand.cli.branches import Branches
    from byhand.run import Run

NARROWEST_TEXT = 20


class StepperView:
    """Draws onto one console."""

    def __init__(self, console: Console, top: int) -> None:
        self._console = console
        self._marks = glyphs(console)
        self._top = top

    def show(self, branches: Branches) -> None:
        """The run as it stands, and what could come next."""
        run = branches.current.run
        self._console.print()
        print_strip(self._console, cells(run.prompt_tokens(), run.steps))
        self._console.print()
        step = branches.current.look()
        if step is None:
            self._quiet(f"{ending(run)}; r rewinds, text goes on, q quits")
            return
        self._console.print(pass_line(step, self._marks))
        print_candidates(self._console, step, self._top)
        self._console.print(measures(step, self._marks))

    def prompt(self, branches: Branches) -> tuple[str, str]:
        """What stands before the typed line, and what stands in it while it is empty."""
        step = branches.current.look()
        before = f"branch {branches.number} > " if len(branches.all) > 1 else "> "
        if step is None:
            return before, "? helps"
        return before, f"Enter takes {plain_piece(step.token, self._marks)}   ? helps"

    def inserted(self, steps: list[Step]) -> None:
        """What the model thought of tokens that it did not choose."""
        text = Text()
        for step in steps:
            text.append("   " if text else "")
            text.append_text(piece(step.token, self._marks, step_style(step)))
            text.append(f" {percent(chance(step.logprob))} #{step.rank:,}", style=QUIET)
        if steps:
            print_words(self._console, text)

    def flow(self, steps: Iterable[Step]) -> None:
        """Tokens as they come."""
        flow = Flow(self._console)
        for step in steps:
            flow.write(step.text, step_style(step))
        flow.end_line()

    def chain(self, step: Step | None) -> None:
        """The chain's table for the step that would come next."""
        if step is None:
            self._quiet("the run has ended: there is no next step to look at")
        else:
            print_chain(self._console, step, self._top)

    def list_branches(self, branches: Branches) -> None:
        """Every branch on a line, the current one marked."""
        for number, branch in enumerate(branches.all, 1):
            is_current = number == branches.number
            mark = self._marks.mark if is_current else " "
            origin = "the prompt" if branch.parent is None else f"from {branch.parent} at {branch.at}"
            head = f" {mark} {number:>2}  {origin:<14} {len(branch.run.ids):>5} tokens  "
            text = text_of([*branch.run.prompt_tokens(), *(step.token for step in branch.run.steps)])
            if (room := self._console.width - len(head)) < NARROWEST_TEXT:
                head, room = f"{head.rstrip()}\n       ", self._console.width - 7
            tail = fit_end(one_line(text, self._marks), room, self._marks)
            self._console.print(Text(head + tail, style=STRONG if is_current else ""), soft_wrap=True)

    def settings(self, run: Run) -> None:
        """The settings that are not at rest, and the dice's seed."""
        self._quiet(f"{settings_in_words(run.params)} {self._marks.dot} seed {run.seed}")

    def help(self) -> None:
        """All that can be typed."""
        print_pairs(self._console, HELP)

    def complain(self, sentence: str) -> None:
        """What could not be done."""
        self._console.print(Text(safe_line(sentence), style=BAD))

    def farewell(self, run: Run) -> None:
        """The text that came of it."""
        prompt = text_of(token for token in run.prompt_tokens() if not token.special)
        self._console.print()
        text = Text.assemble((safe(prompt), QUIET), safe(run.text))
        print_words(self._console, text)

    def _quiet(self, sentence: str) -> None:
        self._console.print(Text(safe_line(sentence), style=QUIET))
