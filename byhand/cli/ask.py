"""Asks a person for a line: with editing and history on a terminal, plainly from a pipe."""

from __future__ import annotations

import os
import sys
from typing import Any

from byhand.cli.request import is_terminal


class Asker:
    """Gives one line a call; EOFError when there are no more. `echo` writes piped lines into the transcript."""

    def __init__(self, echo: bool = True) -> None:
        self.is_live = is_terminal(sys.stdin) and is_terminal(sys.stdout)
        self._echo = echo and not is_terminal(sys.stdin)
        self._session: Any = None

    def __call__(self, prompt: str, placeholder: str = "") -> str:
        if self.is_live:
            return self._ask(prompt, placeholder)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        line = line.removesuffix("\n").removesuffix("\r")
        if self._echo:
            print(f"{prompt}{line}", flush=True)
        return line

    def _ask(self, prompt: str, placeholder: str) -> str:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import FormattedText
        from prompt_toolkit.output import ColorDepth

        if self._session is None:
            depth = ColorDepth.MONOCHROME if os.environ.get("NO_COLOR") else None
            self._session = PromptSession(color_depth=depth)
        quiet = FormattedText([("fg:ansibrightblack", placeholder)])
        return str(self._session.prompt(FormattedText([("bold", prompt)]), placeholder=quiet))
