"""What every command does with its streams: data on stdout, talk on stderr, Ctrl-C as a wish."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from byhand.cli.options import model_name
from byhand.cli.views.safe import safe_line
from byhand.cli.waiting import Waiting
from byhand.collector import without_collector
from byhand.errors import BadRequest, ByhandError
from byhand.notes import Progress

if TYPE_CHECKING:
    from byhand.llm import LLM

INTERRUPTED = 130

_waiting = Waiting()
_COMMAND = re.compile(r"`[^`]{1,60}`")


def talk(said: str) -> None:
    """A sentence for people, on stderr; on a terminal its lines break between words."""
    width = _width(sys.stderr) if is_terminal(sys.stderr) else None
    if isinstance(said, Progress):
        _waiting.show(said, sys.stderr, width)
        return
    _waiting.leave(sys.stderr)
    text = f"byhand: {safe_line(said)}"
    print(text if width is None else wrapped(text, width), file=sys.stderr, flush=True)


def wrapped(text: str, width: int) -> str:
    """The text in lines that end between words: never inside a flag, nor inside a command in backticks if that fits."""
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _width(stream: TextIO) -> int:
    """The columns to write in; the last one stays free."""
    with suppress(OSError, ValueError):
        if not os.environ.get("COLUMNS"):
            return max(20, os.get_terminal_size(stream.fileno()).columns - 1)
    return max(20, shutil.get_terminal_size().columns - 1)


def sentence(error: BaseException) -> str:
    """What went wrong, for a person."""
    if isinstance(error, ByhandError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{place}{error.strerror.lower()}"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line} (unexpected; BYHAND_TRACEBACK=1 shows where)"


def is_terminal(stream: Any) -> bool:
    """Whether a person sits at the stream; a closed one has nobody."""
    return stream is not None and not stream.closed and bool(stream.isatty())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    in_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not in_unicode, allow_nan=False))


def open_model(arguments: argparse.Namespace) -> LLM:
    """The model that the command line names, with all its settings; what it has to say goes to stderr."""
    with without_collector():  # what is made here stays: no collection goes through it, now or later
        try:
            from byhand import LLM

            llm = LLM(
                model_name(arguments),
                dtype=arguments.dtype,
                device=arguments.device,
                context=arguments.context,
                cache_tokens=arguments.cache_tokens,
                threads=arguments.threads,
                revision=arguments.revision,
                cache_dtype=arguments.cache_dtype,
                quantize=arguments.quantize,
                kernels=arguments.kernels,
                prefill=arguments.prefill,
                note=talk,
            )
        finally:
            if not gc.get_freeze_count():  # once a process: what a second model finds may be garbage by now
                gc.freeze()
    for note in llm.checkpoint.notes:
        talk(note)
    return llm


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[LLM]:
    """The same, closed afterwards."""
    with open_model(arguments) as llm:
        yield llm


def check_target(path: str | None, flag: str) -> Path | None:
    """A file to be written later: refused now if it never can be."""
    if path is None:
        return None
    target = Path(path)
    if target.is_dir():
        raise BadRequest(f"{flag}: {path} is a folder", param=flag)
    if not target.parent.is_dir():
        raise BadRequest(f"{flag}: there is no folder {target.parent}", param=flag)
    return target


class Interrupt:
    """Turns the first Ctrl-C into a wish that is looked at between two tokens; the second one is the usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # Not the main thread: Ctrl-C does not arrive here.
            self._before = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
