"""Command lines in process: from a pipe, and as somebody types them at a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from byhand.cli.main import main


class Cli:
    """Runs command lines on the tiny model and keeps what they printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.out = self.err = ""
        monkeypatch.setenv("BYHAND_MODEL", str(folder))

    def __call__(self, *argv: str, stdin: str | bytes = "") -> int:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = main(argv)
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *argv: str, code: int = 0) -> Any:
        assert self(*argv, "--json") == code
        return json.loads(self.out)

    def typed(self, *argv: str, keys: str) -> int:
        """The same by a person at a terminal, who has typed all the keys in advance."""
        from prompt_toolkit.application import create_app_session
        from prompt_toolkit.input import create_pipe_input
        from prompt_toolkit.output import DummyOutput

        with (
            create_pipe_input() as keyboard,
            create_app_session(keyboard, DummyOutput()),
            self._monkeypatch.context() as patch,
        ):
            for room in ("ask", "request", "stepper"):
                patch.setattr(f"byhand.cli.{room}.is_terminal", lambda stream: True)
            keyboard.send_text(keys)
            return self(*argv)
