"""`byhand chat`: a conversation through the checkpoint's chat template. What was said is computed once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byhand.cli.ask import YES, Asker
from byhand.cli.options import (
    Commands,
    UsageError,
    add_model_options,
    add_sampling_options,
    did_you_mean,
    given_sampling,
    parse_settings,
    typed_fields,
)
from byhand.cli.request import check_unicode, sampling_params
from byhand.cli.run import until
from byhand.cli.talk import INTERRUPTED, Interrupt, check_target, opened, sentence
from byhand.cli.views.settings import settings_in_words
from byhand.errors import ByhandError
from byhand.sampling.params import SamplingParams
from byhand.types import FinishReason

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
    ("/save FILE", "write the conversation, its system message and the settings as JSON"),
    ("/load FILE", "go on with a conversation that was saved"),
    ("/help", "this list"),
    ("/quit", "leave (as do Ctrl-D, and Ctrl-C twice); Ctrl-C stops an answer"),
)

LARGEST = 2**26  # bytes of a file that may be a saved chat


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

    def restore(self, document: dict[str, Any]) -> None:
        """Go on with what `document` gave; one that is wrong changes nothing."""
        messages = checked_messages(document.get("messages"))
        params = document.get("params", {})
        if not isinstance(params, dict):
            raise UsageError("`params` is no object")
        restored = SamplingParams.from_json(params) if params else self.params
        restored.check_vocabulary(self.llm.vocab_size)
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages[0]["content"] if has_system else None
        self.turns = messages[has_system:]
        self.params, self._retries = restored, 0


def checked_messages(messages: object) -> list[dict[str, str]]:
    """The messages of a saved chat: a system message first, if any, then what the user and the model said."""
    if not isinstance(messages, list):
        raise UsageError("it has no list of `messages`")
    for place, message in enumerate(messages):
        roles = ("user", "assistant") if place else ("system", "user", "assistant")
        if not isinstance(message, dict) or message.get("role") not in roles:
            raise UsageError(f"`messages[{place}]` has none of the roles {', '.join(roles)}")
        if not isinstance(message.get("content"), str):
            raise UsageError(f"`messages[{place}]` has no text as its content")
        check_unicode(message["content"], f"`messages[{place}]`")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def read_saved(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        document = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {str(error.strerror).lower()}") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no saved chat", hint="/save FILE writes one")
    return document


def _path(typed: str) -> Path:
    """A path as it is typed: in quotes or not, from the home folder on or not."""
    from byhand.cli.words import unquoted

    with suppress(RuntimeError):  # nobody of that name has a home
        return Path(unquoted(typed)).expanduser()
    return Path(unquoted(typed))


def completions(line: str) -> Iterator[str]:
    """The lines that a command begun so may become: its name, a file's, a setting's."""
    name, space, rest = line.partition(" ")
    if not space:
        commands = [typed.partition(" ") for typed, _ in HELP]
        yield from (command + between for command, between, _ in commands if name and command.startswith(name))
    elif name in ("/save", "/load"):
        yield from (f"{name} {path}" for path in _paths(rest))
    elif name == "/params":
        before, begun = line[: line.rfind(" ") + 1], rest.rpartition(" ")[2]
        yield from (f"{before}{info.name}=" for info in typed_fields() if info.name.startswith(begun))


def _paths(begun: str) -> Iterator[str]:
    """The paths that begin so; a folder ends in a slash."""
    folder, slash, name = begun.rpartition("/")
    with suppress(OSError):
        for path in sorted(Path(folder + slash).expanduser().iterdir()):
            if path.name.startswith(name) and (name or not path.name.startswith(".")):
                yield f"{folder}{slash}{path.name}" + ("/" if path.is_dir() else "")


class Conversation:
    """The chat on a terminal or a pipe."""

    def __init__(self, chat: Chat, watch: bool) -> None:
        from byhand.cli.views.talking import ChatView

        self.chat = chat
        self._ask = Asker(echo=False, complete=completions)
        self._view = ChatView(watch)
        self._unread: str | None = None
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
            "/load": self._load,
        }

    def loop(self) -> int:
        """Until the person leaves."""
        self._view.greet(self.chat.llm.name, self._ask.is_live)
        while True:
            try:
                line, self._unread = self._unread or self._ask("you > ", "/help lists the commands"), None
            except EOFError:
                return 0
            except KeyboardInterrupt:
                return INTERRUPTED
            if line.strip() in ("/quit", "/exit", "/q"):
                return 0
            try:
                self._take(line)
            except KeyboardInterrupt:
                if not self._ask.is_live:
                    return INTERRUPTED
                self._view.note("interrupted")
            except BrokenPipeError:
                raise
            except Exception as error:  # noqa: BLE001 - what was said is worth more than the line that failed
                self._view.note(sentence(error))

    def _take(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name.startswith("/"):
            if name not in self._commands:
                hint = did_you_mean(name, [typed.split()[0] for typed, _ in HELP])
                raise UsageError(f"there is no command {name}", hint=hint or "/help lists them")
            self._commands[name](rest.strip())
        elif line.strip():
            message = check_unicode(line, "the message")
            self._answer(lambda: self.chat.ask(message))

    def _answer(self, begin: Callable[[], Run]) -> None:
        """Show an answer as it comes; Ctrl-C ends it, and what there is stays said."""
        before, run = list(self.chat.turns), None
        try:
            with Interrupt() as interrupt:
                run = begin()
                for step in until(run, interrupt):
                    self._view.step(step)
        finally:
            self._keep(run, before)

    def _keep(self, run: Run | None, before: list[dict[str, str]]) -> None:
        """Close an answer; where not a word of it came, what it answers was never said."""
        if run is not None:
            self._view.end(run)
        if run is not None and (run.text or run.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)):
            self.chat.answered(run.text)
            return
        self.chat.turns = before
        if run is not None:
            self._view.note("not a word came: the message is taken back")

    def _retry(self, _: str) -> None:
        if self.chat.params.is_greedy:
            self._view.note("greedy answers never change; /params temperature=0.8 throws dice")
        self._answer(self.chat.retry)

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
        if not text:
            raise UsageError("/save needs a file", hint="/save chat.json")
        target = _path(text)
        check_target(str(target), "/save")
        if target.exists() and not self._may_overwrite(target):
            self._view.note("not saved")
            return
        from byhand.record import write_whole

        write_whole(target, json.dumps(self.chat.document(), ensure_ascii=False, indent=1) + "\n")
        self._view.note(f"saved to {target}")

    def _may_overwrite(self, target: Path) -> bool:
        question = f"{target} is there already: overwrite it? [y/N] "
        if self._ask.is_live:
            return self._ask.confirm(question)
        self._view.note(question)
        with suppress(EOFError):
            answer = self._ask("")
            if answer.strip().lower() in YES:
                return True
            if answer.strip().lower() not in ("", "n", "no"):
                self._unread = answer  # whoever wrote the pipe foresaw no question
        return False

    def _load(self, text: str) -> None:
        if not text:
            raise UsageError("/load needs a file", hint="/load chat.json")
        path = _path(text)
        saved = read_saved(path)
        try:
            self.chat.restore(saved)
        except ByhandError as error:
            raise UsageError(f"{path} is no saved chat: {error}") from None
        self._view.note(f"{len(self.chat.turns)} messages; {settings_in_words(self.chat.params)}; /history shows all")
        if saved.get("model") != self.chat.llm.name:
            self._view.note(f"they were said with {saved.get('model') or 'a model that has no name'}")
