"""A sitting at the stepper: what is typed is done, and what came of it is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from byhand.cli import words
from byhand.cli.ask import Asker
from byhand.cli.branches import Branch, Branches
from byhand.cli.options import parse_settings
from byhand.cli.talk import INTERRUPTED, Interrupt
from byhand.cli.views.stepping import StepperView
from byhand.cli.views.terminal import console_for
from byhand.errors import ByhandError
from byhand.types import Step


class Stepper:
    """Reads what is typed, does it, shows what came of it."""

    def __init__(self, branches: Branches, top: int) -> None:
        self.branches = branches
        self._ask = Asker()
        self._view = StepperView(console_for(sys.stdout), top)
        self._top = top

    def loop(self) -> int:
        """Until the person leaves."""
        self._view.show(self.branches)
        offered = ""
        while True:
            try:
                line, offered = self._ask(*self._view.prompt(self.branches), offered), ""
                action = words.parse(line)
                if isinstance(action, words.Quit):
                    break
                self._do(action)
            except EOFError:
                break
            except KeyboardInterrupt:
                self._view.farewell(self.branches.current.run)
                return INTERRUPTED
            except words.SpelledOut as error:
                self._view.complain(str(error))
                offered = error.meant
            except ByhandError as error:
                self._view.complain(str(error))
        self._view.farewell(self.branches.current.run)
        return 0

    def _do(self, action: words.Action) -> None:
        """Carry out one action and show what there is then."""
        view, branches = self._view, self.branches
        if isinstance(action, words.Help):
            view.help()
        elif isinstance(action, words.Chain):
            view.chain(branches.current.look())
        elif isinstance(action, words.Branches) and action.number is None:
            view.list_branches(branches)
        elif isinstance(action, words.Set) and not action.words:
            view.settings(branches.current.run)
        else:
            self._change(action)
            view.show(branches)

    def _change(self, action: words.Action) -> None:
        branches, branch = self.branches, self.branches.current
        match action:
            case words.Take():
                branch.take()
            case words.Choose(number):
                branch.choose(number, self._top)
            case words.Insert(text):
                self._view.inserted(branch.insert(text))
            case words.Rewind(count):
                branch.rewind(count)
            case words.Edit(position, token):
                self._view.inserted(branch.edit(position, token))
            case words.Set(typed):
                branch.set(parse_settings(typed))
            case words.Go(count):
                self._go(branch, count)
            case words.Fork(seed):
                branches.fork(seed)
            case words.Branches(number):
                branches.switch(number or branches.number)

    def _go(self, branch: Branch, count: int | None) -> None:
        """Run on, the tokens coloured as they come."""
        with Interrupt() as interrupt:
            self._view.flow(self._steps(branch, count, interrupt))

    def _steps(self, branch: Branch, count: int | None, interrupt: Interrupt) -> Iterator[Step]:
        taken = 0
        while not interrupt.asked and taken != count and branch.run.finish_reason is None:
            yield branch.take()
            taken += 1
        if not taken:
            branch.take()
