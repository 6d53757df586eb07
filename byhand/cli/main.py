"""`byhand`: the command line. Parses, hands over to a command, and turns every failure into a sentence and a code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress

from byhand import __version__
from byhand.cli import bench, chat, check, convert, look, models, quantize, replay, run, serve, stepper
from byhand.cli.options import Parser
from byhand.cli.parsing import arguments_of
from byhand.cli.talk import INTERRUPTED, sentence, talk

DONE, FAILED, BAD_INPUT, PIPE_CLOSED = 0, 1, 2, 141

DESCRIPTION = """LLM inference by hand: every step of autoregressive decoding in the open.
Without --model, every command works on the small model that ships with byhand."""

EPILOG = """Data goes to stdout, talk to stderr.
Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="byhand", usage="byhand COMMAND [options]", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"byhand {__version__}")
    commands = parser.add_subparsers(
        title="commands", prog="byhand", metavar="COMMAND", dest="command_name", parser_class=Parser
    )
    for room in (run, look, stepper, chat, check, replay, serve, models, convert, quantize, bench):
        room.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    _steady(sys.stdout)
    _steady(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _mention
            code = _dispatch(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence: a sentence, never a traceback
        return _complain(error)
    return code


def _dispatch(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        arguments = arguments_of(parser, sys.argv[1:] if argv is None else argv)
    except SystemExit as ending:  # --help and --version
        return int(ending.code or 0)
    if arguments.command_name is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    code: int = arguments.command(arguments)
    return code


def _complain(error: Exception) -> int:
    if os.environ.get("BYHAND_TRACEBACK"):
        traceback.print_exception(error)
    talk(sentence(error))
    return BAD_INPUT


def _mention(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning for the user is talk; one for programmers is not for here."""
    if issubclass(category, UserWarning):
        talk(str(message))


def _steady(stream: object) -> None:
    """Let a stream of any encoding take any text: what it cannot write comes out escaped."""
    with suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]


def _drop_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit finds no closed pipe to complain about."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
