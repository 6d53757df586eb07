"""`byhand step`: decoding by hand in the terminal. Take, choose, insert, rewind, edit, fork."""

from __future__ import annotations

import argparse
import sys

from byhand.cli.options import (
    Commands,
    UsageError,
    add_model_options,
    add_sampling_options,
    given_sampling,
    integer,
)
from byhand.cli.request import add_prompt_options, prompt_from, sampling_params
from byhand.cli.talk import check_target, is_terminal, opened

TOP = 8


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "step",
        help="decode by hand: take, choose, insert, rewind, fork",
        usage="byhand step PROMPT [options]",
        description="Step through a continuation by hand. At every token: Enter takes the best, a number another "
        "candidate, text is inserted, r rewinds, f forks, b lists branches, p shows the chain, ? helps.",
    )
    add_prompt_options(parser)
    parser.add_argument("--top", type=integer, default=TOP, metavar="K", help=f"candidates to show (default {TOP})")
    parser.add_argument("--record", metavar="FILE", help="write the current branch's record at the end")
    add_sampling_options(parser, max_tokens=None)
    add_model_options(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Open the model and step."""
    if not 1 <= arguments.top <= 100:
        raise UsageError(f"--top is {arguments.top}; it must be at least 1 and at most 100")
    target = check_target(arguments.record, "--record")
    given = given_sampling(arguments, max_tokens=None)
    given["logprobs"] = max(given.get("logprobs") or 10, arguments.top)
    if arguments.prompt == "-" or (arguments.prompt is None and arguments.ids is None and not is_terminal(sys.stdin)):
        raise UsageError("`byhand step` takes its commands from stdin", hint="give the prompt as an argument")
    prompt = prompt_from(arguments, "step")
    with opened(arguments) as llm:
        run = llm.start(prompt.for_model(llm), sampling_params(llm, arguments, given, max_tokens=None))
        from byhand.cli.branches import Branch, Branches
        from byhand.cli.session import Stepper

        stepper = Stepper(Branches([Branch(run)]), arguments.top)
        try:
            return stepper.loop()
        finally:
            if target is not None:
                stepper.branches.current.run.record().save(target)
