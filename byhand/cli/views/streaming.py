"""Tokens as they come: coloured text that wraps between words, one line a step, and the closing line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.style import Style
from rich.text import Text

from byhand.cli.views.pieces import columns, fit, piece, quoted
from byhand.cli.views.safe import safe, safe_line
from byhand.cli.views.strip import step_style
from byhand.cli.views.terminal import QUIET, chance, glyphs, percent, probability_style
from byhand.sampling.params import SamplingParams
from byhand.types import FinishReason, Step

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


class Flow:
    """Styled text onto a terminal, piece by piece; a word that does not fit moves to the next line whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._can_move = console.is_terminal and not console.is_dumb_terminal
        self._column = 0
        self._word: list[tuple[str, Style]] = []  # what the current word is made of so far

    def write(self, text: str, style: Style) -> None:
        """Show a piece of text."""
        text = safe(text).expandtabs(4)
        if not self._can_move:
            self._put(text, style)
            return
        for part in _PARTS.findall(text):
            if part.isspace():
                self._write_space(part, style)
                continue
            # Between wide characters a line may break anywhere.
            for each in part if columns(part) != len(part) else [part]:
                self._write_part(each, style, is_wide=columns(each) > len(each))

    def end_line(self) -> None:
        """Go to the start of a line, if not there already."""
        if self._column or not self._can_move:
            self._put("\n", Style())
        self._column, self._word = 0, []

    @property
    def _width(self) -> int:
        return self._console.width - 1  # a cursor beyond the last column cannot be moved back by counting

    def _put(self, text: str, style: Style) -> None:
        self._console.print(Text(text, style=style), end="", soft_wrap=True)

    def _write_space(self, text: str, style: Style) -> None:
        self._word = []
        if text == "\n":
            self._put(text, style)
            self._column = 0
        elif self._column + len(text) < self._width:
            self._put(text, style)
            self._column += len(text)
        else:
            self._put("\n", style)
            self._column = 0

    def _write_part(self, text: str, style: Style, is_wide: bool) -> None:
        if is_wide:
            self._word = []
        size = columns(text)
        before = sum(columns(part) for part, _ in self._word)
        if self._column + size > self._width and before + size <= self._width and self._column:
            self._move_word(before)
        self._put(text, style)
        self._column = self._column + size if self._column + size <= self._width else size
        self._word = [] if is_wide else [*self._word, (text, style)]

    def _move_word(self, size: int) -> None:
        """Take the word begun on this line down to the next one."""
        if size:
            self._console.control(Control((ControlType.CURSOR_BACKWARD, size), (ControlType.ERASE_IN_LINE, 0)))
        self._put("\n", Style())
        for part, style in self._word:
            self._put(part, style)
        self._column = size


class Watch:
    """The continuation, each token coloured by its probability; on a terminal the prompt stands before it."""

    def __init__(self, console: Console, prompt: str) -> None:
        self._flow = Flow(console)
        if console.is_terminal:
            self._flow.write(prompt, QUIET)

    def step(self, step: Step) -> None:
        """Show one token."""
        self._flow.write(step.text, step_style(step))

    def end(self) -> None:
        """Close the last line."""
        self._flow.end_line()


class StepLines:
    """One line a step: position, id, piece, probability, entropy, and the runner-up where there is room for it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._marks = glyphs(console)
        self._has_other = console.width >= 61
        self._width = max(7, min(24, console.width - (54 if self._has_other else 33)))
        header = f"{'pos':>5}  {'id':>6}  {'piece'.ljust(self._width)}  {'prob':>6}  {'entropy':>7}"
        console.print(Text(header + ("  runner-up" if self._has_other else ""), style=QUIET), soft_wrap=True)

    def step(self, step: Step) -> None:
        """Show one token."""
        probability = chance(step.logprob)
        line = Text.assemble(
            (f"{step.position:>5}", QUIET),
            (f"  {step.token.id:>6}  ", QUIET),
            fit(piece(step.token, self._marks, step_style(step)), self._width, self._marks),
            (f"  {percent(probability):>6}", probability_style(probability)),
            f"  {step.entropy:>7.2f}",
        )
        other = next((each for each in step.top if each.token.id != step.token.id), None)
        if self._has_other and other is not None:
            line.append("  ").append_text(fit(piece(other.token, self._marks), 12, self._marks))
            line.append(f" {percent(chance(other.logprob)):>6}", style=QUIET)
        self._console.print(line, soft_wrap=True)

    def end(self) -> None:
        """Nothing is left open."""


def rate(steps: Sequence[Step], word: str) -> str:
    """ "prefill 8 tokens, 2,100/s": tokens computed and how fast."""
    count = sum(step.positions_computed for step in steps)
    seconds = sum(step.seconds for step in steps)
    tokens = "1 token" if count == 1 else f"{count:,} tokens"
    return f"{word} {tokens}, {count / seconds:,.0f}/s" if seconds else f"{word} {tokens}"


class Ended(Protocol):
    """What a Run and a Record both tell about themselves."""

    @property
    def steps(self) -> Sequence[Step]:
        """One for each token after the prompt."""

    @property
    def params(self) -> SamplingParams:
        """The settings at the end."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended."""

    @property
    def stop_reason(self) -> int | str | None:
        """The id or the string that stopped it."""


def ending(run: Ended) -> str:
    """Why a run ended, in words."""
    reason, limit = run.finish_reason, run.params.max_tokens
    if reason == FinishReason.STOP and isinstance(run.stop_reason, str):
        return f"stopped at {quoted(run.stop_reason)}"
    if reason == FinishReason.STOP:
        return f"ended by {safe_line(run.steps[-1].token.text)}" if run.steps else "ended"
    if reason == FinishReason.LENGTH:
        return f"stopped at max_tokens {limit}" if limit == len(run.steps) else "the context is full"
    return "interrupted" if reason == FinishReason.ABORT else str(reason or "paused")


def closing(console: Console, run: Ended, *more: str) -> Text:
    """Prefill and decode rates, why the run ended, and what else there is to say."""
    parts = [
        rate(some, word)
        for word in ("prefill", "decode")
        if (some := [step for step in run.steps if step.phase == word and step.positions_computed])
    ]
    return Text(f" {glyphs(console).dot} ".join([*parts, ending(run), *more]), style=QUIET)
