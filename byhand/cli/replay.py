"""`byhand replay`: step through a recorded run with no model, or check it against one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from byhand.cli.ask import Asker
from byhand.cli.options import Commands, UsageError, add_model_options
from byhand.cli.talk import INTERRUPTED, opened, print_json, talk
from byhand.errors import ByhandError

if TYPE_CHECKING:
    from byhand.record import Record

HELP = (
    ("Enter", "the next step"),
    ("b", "the step before"),
    ("12", "go to step 12"),
    ("p", "what every stage of the chain did to the candidates"),
    ("a", "all steps from here, one line each"),
    ("? q", "this page; quit"),
)

# No text is ever asked for here, so a command's name is that command.
WORDS = {"next": "", "back": "b", "all": "a", "chain": "p", "help": "?", "quit": "q", "exit": "q"}


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "replay",
        help="step through a recorded run with no model, or check it",
        usage="byhand replay FILE [--all | --json | --model M]",
        description="Step through the record of a run; no model is loaded. With --model, run it again teacher-forced "
        "and report every number that differs (exit code 1). BYHAND_MODEL does not count here; the embedded "
        "model's name is byhand-tiny.",
    )
    parser.add_argument("file", metavar="FILE", help="written by `byhand run --record FILE` or Run.record().save()")
    parser.add_argument("--all", action="store_true", help="print every step at once")
    parser.add_argument("--json", action="store_true", help="print the record, or what differs, as one JSON object")
    add_model_options(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Replay or check."""
    from byhand.record import Record

    record = Record.load(arguments.file)
    if arguments.model is not None:
        return _check(record, arguments)
    if arguments.json:
        print_json(record.to_json())
        return 0
    player = Player(record)
    if arguments.all:
        player.all()
        return 0
    return player.loop()


def _check(record: Record, arguments: argparse.Namespace) -> int:
    from byhand.replay import replay

    with opened(arguments) as llm:
        if llm.identity.digest != record.model.digest:
            talk(f"the record was made by another model: {record.model.name}, {record.model.digest}")
        if names := sorted({name for names in record.missing for name in names}):
            talk(
                f"the run had stages of its user's ({', '.join(names)}), which a record keeps by name only: "
                "of their steps only the raw numbers are compared"
            )
        differences = replay(record, llm)
        name = llm.name
    if arguments.json:
        found = [{"index": d.index, "field": d.field, "recorded": d.recorded, "now": d.now} for d in differences]
        print_json({"model": name, "steps": len(record.steps), "equal": not found, "differences": found})
    else:
        from byhand.cli.views.checking import print_differences
        from byhand.cli.views.terminal import console_for

        print_differences(console_for(sys.stdout), differences, len(record.steps))
    return 1 if differences else 0


class Player:
    """A place in a record, and what is typed to move it."""

    def __init__(self, record: Record) -> None:
        from byhand.cli.views.replaying import RecordView
        from byhand.cli.views.terminal import console_for

        self.record = record
        self._view = RecordView(console_for(sys.stdout), record)
        self._ask = Asker()
        self._place = -1  # the step that is shown; -1 is before the first

    def all(self) -> None:
        """Everything at once."""
        self._view.header()
        self._view.lines(0)
        self._view.ending()

    def loop(self) -> int:
        """Until the last step was seen, or the person leaves."""
        self._view.header()
        try:
            while True:
                line = self._ask(self._view.prompt(self._place), "Enter goes on, ? helps").strip()
                line = WORDS.get(line.lower(), line)
                if line == "q":
                    return 0
                try:
                    if self._is_over(line):
                        return 0
                except ByhandError as error:
                    self._view.complain(str(error))
        except EOFError:
            return 0
        except KeyboardInterrupt:
            return INTERRUPTED

    def _is_over(self, line: str) -> bool:
        """Do what was typed; True when there is no more to see."""
        if line == "p":
            self._view.chain(self._place)
        elif line == "?":
            self._view.help(HELP)
        elif line == "a":
            self._view.lines(self._place + 1)
            self._place = len(self.record.steps)
        else:
            self._place = self._target(line)
            self._view.show(self._place)
        if self._place < len(self.record.steps):
            return False
        self._view.ending()
        return True

    def _target(self, line: str) -> int:
        """The step that a typed line leads to."""
        if line == "":
            return self._place + 1
        if line == "b":
            return max(0, self._place - 1)
        last = len(self.record.steps) - 1
        if not line.isascii() or not line.isdigit() or int(line[:9]) > last:
            raise UsageError(f"{line!r} leads nowhere", hint=f"Enter, b, p, a, q, or a step from 0 to {last}")
        return int(line)
