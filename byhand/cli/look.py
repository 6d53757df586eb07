"""`byhand tokenize` and `byhand read`: the prompt as the model sees it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from byhand.cli.options import Commands, UsageError, add_model_options, integer, model_name
from byhand.cli.request import add_prompt_options, prompt_from, read_text
from byhand.cli.talk import opened, print_json, talk
from byhand.jsonable import token_to_json

if TYPE_CHECKING:
    pass

TOP_IN_JSON = 5


def add(commands: Commands) -> None:
    """Register both commands."""
    _add_tokenize(commands)
    _add_read(commands)


def _add_tokenize(commands: Commands) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="a text as token ids and their pieces",
        usage="byhand tokenize TEXT|- [options]",
        description="Show the token ids of a text and the piece of text that each stands for.",
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text; - reads stdin")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser, tokenizer_only=True)
    parser.set_defaults(command=tokenize)


def tokenize(arguments: argparse.Namespace) -> int:
    """Show a text's tokens. Only the tokenizer is opened: no weights, no torch."""
    from byhand.checkpoint import open_checkpoint
    from byhand.text import Tokenizer

    text = read_text(arguments.text, "tokenize")
    checkpoint = open_checkpoint(model_name(arguments), arguments.revision, weights=False)
    tokenizer = Tokenizer.open(checkpoint.folder)
    ids = tokenizer.encode(text)
    doubled = tokenizer.doubled_bos(ids)
    if doubled:
        talk(doubled)
    tokens = [tokenizer.token(token) for token in ids]
    if arguments.json:
        print_json({"model": checkpoint.identity.name, "tokens": [token_to_json(token) for token in tokens]})
        return 0
    from byhand.cli.views.reading import print_tokens
    from byhand.cli.views.terminal import console_for

    print_tokens(console_for(sys.stdout), tokens)
    return 0


def _add_read(commands: Commands) -> None:
    parser = commands.add_parser(
        "read",
        help="what the model predicts after every position of a prompt",
        usage="byhand read PROMPT|- [options]",
        description="Read a prompt in one go and show what the model predicts after every one of its tokens.",
    )
    add_prompt_options(parser)
    parser.add_argument("--top", type=integer, metavar="K", help="candidates to show at every position (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    parser.set_defaults(command=read)


def read(arguments: argparse.Namespace) -> int:
    """Show a prompt's reading."""
    if arguments.top is not None and not 1 <= arguments.top <= 1000:
        raise UsageError(f"--top is {arguments.top}; it must be at least 1 and at most 1000")
    prompt = prompt_from(arguments, "read")
    with opened(arguments) as llm:
        reading = llm.read(prompt.for_model(llm), top=arguments.top or TOP_IN_JSON)
        if arguments.json:
            print_json({"model": llm.name, **reading.to_dict()})
            return 0
        from byhand.cli.views.reading import print_reading
        from byhand.cli.views.terminal import console_for

        passes = -(-len(reading) // llm.engine.max_batched_tokens)
        print_reading(console_for(sys.stdout), reading, arguments.top or 1, passes)
    return 0
