"""Flags that several commands share. Those of the sampling come from SamplingParams' fields. No torch here."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from byhand.errors import BadRequest
from byhand.formats import float_formats, quantized_formats
from byhand.sampling.fields import FieldInfo
from byhand.sampling.params import SamplingParams, fields_table

MAX_TOKENS = 256
DTYPES = ("auto", *float_formats())
CACHE_DTYPES = ("auto", "float32", "bfloat16")
QUANTIZED = quantized_formats()
KERNELS = ("auto", "cpu", "reference")
PREFILLS = ("exact", "fast")
NONE = "none"
WIDEST_HELP = 96

# One command runs one continuation, and functions cannot be typed.
_NOT_TYPED = ("n", "stages")

_METAVARS = {
    "number": "X",
    "integer": "N",
    "ids": "ID[,ID]",
    "text": "TEXT",
    "texts": "TEXT",
    "schema": "JSON",
    "biases": "ID=BIAS",
}


class UsageError(BadRequest):
    """A command line that cannot be understood."""


class HelpFormatter(argparse.HelpFormatter):
    """argparse's own, but the same on every Python: `-m, --model MODEL`, and never too wide to read."""

    def __init__(self, prog: str, **_: Any) -> None:
        columns = shutil.get_terminal_size((WIDEST_HELP + 2, 24)).columns
        super().__init__(prog, max_help_position=32, width=max(40, min(columns - 2, WIDEST_HELP)))

    # A flag is not broken at its hyphens.

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence; what is nearly right is byhand.cli.parsing's to understand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **options)
        self.color = False  # Python 3.14 would paint the help, and the docs' copy of it would differ

    def error(self, message: str) -> Any:
        raise UsageError(message.replace("argument ", "", 1), hint=f"`{self.prog} --help` lists what can be given")


# Names that are nearly right.


def whole_name(
    word: str, names: Sequence[str], missing: str, hint: str, elsewhere: Mapping[str, str] | None = None
) -> str:
    """The one of the names that a word is, or is the beginning of; else UsageError, with the nearest one."""
    if word in names:
        return word
    begun = sorted(name for name in names if name.startswith(word))
    if len(begun) == 1:
        return begun[0]
    if begun and word.strip("-"):
        raise UsageError(f"{word} could mean {_either(begun)}", hint="more letters say which")
    raise UsageError(missing, hint=did_you_mean(word, names, elsewhere) or hint)


def did_you_mean(
    word: str, names: Sequence[str], elsewhere: Mapping[str, str] | None = None, form: str = "{}"
) -> str | None:
    """A question that names what was probably meant: other tools' word for it, a longer name, one spelled alike."""
    from difflib import get_close_matches

    bare = {name.lstrip("-/"): name for name in names}  # else what all flags have in common makes them alike
    near = [elsewhere[word]] if elsewhere and word in elsewhere else [name for name in names if name.startswith(word)]
    near = near or [bare[name] for name in get_close_matches(word.lstrip("-/"), bare, n=1, cutoff=0.65)]
    return f"did you mean {_either([form.format(name) for name in near])}?" if near else None


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


Commands = Any  # argparse's own type of a group of sub-commands is private.


# Numbers and lists as they are typed.


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def integer(text: str) -> int:
    """An integer as it is typed."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer") from None


def ids(text: str) -> list[int]:
    """Token ids with commas between them."""
    return [integer(part.strip()) for part in text.split(",")]


def _bias(text: str) -> tuple[int, float]:
    token, separator, bias = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ID=BIAS")
    return integer(token), _number(bias)


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text == NONE else parse(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "number": _number,
    "integer": integer,
    "ids": ids,
    "text": str,
    "texts": str,
    "schema": str,
    "biases": _bias,
}


def _parser_of(info: FieldInfo) -> Callable[[str], Any]:
    parse = _PARSERS[info.kind]
    return _or_none(parse) if info.optional else parse


# Sampling.


def typed_fields(without: Collection[str] = ()) -> list[FieldInfo]:
    """The fields of SamplingParams that can be typed."""
    return [info for info in fields_table() if info.name not in (*_NOT_TYPED, *without)]


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int | None = MAX_TOKENS) -> None:
    """One flag for every field of SamplingParams, and --checkpoint-defaults. What is not given is not set."""
    group = parser.add_argument_group("sampling (greedy unless told otherwise)")
    for info in typed_fields():
        _add_flag(group, info, max_tokens if info.name == "max_tokens" else info.default)
    group.add_argument(
        "--checkpoint-defaults",
        action="store_true",
        help="begin with what the checkpoint's generation_config.json asks for",
    )


def _add_flag(group: argparse._ArgumentGroup, info: FieldInfo, default: object) -> None:
    flag = f"--{info.name.replace('_', '-')}"
    text = info.help.replace("%", "%%")
    if info.kind == "flag":
        group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if info.kind in ("ids", "texts", "biases"):
        text += "; may be repeated"
    elif default is not None:
        text += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
    group.add_argument(
        flag,
        action="append" if info.kind in ("texts", "biases") else "extend" if info.kind == "ids" else "store",
        type=_parser_of(info),
        default=argparse.SUPPRESS,
        metavar=_METAVARS[info.kind],
        help=text,
    )


def given_sampling(arguments: argparse.Namespace, max_tokens: int | None = MAX_TOKENS) -> dict[str, Any]:
    """The sampling fields that the command line names, checked as far as they can be without a model."""
    given = {info.name: getattr(arguments, info.name) for info in typed_fields() if hasattr(arguments, info.name)}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    SamplingParams(**{"max_tokens": max_tokens, **given})
    return given


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """`temperature=0.8 top_k=5` as SamplingParams' values; `stop=` and other lists with commas."""
    return dict(_parse_setting(word) for word in words)


def _parse_setting(word: str) -> tuple[str, Any]:
    name, separator, text = word.partition("=")
    name = name.replace("-", "_")
    known = {info.name: info for info in typed_fields()}
    listed = f"settings: {', '.join(known)}"
    if not separator:
        raise UsageError(f"{word!r} is not of the form name=value", hint=listed)
    name = whole_name(name, list(known), f"there is no setting {name!r}", listed)
    info = known[name]
    try:
        return name, _setting(info, text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{name}: {error}") from None


def _setting(info: FieldInfo, text: str) -> Any:
    if info.kind == "flag":
        if text not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
        return text == "true"
    if info.kind == "texts":
        return [text] if text else []
    if info.kind == "biases":
        return dict(_bias(part) for part in text.split(",") if part)
    if info.kind == "ids" and not text:
        return None if info.optional else []
    return _parser_of(info)(text)


# The model.


def add_model_options(parser: argparse.ArgumentParser, tokenizer_only: bool = False) -> None:
    """--model and how it is opened; a tokenizer alone has neither dtype nor device."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        default=None,
        help="a folder, a .safetensors file or a hub id; else $BYHAND_MODEL, else the embedded model",
    )
    group.add_argument("--revision", metavar="NAME", help="the branch, tag or commit on the hub")
    if tokenizer_only:
        return
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default auto: as stored)")
    group.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    group.add_argument("--threads", type=integer, metavar="N", help="processor threads to use")
    group.add_argument(
        "--context", type=integer, metavar="N", help="tokens that a run may have (default: what the config reaches)"
    )
    group.add_argument("--cache-tokens", type=integer, metavar="N", help="room of the KV cache, in tokens")
    group.add_argument(
        "--cache-dtype", choices=CACHE_DTYPES, default="auto", help="of the KV cache (default auto: float32)"
    )
    group.add_argument("--quantize", choices=QUANTIZED, help="hold the weights in 8 or 4 bits")
    group.add_argument("--kernels", choices=KERNELS, default="auto", help="auto: cpu (Numba) on a processor")
    group.add_argument(
        "--prefill",
        choices=PREFILLS,
        default="exact",
        help="fast: bfloat16 products for 4 rows or more (default exact)",
    )


def model_name(arguments: argparse.Namespace) -> str | None:
    """The model that was asked for: the flag, else BYHAND_MODEL, else None (the embedded one)."""
    if arguments.model is not None and not arguments.model.strip():
        raise UsageError("--model is empty", hint="leave it out for the embedded model")
    return named_model(arguments.model or os.environ.get("BYHAND_MODEL"))


def named_model(name: str | None) -> str | None:
    """A model by its name, where the embedded one's own is None."""
    from byhand.checkpoint import EMBEDDED

    return None if not name or (name == EMBEDDED and not Path(name).exists()) else name
