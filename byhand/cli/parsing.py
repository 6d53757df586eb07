"""A command line as its arguments. What is nearly right is understood, or answered by what was probably meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from byhand.cli.options import UsageError, did_you_mean, whole_name

# What other tools call it.
_COMMANDS_ELSEWHERE = {
    **dict.fromkeys(("generate", "complete", "completion", "continue", "infer", "predict", "prompt"), "run"),
    **dict.fromkeys(("encode", "tokens", "tokenise"), "tokenize"),
    **dict.fromkeys(("stepper", "debug"), "step"),
    **dict.fromkeys(("talk", "repl"), "chat"),
    **dict.fromkeys(("check", "compare"), "verify"),
    **dict.fromkeys(("server", "api", "start"), "serve"),
    **dict.fromkeys(("list", "ls", "show", "info"), "models"),
    "export": "convert",
    "benchmark": "bench",
    "version": "--version",
}
_FLAGS_ELSEWHERE = dict.fromkeys(("-n", "--n-predict", "--num-predict"), "--max-tokens")
_NUMBER = re.compile(r"-\d*\.?\d+")
_LONGEST_EXAMPLE = 200
UNQUOTED = "a text of several words needs quotation marks"


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command's own parser, by its name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: command for group in groups for name, command in group.choices.items()}


def arguments_of(parser: argparse.ArgumentParser, typed: Sequence[str]) -> argparse.Namespace:
    """The arguments; UsageError says in one sentence what is wrong, and what was probably meant."""
    words, commands = list(typed), commands_of(parser)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    name = words[0] if words and not words[0].startswith("-") else None
    if name is not None and name not in commands:
        raise _no_command(words, list(commands))
    asked = parser if name is None else commands[name]
    words = [*words[:1], *_whole_flags(asked, words[1:])] if name else list(_whole_flags(asked, words))
    arguments, left = parser.parse_known_args(words)
    if left:
        raise _left_over(asked, words, arguments, left)
    return arguments


def _no_command(words: Sequence[str], commands: Sequence[str]) -> UsageError:
    if " " in words[0]:
        return UsageError("a text stands behind a command", hint=f"such as {example('byhand run', words)}")
    hint = did_you_mean(words[0], [*commands, "help"], _COMMANDS_ELSEWHERE, "`byhand {}`")
    return UsageError(f"there is no command {words[0]!r}", hint=hint or "`byhand --help` lists them")


# Flags.


def _whole_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """The words, each long flag written out whole."""
    names = [name for name in parser._option_string_actions if name.startswith("--")]
    for place, word in enumerate(words):
        if word == "--":
            yield from words[place:]
            return
        name, separator, value = word.partition("=")
        is_flag = name.startswith("--") and " " not in name  # argparse takes one with a space for a text
        yield _whole_flag(parser, name, names) + separator + value if is_flag else word


def _whole_flag(parser: argparse.ArgumentParser, name: str, names: Sequence[str]) -> str:
    # At the top there are no flags but --help and --version.
    where = f"it stands behind a command, as in `byhand run {name}`" if commands_of(parser) else _help(parser)
    return whole_name(name, names, f"`{parser.prog}` has no flag {name}", where, _FLAGS_ELSEWHERE)


def _help(parser: argparse.ArgumentParser) -> str:
    return f"`{parser.prog} --help` lists them"


# Words that nobody asked for.


def _left_over(
    parser: argparse.ArgumentParser, words: Sequence[str], arguments: argparse.Namespace, left: Sequence[str]
) -> UsageError:
    """What to say of words that no argument is for: of a text without quotation marks, most of the time."""
    flag = next((word for word in left if word.startswith("-") and not _NUMBER.fullmatch(word)), None)
    text = getattr(arguments, "prompt", getattr(arguments, "text", None))
    takes_texts = any(not action.option_strings for action in parser._actions)
    if flag is not None:
        behind = "; a text that begins with - stands behind --" if takes_texts else ""
        hint = did_you_mean(flag, (), _FLAGS_ELSEWHERE) or _help(parser) + behind
        return UsageError(f"`{parser.prog}` has no flag {flag}", hint=hint)
    if text is not None and len(left) == 1 and _is_model(text):
        hint = example(f"{parser.prog} --model {text}", left)
        return UsageError(f"`{parser.prog}` takes one text, and the model by its flag", hint=hint)
    if text is not None:
        hint = example(parser.prog, [" ".join([text, *left])], _around(words, [text, *left]))
        return UsageError(UNQUOTED, hint=hint)
    if not takes_texts and hasattr(arguments, "model"):
        hint = f"a model is named so: {example(f'{parser.prog} --model', left[:1])}"
        return UsageError(f"`{parser.prog}` takes flags alone, not {left[0]!r}", hint=hint)
    return UsageError(f"`{parser.prog}` has no use for {left[0]!r}", hint=f"usage: {parser.usage}")


def _is_model(text: str) -> bool:
    """Whether a text looks like what --model takes."""
    is_file = text.endswith(".safetensors") or (Path(text) / "config.json").is_file()
    return is_file or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", text))


def _around(words: Sequence[str], texts: Sequence[str]) -> Sequence[str]:
    """The flags before and after texts that stand side by side; none where they are scattered."""
    size = len(texts)
    for place in range(1, len(words) - size + 1):
        if list(words[place : place + size]) == list(texts):
            return [word for word in (*words[1:place], *words[place + size :]) if word != "--"]
    return ()


def example(command: str, texts: Sequence[str], flags: Sequence[str] = ()) -> str:
    """A command with its texts as they are typed: `byhand run "Once upon a time" --watch`."""
    from shlex import quote

    typed = [f'"{text}"' if " " in text and not re.search(r'["\\$`!]', text) else quote(text) for text in texts]
    line = " ".join([command, *typed, *map(quote, flags)])
    return f"`{line}`" if len(line) <= _LONGEST_EXAMPLE else f"{line[:_LONGEST_EXAMPLE]} ..."
