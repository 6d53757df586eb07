"""What a command asks of a model: the prompt as text, ids or a chat, and the sampling parameters."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from byhand.cli.notice import now_told, was_told
from byhand.cli.options import MAX_TOKENS, UsageError, ids
from byhand.cli.talk import is_terminal, talk
from byhand.errors import PromptError
from byhand.sampling.fields import shown
from byhand.sampling.params import SamplingParams

if TYPE_CHECKING:
    from byhand.llm import LLM

EXAMPLE = "A list of colors: red"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt before a model is there to read it."""

    text: str = ""
    ids: list[int] | None = None
    chat: bool = False
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The prompt as a chat of one turn."""
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*before, {"role": "user", "content": self.text}]

    def for_model(self, llm: LLM) -> str | list[int]:
        """What `LLM.start` and `LLM.read` take."""
        if self.chat:
            return llm.chat_ids(self.messages())
        return self.text if self.ids is None else self.ids

    def shown(self, llm: LLM) -> str:
        """What stands before the continuation when people look at it."""
        if self.chat:
            return ""
        return self.text if self.ids is None else llm.detokenize(self.ids)


def add_prompt_options(parser: argparse.ArgumentParser, chat: bool = True) -> None:
    """PROMPT, --ids, and --chat with --system."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to begin with; - reads stdin")
    parser.add_argument(
        "--ids", type=ids, action="extend", metavar="ID[,ID]", help="token ids instead of PROMPT, taken as they are"
    )
    if chat:
        parser.add_argument("--chat", action="store_true", help="PROMPT is a user's message: use the chat template")
        parser.add_argument("--system", metavar="TEXT", help="a system message before it; implies --chat")


def prompt_from(arguments: argparse.Namespace, command: str) -> Prompt:
    """The prompt that the command line and stdin give."""
    system = getattr(arguments, "system", None)
    chat = getattr(arguments, "chat", False) or system is not None
    if arguments.ids is None:
        system = None if system is None else check_unicode(system, "--system")
        return Prompt(read_text(arguments.prompt, command), chat=chat, system=system)
    if arguments.prompt is not None:
        raise UsageError("PROMPT and --ids were both given", hint="one of them is the prompt")
    if chat:
        raise UsageError("--ids cannot go through a chat template", hint="give the message as text")
    return Prompt(ids=arguments.ids)


def read_text(text: str | None, command: str) -> str:
    """Text as given, what a person types now, or all of stdin (one line break at its end is left out)."""
    if text is None and is_terminal(sys.stdin):
        text = _asked(command)
    if text is None or text == "-":
        text = _stdin().removesuffix("\n").removesuffix("\r")
        if not text:
            raise UsageError(f"`byhand {command}` found nothing on standard input", hint=_such_as(command))
        return text
    return check_unicode(text, "the text")


def _asked(command: str) -> str:
    """The text, asked for; the first line that is not empty."""
    from byhand.cli.ask import Asker

    ask = Asker()
    try:
        while ask.is_live:
            if line := ask("text > " if command == "tokenize" else "prompt > ", "Ctrl-D leaves"):
                return line
    except EOFError:
        pass
    raise UsageError(f"`byhand {command}` needs a text", hint=_such_as(command))


def _such_as(command: str) -> str:
    return f'such as `byhand {command} "{EXAMPLE}"`; - reads standard input'


def _stdin() -> str:
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8") if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from None


def check_unicode(text: str, what: str) -> str:
    """Refuse what the shell handed over in bytes that are no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError(f"{what} is not UTF-8", param="prompt") from None
    return text


def sampling_params(
    llm: LLM, arguments: argparse.Namespace, given: dict[str, Any], max_tokens: int | None = MAX_TOKENS
) -> SamplingParams:
    """The parameters asked for; the checkpoint's own are the ground they stand on only where that was wished."""
    if not arguments.checkpoint_defaults:
        _mention_defaults(llm, given)
        return SamplingParams(**{"max_tokens": max_tokens, **given})
    params = llm.checkpoint_params(**given)
    if params.max_tokens is None and "max_tokens" not in given:
        params = params.replace(max_tokens=max(max_tokens or 0, params.min_tokens) or None)
    return params


def _mention_defaults(llm: LLM, given: dict[str, Any]) -> None:
    """Say once for each model what its checkpoint suggests, where that would change anything, and what is left out."""
    about = f"{llm.identity.digest} {json.dumps(llm.generation_config, sort_keys=True)}"
    if was_told(about):
        return
    before = len(llm.notes)
    ours, theirs = SamplingParams().to_json(), llm.checkpoint_params().to_json()
    differing = {name: value for name, value in theirs.items() if value != ours[name] and name != "max_tokens"}
    if len(llm.notes) == before and not differing.keys() - given.keys():
        return
    if differing:
        suggested = ", ".join(f"{name} {shown(value)}" for name, value in differing.items())
        talk(f"the checkpoint suggests {suggested}; --checkpoint-defaults applies that")
    now_told(about)
