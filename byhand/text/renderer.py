"""The other end of render_worker.py: starts it on first use, asks it, and sees it die when a template never ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import weakref
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from byhand import children
from byhand.errors import TemplateError

WORKER = Path(__file__).with_name("render_worker.py")
MEMORY = 1 << 29  # bytes that a template may take
LARGEST = 4_000_000  # characters: more than any context holds

# What a Python may need to start at all; the rest of the environment (keys, tokens) is none of a template's business.
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "LC_TIME", "SYSTEMROOT")


class Renderer:
    """Renders templates in a process of its own, for at most `seconds` each."""

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, template: str, values: dict[str, Any]) -> str:
        """The template's text, or TemplateError."""
        request = json.dumps({"template": template, "values": values, "seconds": self.seconds})
        with self._lock:
            reply = self._ask(request.encode() + b"\n")
        if "error" in reply:
            raise TemplateError(f"the chat template {reply['error']}", param="messages")
        return reply["text"]

    def close(self) -> None:
        """End the process; the next render starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> dict[str, str]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        except BaseException:
            # Interrupted half way: the answer to come would be taken for the next one's.
            self._end()
            raise
        if line.endswith(b"\n"):
            reply: dict[str, str] = json.loads(line)
            return reply
        return {"error": self._why_it_died()}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _start()
            weakref.finalize(self, _stop, self._process)
        return self._process

    def _why_it_died(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self._end()
        if code == -signal.SIGALRM:
            return f"ran for more than {self.seconds:g} s and was stopped"
        return f"brought the process that renders it to an end (exit code {code})"

    def _end(self) -> None:
        if self._process is not None:
            _stop(self._process)
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    command = children.python("-S", "-B", str(WORKER))
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            start_new_session=True,  # so that Ctrl-C, meant for the program, does not end it
        )
    except OSError as problem:
        raise TemplateError(f"no process could be started to render the chat template: {problem}") from problem
    assert process.stdin is not None
    process.stdin.write(json.dumps({"path": _jinja_path(), "memory": MEMORY, "largest": LARGEST}).encode() + b"\n")
    return process


def _jinja_path() -> list[str]:
    """The folders that hold Jinja and what it needs."""
    origins = [spec.origin for spec in map(find_spec, ("jinja2", "markupsafe")) if spec and spec.origin]
    return list(dict.fromkeys(str(Path(origin).parents[1]) for origin in origins))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # what was left to write has no reader any more
