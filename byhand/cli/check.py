"""`byhand verify`: byhand beside transformers' generate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from byhand.cli.options import Commands, add_model_options, integer
from byhand.cli.parsing import UNQUOTED, example
from byhand.cli.request import check_unicode
from byhand.cli.talk import is_terminal, opened, print_json, talk


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "verify",
        help="check against transformers' generate",
        usage="byhand verify [PROMPT ...] [options]",
        description="Run transformers' generate, the naive loop, the cached loop and a batch on the same prompts, and "
        "compare the ids. Exit code 0: equal, or different only where a rounding tie is. 1: different.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts of yours; else those of the lesson")
    parser.add_argument("--max-tokens", type=integer, default=40, metavar="N", help="tokens a run (default 40)")
    parser.add_argument("--sampled", action="store_true", help="also a sampled run, with matched logits processors")
    parser.add_argument("--seed", type=integer, metavar="N", help="of the sampled run's dice")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Verify, print the table, and say by the exit code what came of it."""
    prompts = [check_unicode(prompt, "a prompt") for prompt in arguments.prompts]
    if len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
        quoted = example("byhand verify", [" ".join(prompts)])
        talk(f"{len(prompts)} prompts of one word each; {UNQUOTED} ({quoted})")
    with opened(arguments) as llm:
        from byhand.verify import DEFAULT_PROMPTS, verify

        report = verify(
            llm,
            prompts or DEFAULT_PROMPTS,
            max_tokens=arguments.max_tokens,
            sampled=arguments.sampled,
            seed=arguments.seed,
            progress=_progress(),
        )
        if arguments.json:
            print_json(report.to_json())
        else:
            from byhand.cli.views.checking import print_report
            from byhand.cli.views.terminal import console_for

            print_report(console_for(sys.stdout), report, llm.tokenizer.token)
    return 0 if report.equal else 1


def _progress() -> Callable[[str], None]:
    """On a terminal, which method is running now; elsewhere nothing."""
    if not is_terminal(sys.stderr):
        return lambda method: None
    return lambda method: print(f"byhand: {method} ...", file=sys.stderr, flush=True)
