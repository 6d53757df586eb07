"""Asks a person for a line: with editing and history on a terminal, plainly from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from byhand.cli.talk import is_terminal

# What may stand for a line so far: each is the whole line as it would be then.
Complete = Callable[[str], Iterator[str]]

YES = ("y", "yes")


class Asker:
    """Gives one line a call; EOFError when there are no more. `echo` writes piped lines into the transcript.

    On a terminal Ctrl-C clears the line; a second one, on an empty line, is the usual KeyboardInterrupt.
    """

    def __init__(self, echo: bool = True, complete: Complete | None = None) -> None:
        # What is asked is no data: where stdout goes to a file, the line is edited on stderr.
        self._screen = next((stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)), None)
        self.is_live = is_terminal(sys.stdin) and self._screen is not None
        self._echo = echo and not is_terminal(sys.stdin)
        self._complete = complete
        self._session: Any = None
        self._was_cleared = False

    def __call__(self, prompt: str, placeholder: str = "", default: str = "") -> str:
        if self.is_live:
            return self._ask(prompt, placeholder, default)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        line = line.removesuffix("\n").removesuffix("\r")
        if self._echo:
            print(f"{prompt}{line}", flush=True)
        return line

    def _ask(self, prompt: str, placeholder: str, default: str) -> str:
        from prompt_toolkit.application import get_app
        from prompt_toolkit.formatted_text import FormattedText
        from prompt_toolkit.utils import is_dumb_terminal

        self._session = self._session or self._opened()
        default = "" if is_dumb_terminal() else default  # there it would be taken without being seen
        bold, quiet = FormattedText([("bold", prompt)]), FormattedText([("dim", placeholder)])
        while True:
            try:
                # What stood in an empty line does not stay there.
                line = self._session.prompt(
                    bold, placeholder=lambda: FormattedText() if get_app().is_done else quiet, default=default
                )
            except KeyboardInterrupt:
                if self._was_cleared and not self._session.default_buffer.text:
                    raise
                self._was_cleared, default = True, ""
                print("(Ctrl-C again leaves)", file=self._screen)
            else:
                self._was_cleared = False
                return str(line)

    def confirm(self, question: str) -> bool:
        """Ask a person at the terminal for a yes; Ctrl-C and Ctrl-D are a no."""
        try:
            return str(self._opened().prompt(question)).strip().lower() in YES
        except (EOFError, KeyboardInterrupt):
            return False

    def _opened(self) -> Any:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import ColorDepth, create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        return PromptSession(
            color_depth=ColorDepth.MONOCHROME if os.environ.get("NO_COLOR") else None,
            output=None if self._screen is sys.stdout else create_output(self._screen),
            completer=None if self._complete is None else _completer(self._complete),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
        )


def _completer(complete: Complete) -> Any:
    """A function of the line as prompt_toolkit takes it."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Lines(Completer):
        def get_completions(self, document: Document, _: CompleteEvent) -> Iterator[Completion]:
            before = document.text_before_cursor
            for line in complete(before):
                yield Completion(line, start_position=-len(before), display=line[before.rfind(" ") + 1 :])

    return Lines()
