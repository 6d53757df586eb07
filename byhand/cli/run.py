"""`byhand run`: continue a prompt, token by token."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from byhand.cli.options import Commands, UsageError, add_model_options, add_sampling_options, given_sampling
from byhand.cli.request import Prompt, add_prompt_options, prompt_from, sampling_params
from byhand.cli.talk import INTERRUPTED, Interrupt, check_target, is_terminal, opened, print_json
from byhand.cli.views.safe import safe
from byhand.types import Step

if TYPE_CHECKING:
    from byhand.llm import LLM
    from byhand.run import Run


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "run",
        help="continue a prompt, token by token",
        usage="byhand run [PROMPT|-] [options]",
        description="Continue a prompt. The continuation streams to stdout.",
    )
    add_prompt_options(parser)
    group = parser.add_argument_group("what is shown and kept")
    group.add_argument("--watch", action="store_true", help="colour each token by its probability, end with the rates")
    group.add_argument("--steps", action="store_true", help="print a line for each step instead of the text")
    group.add_argument("--json", action="store_true", help="print one JSON object at the end instead of the text")
    group.add_argument("--record", metavar="FILE", help="write the run's record, for `byhand replay`")
    add_sampling_options(parser)
    add_model_options(parser)
    parser.set_defaults(command=command)


class View(Protocol):
    """Shows steps as they come."""

    def step(self, step: Step) -> None:
        """Show one step."""

    def end(self) -> None:
        """Close what is open."""


class PlainText:
    """The continuation as it is; a terminal gets control characters escaped."""

    def __init__(self, prompt: str) -> None:
        self._is_terminal = is_terminal(sys.stdout)
        # The prompt is no data: it goes where the talk goes, and only if both meet on the screen.
        if self._is_terminal and is_terminal(sys.stderr):
            print(safe(prompt), end="", file=sys.stderr, flush=True)

    def step(self, step: Step) -> None:
        """Write the text that became safe to show."""
        sys.stdout.write(safe(step.text) if self._is_terminal else step.text)
        sys.stdout.flush()

    def end(self) -> None:
        """Close the line."""
        print(flush=True)


class Nothing:
    """For --json, which prints at the end."""

    def step(self, step: Step) -> None:
        """Wait."""

    def end(self) -> None:
        """Wait."""


def command(arguments: argparse.Namespace) -> int:
    """Run a prompt to its end."""
    if arguments.steps and arguments.json and not arguments.watch:
        raise UsageError("--json prints every step already", hint="leave out --steps")
    if arguments.watch + arguments.steps + arguments.json > 1:
        raise UsageError("--watch, --steps and --json each fill stdout", hint="choose one of them")
    target = check_target(arguments.record, "--record")
    given = given_sampling(arguments)
    prompt = prompt_from(arguments, "run")
    with opened(arguments) as llm:
        run = llm.start(prompt.for_model(llm), sampling_params(llm, arguments, given))
        with Interrupt() as interrupt:
            _follow(run, _view(arguments, prompt, llm), interrupt, target)
        if arguments.json:
            print_json(run.to_dict())
        else:
            _close(run, arguments.watch)
    return INTERRUPTED if interrupt.asked else 0


def _follow(run: Run, view: View, interrupt: Interrupt, target: Path | None) -> None:
    """Show every step; whatever happens, the record is written and the line closed."""
    try:
        for step in until(run, interrupt):
            view.step(step)
    finally:
        if run.steps or run.finish_reason != "error":
            view.end()
        if target is not None:
            run.record().save(target)


def until(run: Run, interrupt: Interrupt, count: int | None = None) -> Iterator[Step]:
    """The run's steps, up to `count`; Ctrl-C ends them between two tokens."""
    taken = 0
    while run.finish_reason is None and taken != count:
        if interrupt.asked:
            run.stop()
            return
        yield run.step()
        taken += 1


def _view(arguments: argparse.Namespace, prompt: Prompt, llm: LLM) -> View:
    if arguments.json:
        return Nothing()
    if not arguments.watch and not arguments.steps:
        return PlainText(prompt.shown(llm))
    from byhand.cli.views.streaming import StepLines, Watch
    from byhand.cli.views.terminal import console_for

    console = console_for(sys.stdout)
    return StepLines(console) if arguments.steps else Watch(console, prompt.shown(llm))


def _close(run: Run, watched: bool) -> None:
    """The rates and the reason, for people: always after --watch, else on a terminal only."""
    if not watched and not is_terminal(sys.stderr):
        return
    from byhand.cli.views.streaming import closing
    from byhand.cli.views.terminal import console_for, legend

    console = console_for(sys.stderr)
    if console.is_terminal:
        console.print()
    if watched and console.is_terminal and not console.no_color:
        console.print(legend())
    console.print(closing(console, run))
