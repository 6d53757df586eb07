"""A conversation as it is shown: answers on stdout, everything around them on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from byhand.cli.views.safe import safe, safe_line
from byhand.cli.views.streaming import Flow, closing
from byhand.cli.views.strip import step_style
from byhand.cli.views.terminal import QUIET, console_for, print_pairs, print_words
from byhand.types import Step

if TYPE_CHECKING:
    from byhand.run import Run


class ChatView:
    """Draws a chat. Piped, stdout holds the answers alone."""

    def __init__(self, watch: bool) -> None:
        self._answers = console_for(sys.stdout)
        self._talk = console_for(sys.stderr)
        self._watch = watch
        self._flow = Flow(self._answers)

    def greet(self, model: str, is_live: bool) -> None:
        """The first line, for a person."""
        if is_live:
            self.note(f"{model}: /help lists the commands, Ctrl-D leaves")

    def step(self, step: Step) -> None:
        """One token of the answer."""
        self._flow.write(step.text, step_style(step) if self._watch else Style())

    def end(self, run: Run) -> None:
        """Close the answer; say how fast it came and how much of the conversation was not computed again."""
        self._flow.end_line()
        if not self._talk.is_terminal:
            return
        cached = run.usage.cached_tokens
        reused = [f"{cached:,} of {run.prompt_length:,} prompt tokens reused"] if cached else []
        self._talk.print(closing(self._talk, run, *reused))
        self._talk.print()

    def note(self, sentence: str) -> None:
        """A line that is no part of the conversation."""
        print_words(self._talk, Text(safe_line(sentence), style=QUIET))

    def help(self, commands: Sequence[tuple[str, str]]) -> None:
        """All commands."""
        print_pairs(self._talk, commands)

    def history(self, messages: Sequence[dict[str, str]]) -> None:
        """All that was said."""
        for message in messages:
            print_words(self._talk, Text.assemble((f"{message['role']}: ", QUIET), safe(message["content"])))
