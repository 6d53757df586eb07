"""What is typed at the stepper, as an action. Pure text: no model, no terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from byhand.cli.options import UsageError


@dataclass(frozen=True, slots=True)
class Take:
    """Enter: the token that the chain chooses."""


@dataclass(frozen=True, slots=True)
class Choose:
    """A number: that candidate."""

    number: int


@dataclass(frozen=True, slots=True)
class Insert:
    """Any other text: its tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Rewind:
    """`r [n]`: take back."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Edit:
    """`e I TEXT`: another token at place I."""

    position: int
    token: str


@dataclass(frozen=True, slots=True)
class Fork:
    """`f [SEED]`: a second run from here."""

    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Branches:
    """`b`: list them; `b N`: go to that one."""

    number: int | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """`p`: the chain's table."""


@dataclass(frozen=True, slots=True)
class Set:
    """`s name=value …`: other settings; alone, what they are."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Go:
    """`g [n]`: so many tokens more, or to the end."""

    count: int | None = None


@dataclass(frozen=True, slots=True)
class Help:
    """`?`."""


@dataclass(frozen=True, slots=True)
class Quit:
    """`q`."""


Action = Take | Choose | Insert | Rewind | Edit | Fork | Branches | Chain | Set | Go | Help | Quit

HELP = (
    ("Enter", "take the token marked by the arrow"),
    ("3", "take candidate 3 instead"),
    ("some text", "insert it as it is; in quotes it is never a command, nor a command's name"),
    ("r [N]", "rewind: take back the last token, or N"),
    ('e I "TEXT"', "edit: put one token at place I and let go of what came after"),
    ("f [SEED]", "fork: a second branch from here; with a seed its dice differ"),
    ("b [N]", "list the branches, or go to branch N"),
    ("p", "what every stage of the chain did to the candidates"),
    ("s [NAME=VALUE]", "show the settings, or change some: s temperature=0.8 top_k=5"),
    ("g [N]", "go on: N tokens, or to the end (Ctrl-C stops)"),
    ("? q", "this page; quit"),
)


def _number(rest: str, what: str, least: int | None = 1) -> int | None:
    if not rest.strip():
        return None
    if not re.fullmatch(r"\s*-?\d{1,18}\s*", rest) or (least is not None and int(rest) < least):
        raise UsageError(
            f"{what} takes {'a number' if least is None else f'a number of at least {least}'}, not {rest.strip()!r}",
            hint='to insert such a text, put it in quotes: "..."',
        )
    return int(rest)


def _edit(rest: str) -> Edit:
    position, _, token = rest.partition(" ")
    if not re.fullmatch(r"\d{1,18}", position) or not token:
        raise UsageError(
            'e takes a place and a token: e 7 " blue"', hint='to insert such a text, put it in quotes: "..."'
        )
    return Edit(int(position), unquoted(token))


def _bare(action: Action, name: str) -> Callable[[str], Action]:
    def make(rest: str) -> Action:
        if rest.strip():
            raise UsageError(f"{name} takes nothing after it", hint='to insert such a text, put it in quotes: "..."')
        return action

    return make


_COMMANDS: dict[str, Callable[[str], Action]] = {
    "r": lambda rest: Rewind(_number(rest, "r") or 1),
    "e": _edit,
    "f": lambda rest: Fork(_number(rest, "f", least=None)),
    "b": lambda rest: Branches(_number(rest, "b")),
    "p": _bare(Chain(), "p"),
    "s": lambda rest: Set(tuple(rest.split())),
    "g": lambda rest: Go(_number(rest, "g")),
    "?": _bare(Help(), "?"),
    "q": _bare(Quit(), "q"),
}


def unquoted(text: str) -> str:
    r"""The text inside quotes, where `\n` and its like mean what they mean in JSON; other text as it is."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


class SpelledOut(UsageError):
    """A command written as a word, where its letter is the command: `meant` is the line that does it."""

    def __init__(self, line: str, meant: str) -> None:
        text = json.dumps(line, ensure_ascii=False)
        super().__init__(f"nothing was inserted: as a command it is {meant or 'Enter alone'}, as a text {text}")
        self.meant = meant


_SPELLED = {
    **dict.fromkeys(("rewind", "back", "undo"), "r"),
    "edit": "e",
    "fork": "f",
    **dict.fromkeys(("branch", "branches"), "b"),
    "chain": "p",
    **dict.fromkeys(("set", "settings"), "s"),
    **dict.fromkeys(("go", "continue"), "g"),
    **dict.fromkeys(("help", "h"), "?"),
    **dict.fromkeys(("quit", "exit"), "q"),
    **dict.fromkeys(("take", "next"), ""),
}


def _spelled_out(line: str) -> str | None:
    """The line that was meant, where a command's word begins this one and the rest is what that command takes."""
    word, _, rest = line.rstrip().partition(" ")
    name = word.lower().strip("/:()")
    letter = _SPELLED.get(name, name if name != word and name in _COMMANDS else None)
    if letter is None or (rest and (not letter or (letter == "s" and "=" not in rest))):
        return None
    try:
        _COMMANDS.get(letter, str)(rest)
    except UsageError:
        if rest and not (letter == "e" and rest[0].isdigit()):
            return None  # "go home" is a text
    return f"{letter} {rest}".rstrip()


def parse(line: str) -> Action:
    """One typed line as an action."""
    if not line:
        return Take()
    if re.fullmatch(r"\d{1,9}", line):
        return Choose(int(line))
    head, _, rest = line.partition(" ")
    if head in _COMMANDS:
        return _COMMANDS[head](rest)
    if (meant := _spelled_out(line)) is not None:
        raise SpelledOut(line, meant)
    return Insert(unquoted(line))
