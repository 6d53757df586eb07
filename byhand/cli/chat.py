"""`byhand chat`: a conversation through the checkpoint's chat template. What was said is computed once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from byhand.cli.ask import Asker
from byhand.cli.options import (
    Commands,
    UsageError,
    add_model_options,
    add_sampling_options,
    given_sampling,
    parse_settings,
)
from byhand.cli.request import check_unicode, sampling_params
from byhand.cli.run import until
from byhand.cli.talk import INTERRUPTED, Interrupt, check_target, opened
from byhand.cli.views.settings import settings_in_words
from byhand.errors import ByhandError
from byhand.sampling.params import SamplingParams

if TYPE_CHECKING:
    from byhand.llm import LLM
    from byhand.run import Run

HELP = (
    ("/system TEXT", "what the model is told about itself, from the next answer on"),
    ("/retry", "answer the last message again, with other dice"),
    ("/undo", "take back the last message and its answer"),
    ("/new", "begin again; the system message stays"),
    ("/history", "all that was said"),
    ("/params [NAME=VALUE]", "show the settings, or change some: /params temperature=0.8"),
    ("/save FILE", "write the conversation as JSON"),
    ("/quit", "leave (as does Ctrl-D); Ctrl-C stops an answer"),
)


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        usage="byhand chat [options]",
        description="Talk with the model through its checkpoint's chat template. /help lists the commands.",
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told about itself")
    parser.add_argument("--watch", action="store_true", help="colour each token by its probability")
    add_sampling_options(parser)
    add_model_options(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Open the model and talk."""
    given = given_sampling(arguments)
    system = None if arguments.system is None else check_unicode(arguments.system, "--system")
    with opened(arguments) as llm:
        llm.render_chat([{"role": "user", "content": ""}])  # a checkpoint without a template says so now
        chat = Chat(llm, sampling_params(llm, arguments, given), system)
        return Conversation(chat, arguments.watch).loop()


class Chat:
    """What was said, and how the next answer is made. Knows no terminal."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self.llm = llm
        self.params = params
        self.system = system
        self.turns: list[dict[str, str]] = []
        self._retries = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, if any, and every turn."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, *self.turns]

    def ask(self, text: str) -> Run:
        """A prefilled run that answers a new message; it counts as said only when the run could be made."""
        said = [*self.messages, {"role": "user", "content": text}]
        self._retries = 0
        run = self._start(said)
        self.turns.append(said[-1])
        return run

    def retry(self) -> Run:
        """A run that answers the last message again."""
        turns = self.turns[:-1] if self.turns and self.turns[-1]["role"] == "assistant" else list(self.turns)
        if not turns:
            raise UsageError("there is nothing to answer again")
        self._retries += 1
        self.turns = turns
        return self._start(self.messages)

    def _start(self, messages: list[dict[str, str]]) -> Run:
        seed = self.params.seed
        params = self.params if seed is None else self.params.replace(seed=seed + self._retries)
        return self.llm.start(self.llm.chat_ids(messages), params)

    def answered(self, text: str) -> None:
        """Keep an answer."""
        self.turns.append({"role": "assistant", "content": text})

    def undo(self) -> None:
        """Take back the last message and all that came after it."""
        users = [place for place, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not users:
            raise UsageError("there is nothing to take back")
        del self.turns[users[-1] :]

    def document(self) -> dict[str, Any]:
        """The conversation for a file."""
        return {"model": self.llm.name, "params": self.params.to_json(), "messages": self.messages}


class Conversation:
    """The chat on a terminal or a pipe."""

    def __init__(self, chat: Chat, watch: bool) -> None:
        from byhand.cli.views.talking import ChatView

        self.chat = chat
        self._ask = Asker(echo=False)
        self._view = ChatView(watch)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._view.help(HELP),
            "/?": lambda _: self._view.help(HELP),
            "/system": self._set_system,
            "/retry": self._retry,
            "/undo": self._undo,
            "/new": self._new,
            "/history": lambda _: self._view.history(self.chat.messages),
            "/params": self._params,
            "/save": self._save,
        }

    def loop(self) -> int:
        """Until the person leaves."""
        self._view.greet(self.chat.llm.name, self._ask.is_live)
        while True:
            try:
                line = self._ask("you > ", "/help lists the commands")
                if line.strip() in ("/quit", "/exit", "/q"):
                    return 0
                self._take(line)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                return INTERRUPTED
            except ByhandError as error:
                self._view.note(str(error))

    def _take(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name.startswith("/"):
            if name not in self._commands:
                raise UsageError(f"there is no command {name}", hint="/help lists them")
            self._commands[name](rest.strip())
        elif line.strip():
            self._answer(self.chat.ask(check_unicode(line, "the message")))

    def _answer(self, run: Run) -> None:
        """Show an answer as it comes; Ctrl-C ends it, and what there is stays said."""
        with Interrupt() as interrupt:
            for step in until(run, interrupt):
                self._view.step(step)
        self.chat.answered(run.text)
        self._view.end(run)

    def _retry(self, _: str) -> None:
        if self.chat.params.is_greedy:
            self._view.note("greedy answers never change; /params temperature=0.8 throws dice")
        self._answer(self.chat.retry())

    def _set_system(self, text: str) -> None:
        if text:
            self.chat.system = check_unicode(text, "the message")
        self._view.note(f"system: {self.chat.system or 'none'}")

    def _undo(self, _: str) -> None:
        self.chat.undo()
        self._view.note(f"taken back; {len(self.chat.turns)} messages are left")

    def _new(self, _: str) -> None:
        self.chat.turns.clear()
        self._view.note("begun again")

    def _params(self, text: str) -> None:
        if text:
            self.chat.params = self.chat.params.replace(**parse_settings(text.split()))
        self._view.note(settings_in_words(self.chat.params))

    def _save(self, text: str) -> None:
        target = check_target(text or None, "/save")
        if target is None:
            raise UsageError("/save needs a file", hint="/save chat.json")
        target.write_text(json.dumps(self.chat.document(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        self._view.note(f"saved to {target}")
