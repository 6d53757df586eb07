"""A person at the terminal: what is asked, what is told once, what a slip costs, what was probably meant."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import byhand.cli.notice
from byhand import LLM, SamplingParams
from byhand.cli.chat import completions
from byhand.cli.main import build_parser, main
from byhand.cli.options import UsageError, parse_settings
from byhand.cli.parsing import arguments_of, commands_of
from byhand.cli.talk import wrapped
from byhand.record import write_whole
from byhand.run import Run
from tests.commandline import Cli
from tests.conftest import tiny_llama

# Before any test puts another in its place.
TOLD_FOLDER = byhand.cli.notice.told_folder

PROMPT = "the quick brown"
GREEDY = SamplingParams(max_tokens=6)
CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"


@pytest.fixture
def record_file(cli: Cli, tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    assert cli("run", PROMPT, "--max-tokens", "3", "--record", str(path)) == 0
    return path


# Ctrl-C


@pytest.mark.parametrize("command", ["chat", "step", "replay"])
def test_ctrl_c_clears_the_line_and_twice_leaves(cli: Cli, record_file: Path, command: str) -> None:
    argv = {"chat": ["chat"], "step": ["step", PROMPT], "replay": ["replay", str(record_file)]}[command]
    told = "(Ctrl-C again leaves)"
    assert cli.typed(*argv, keys=f"some words{CTRL_C}{CTRL_C}") == 130
    assert cli.out.count(told) == 1
    assert cli.typed(*argv, keys=f"{CTRL_C}a{CTRL_C}b{CTRL_C}{CTRL_D}") == 0, "what was typed since is cleared first"
    assert cli.out.count(told) == 3
    assert cli.typed(*argv, keys=f"{CTRL_C}?{ENTER}{CTRL_C}{CTRL_D}") == 0, "a line between them: not twice"


def test_a_cleared_line_was_never_said(cli: Cli, llm: LLM) -> None:
    keys = f"what is this{CTRL_C}the quick{ENTER}/history{ENTER}{CTRL_D}"
    assert cli.typed("chat", "--max-tokens", "6", keys=keys) == 0
    answer = llm.chat([{"role": "user", "content": "the quick"}], GREEDY).text
    assert cli.out.count(answer) == 1
    assert "what is this" not in cli.err
    assert "user: the quick" in cli.err


def interrupt(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let Ctrl-C come so many times while the first prompt is processed."""
    start, left = LLM.start, [times]

    def started(self: LLM, *rest: Any) -> Run:
        while left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)
        return start(self, *rest)

    monkeypatch.setattr(LLM, "start", started)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_before_the_first_word_keeps_the_chat(cli: Cli, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    interrupt(monkeypatch, times)
    keys = f"the dog{ENTER}the quick{ENTER}/history{ENTER}{CTRL_D}"
    assert cli.typed("chat", "--max-tokens", "6", keys=keys) == 0
    assert "the message is taken back" in cli.err or "interrupted" in cli.err
    assert "user: the dog" not in cli.err
    assert "user: the quick" in cli.err


def test_ctrl_c_twice_ends_a_chat_from_a_pipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 2)
    assert cli("chat", stdin="the dog\nthe quick\n") == 130


def test_a_retry_without_a_word_keeps_the_answer_it_had(cli: Cli, monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    start, count = LLM.start, [0]

    def started(self: LLM, *rest: Any) -> Run:
        count[0] += 1
        if count[0] == 2:
            signal.raise_signal(signal.SIGINT)
        return start(self, *rest)

    monkeypatch.setattr(LLM, "start", started)
    assert cli("chat", "--max-tokens", "6", stdin="the dog\n/retry\n/history\n") == 0
    answer = cli.out.splitlines()[0]
    assert f"assistant: {answer}" in cli.err


# /save and /load


def saved_chat(cli: Cli, path: Path, *lines: str) -> Any:
    assert cli("chat", "--max-tokens", "6", stdin="\n".join([*lines, f"/save {path}"])) == 0
    return json.loads(path.read_text())


def test_save_asks_before_it_overwrites(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a chat.json"
    saved_chat(cli, path, "the dog")
    before = path.read_bytes()
    for answer in ("n", "", "no"):
        assert cli("chat", stdin=f"/save {path}\n{answer}\n") == 0
        assert f"{path} is there already: overwrite it? [y/N]" in cli.err
        assert "not saved" in cli.err
        assert path.read_bytes() == before
    assert cli.typed("chat", keys=f"/save {path}{ENTER}{CTRL_C}/save {path}{ENTER}{ENTER}{CTRL_D}") == 0
    assert path.read_bytes() == before
    assert cli("chat", stdin=f'/save "{path}"\nYes\n') == 0
    assert json.loads(path.read_text())["messages"] == []
    assert cli.typed("chat", "--system", "be kind", keys=f"/save {path}{ENTER}y{ENTER}{CTRL_D}") == 0
    assert len(json.loads(path.read_text())["messages"]) == 1


def test_a_pipe_that_foresaw_no_question_loses_no_line(cli: Cli, tmp_path: Path) -> None:
    path, other = tmp_path / "chat.json", tmp_path / "other.json"
    saved_chat(cli, path)
    assert cli("chat", "--max-tokens", "6", stdin=f"/save {path}\nthe dog\n/save {other}\n") == 0
    assert "not saved" in cli.err
    assert json.loads(other.read_text())["messages"][0]["content"] == "the dog"
    assert cli("chat", stdin=f"/save {path}") == 0
    assert "not saved" in cli.err


def test_a_file_that_cannot_be_written_costs_no_chat(cli: Cli, tmp_path: Path) -> None:
    typed = f"the dog\n/save /proc/chat.json\n/load /proc/self/mem\n/save {tmp_path}\n/save\n/load\n/load ~nobody/x\n"
    assert cli("chat", "--max-tokens", "3", stdin=f"{typed}/history\n") == 0
    for words in ("/proc/chat.json.part: ", "/proc/self/mem", "is a folder", "/save needs", "/load needs", "user: the"):
        assert words in cli.err
    assert "unexpected" not in cli.err


def test_a_reader_that_leaves_ends_the_chat(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("byhand.cli.views.talking.ChatView.end", end)
    assert cli("chat", "--max-tokens", "1", stdin="a\nb\n") == 141


def test_load_goes_on_with_what_was_saved(cli: Cli, tmp_path: Path, llm: LLM) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    flags = ["--system", "be kind", "--max-tokens", "6", "--top-k", "3"]
    assert cli("chat", *flags, stdin=f"the quick\n/save {first}\n") == 0
    saved = json.loads(first.read_text())
    assert cli("chat", stdin=f"other words\n/load {first}\nbrown fox\n/save {second}\n") == 0
    assert "2 messages" in cli.err
    document = json.loads(second.read_text())
    assert document["messages"][:3] == saved["messages"]
    assert document["params"] == saved["params"]
    assert document["messages"][3] == {"role": "user", "content": "brown fox"}
    assert document["messages"][4]["content"] == llm.chat(document["messages"][:4], GREEDY).text
    assert "they were said with" not in cli.err
    first.write_text(json.dumps({**saved, "model": "another"}))
    assert cli("chat", stdin=f"/load {first}\n") == 0
    assert "they were said with another" in cli.err


MESSAGE = {"role": "user", "content": "the dog"}
NO_CHATS: dict[str, Any] = {
    "not JSON": "{",
    "nested": "[" * 100_000,
    "a list": [MESSAGE],
    "no messages": {"params": {}},
    "messages of another kind": {"messages": "the dog"},
    "a message of another kind": {"messages": ["the dog"]},
    "a role": {"messages": [{"role": "tool", "content": "x"}]},
    "a role that is a list": {"messages": [{"role": [], "content": "x"}]},
    "a late system message": {"messages": [MESSAGE, {"role": "system", "content": "x"}]},
    "content of parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "params of another kind": {"messages": [MESSAGE], "params": [1]},
    "an unknown setting": {"messages": [MESSAGE], "params": {"warmth": 1}},
    "a setting out of range": {"messages": [MESSAGE], "params": {"top_p": 7}},
    "an id that the model lacks": {"messages": [MESSAGE], "params": {"banned_ids": [9999]}},
    "a record": {"format": "byhand.record", "steps": []},
}


@pytest.mark.parametrize("kind", NO_CHATS)
def test_what_is_no_saved_chat_changes_nothing(cli: Cli, tmp_path: Path, kind: str) -> None:
    path, kept = tmp_path / "chat.json", tmp_path / "kept.json"
    value = NO_CHATS[kind]
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    typed = f"/system be kind\n/params top_k=7\n/load {path}\n/save {kept}\n"
    assert cli("chat", stdin=typed) == 0
    [said] = [line for line in cli.err.splitlines() if "no saved chat" in line]
    assert str(path) in said
    document = json.loads(kept.read_text())
    assert (document["messages"], document["params"]["top_k"]) == ([{"role": "system", "content": "be kind"}], 7)


def test_load_of_what_is_no_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "large.json").touch()
    os.truncate(tmp_path / "large.json", 2**26 + 1)
    assert cli("chat", stdin=f"/load {tmp_path}\n/load {tmp_path}/none.json\n/load {tmp_path}/large.json\n") == 0
    assert cli.err.count("there is no file") == 2
    assert "large.json is no saved chat" in cli.err


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_whole(pipe, "through")
    reader.join(5)
    assert (read, pipe.is_fifo()) == (["through"], True)


def test_commands_files_and_settings_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats").mkdir()
    for name in ("a chat.json", ".hidden", "chats/b.json"):
        (tmp_path / name).touch()
    assert list(completions("/s")) == ["/system ", "/save "]
    assert list(completions("/lo")) == ["/load "]
    assert {"/load ", "/help", "/quit"} <= set(completions("/"))
    assert list(completions("/load ")) == ["/load a chat.json", "/load chats/"]
    assert list(completions("/save chats/")) == ["/save chats/b.json"]
    assert list(completions("/load a c")) == ["/load a chat.json"]
    assert list(completions("/load .h")) == ["/load .hidden"]
    assert list(completions("/params top_k=3 temp")) == ["/params top_k=3 temperature="]
    for line in ("", "s", "/load nowhere/", "/new x", "the /s"):
        assert list(completions(line)) == []


def test_tab_completes(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    assert cli.typed("chat", "--system", "be kind", keys=f"/sa\t{path}{ENTER}{CTRL_D}") == 0
    assert path.exists()


# A prompt that was left out


@pytest.mark.parametrize("command", ["run", "read", "tokenize", "step"])
def test_a_terminal_is_asked_for_the_text(cli: Cli, command: str) -> None:
    flags = ["--max-tokens", "3"] if command == "run" else []
    ending = f"q{ENTER}" if command == "step" else ""
    assert cli.typed(command, PROMPT, *flags, keys=ending) == 0
    expected = numberless(cli.out)
    assert cli.typed(command, *flags, keys=f"{ENTER}not this{CTRL_C}{PROMPT}{ENTER}{ending}") == 0
    assert numberless(cli.out.replace("(Ctrl-C again leaves)\n", "")) == expected
    for keys, code in ((CTRL_D, 2), (CTRL_C * 2, 130)):
        assert cli.typed(command, keys=keys) == code
    assert cli.typed(command, keys=CTRL_D) == 2
    assert f"`byhand {command}` needs a text" in cli.err


def numberless(text: str) -> str:
    """A text without the times in it."""
    return re.sub(r"[\d.]+ m?s\b", "TIME", text)


@pytest.mark.parametrize("command", ["run", "read", "tokenize"])
@pytest.mark.parametrize("stdin", [b"", b"\n", b"\r\n", None])
def test_an_empty_standard_input_is_refused(
    cli: Cli, command: str, stdin: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stdin is None:
        monkeypatch.setattr("byhand.cli.request._stdin", lambda: "")
    for argv in ([command], [command, "-"]):
        assert cli(*argv, stdin=stdin or b"") == 2
        assert cli.out == ""
        assert cli.err.startswith(f"byhand: `byhand {command}` found nothing on standard input")
        assert cli.err.count("\n") == 1
    assert cli(command, "", *(["--max-tokens", "1"] if command == "run" else [])) == 0, "an empty text can be given"


# What is told once


def suggesting(folder: Path, **settings: object) -> str:
    """A model whose checkpoint suggests these settings."""
    tiny_llama(folder)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **settings}))
    return str(folder)


def test_a_checkpoints_settings_are_told_once_a_model(cli: Cli, tmp_path: Path) -> None:
    first = suggesting(tmp_path / "first", temperature=0.6, top_k=7)
    second = suggesting(tmp_path / "second", temperature=0.9)
    said = "byhand: the checkpoint suggests temperature 0.6, top_k 7; --checkpoint-defaults applies that\n"

    def told(model: str, *argv: str) -> str:
        assert cli(*argv, "--model", model, "--max-tokens", "1") == 0
        return cli.err

    run = ("run", PROMPT)
    assert told(first, *run, "--temperature", "0.5", "--top-k", "3") == "", "all of it is given already"
    assert told(first, *run, "--checkpoint-defaults") == ""
    assert told(first, *run, "--top-k", "3") == said
    assert told(first, *run) == told(first, "step", PROMPT) == told(first, "chat") == ""
    assert "temperature 0.9;" in told(second, *run)
    assert told(second, *run) == ""
    assert said not in told(first, *run, "--json")
    settings = {"do_sample": True, "temperature": 0.7, "num_beams": 4}
    (tmp_path / "first" / "generation_config.json").write_text(json.dumps(settings))
    other = told(first, *run, "--temperature", "1")
    assert "suggests temperature 0.7" in other, "other settings are other news"
    assert "leaves out num_beams" in other
    assert told(first, *run) == ""


def test_where_nothing_can_be_remembered_nothing_fails(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = suggesting(tmp_path / "model", temperature=0.6)
    (tmp_path / "file").touch()
    monkeypatch.setattr("byhand.cli.notice.told_folder", TOLD_FOLDER)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for chosen in (str(tmp_path / "file"), str(tmp_path / "file" / "x"), "/proc/nowhere", "\0"):
        monkeypatch.setattr("byhand.cli.notice.user_cache", lambda place=chosen: Path(place))
        assert cli("run", PROMPT, "--model", model, "--max-tokens", "1") == 0
        assert "the checkpoint suggests" in cli.err
    monkeypatch.setattr("byhand.cli.notice.user_cache", no_home)
    assert cli("run", PROMPT, "--model", model, "--max-tokens", "1") == 0


def test_it_is_remembered_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.cli.notice.told_folder", TOLD_FOLDER)
    monkeypatch.setenv("BYHAND_CACHE", str(tmp_path / "cache"))
    told, names = byhand.cli.notice, ("a model", "another/../../model")
    assert [told.was_told(name) for name in names] == [False, False]
    for name in (*names, *names):
        told.now_told(name)
    assert [told.was_told(name) for name in names] == [True, True]
    assert len(list((tmp_path / "cache" / "told").iterdir())) == 2


@pytest.mark.parametrize("width", range(20, 120, 7))
def test_lines_break_at_no_hyphen_and_in_no_command(width: int) -> None:
    said = (
        "byhand: the checkpoint suggests top_p 0.95; --checkpoint-defaults applies that, or `byhand run --top-p 1` does"
    )
    lines = wrapped(said, width).split("\n")
    assert " ".join(lines) == said
    assert all(len(line) <= width or " " not in line for line in lines if "`" not in line)
    assert any("--checkpoint-defaults" in line for line in lines)
    assert any("`byhand run --top-p 1`" in line for line in lines)


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_no_help_breaks_a_flag(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    commands = commands_of(build_parser())
    known = {flag for command in commands.values() for flag in command._option_string_actions}
    for name, command in commands.items():
        assert set(re.findall(r"--[\w-]*", command.format_help())) - known == set(), name


# What was probably meant

UNQUOTED = "a text of several words needs quotation marks"
MEANT = {
    "run Once upon a time": f'{UNQUOTED} (`byhand run "Once upon a time"`)',
    "tokenize Once upon": f'{UNQUOTED} (`byhand tokenize "Once upon"`)',
    "read a b --json": f'{UNQUOTED} (`byhand read "a b" --json`)',
    "step a b": f'{UNQUOTED} (`byhand step "a b"`)',
    "run --max-tok 5 it is -5 C": f'{UNQUOTED} (`byhand run "it is -5 C" --max-tokens 5`)',
    "run a --watch b": f'{UNQUOTED} (`byhand run "a b"`)',
    "run is it '$5'": f"{UNQUOTED} (`byhand run 'is it $5'`)",
    "run 'upon a' time": f'{UNQUOTED} (`byhand run "upon a time"`)',
    "run facebook/opt-125m 'a b'": '(`byhand run --model facebook/opt-125m "a b"`)',
    "chat hello": "`byhand chat` takes flags alone, not 'hello' (a model is named so: `byhand chat --model hello`)",
    "serve ./folder": "(a model is named so: `byhand serve --model ./folder`)",
    "models a b": "`byhand models` has no use for 'b' (usage: byhand models [NAME] [options])",
    "'Once upon a time'": '(such as `byhand run "Once upon a time"`)',
    "generate x": "there is no command 'generate' (did you mean `byhand run`?)",
    "tokenise x": "(did you mean `byhand tokenize`?)",
    "quantise x y": "(did you mean `byhand quantize`?)",
    "qu": "there is no command 'qu' (did you mean `byhand quantize`?)",
    "sing": "there is no command 'sing' (`byhand --help` lists them)",
    "--model x run y": "(it stands behind a command, as in `byhand run --model`)",
    "run x --top 3": "--top could mean --top-k or --top-p (more letters say which)",
    "run x --to=3": "--to could mean --top-k or --top-p",
    "run x --js": "--js could mean --json, --json-object or --json-schema",
    "run x --tempature 1": "`byhand run` has no flag --tempature (did you mean --temperature?)",
    "run x --max-new-tokens 1": "(did you mean --max-tokens?)",
    "run x -n 1": "`byhand run` has no flag -n (did you mean --max-tokens?)",
    "run -xyz": "(`byhand run --help` lists them; a text that begins with - stands behind --)",
    "bench -z": "`byhand bench` has no flag -z (`byhand bench --help` lists them)",
    "tokenize x --temperature 1": "`byhand tokenize` has no flag --temperature (`byhand tokenize --help` lists them)",
}


@pytest.mark.parametrize("line", MEANT)
def test_a_slip_is_told_what_was_meant(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert MEANT[line] in err


def test_a_very_long_text_is_not_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *["word"] * 5000]) == 2
    assert len(capsys.readouterr().err) < 300


def test_the_beginning_of_a_flag_is_the_flag() -> None:
    """For every command: as few letters as leave one flag only."""
    parser = build_parser()
    for name, command in commands_of(parser).items():
        flags = [flag for flag in command._option_string_actions if flag.startswith("--")]
        for flag in flags:
            action = command._option_string_actions[flag]
            for size in range(3, len(flag)):
                others = [other for other in flags if other.startswith(flag[:size])]
                typed = [name, *_needed(command), f"{flag[:size]}=1" if action.nargs != 0 else flag[:size]]
                if flag == "--help" or flag[:size] in flags or action.choices or action.type not in (None, str):
                    continue
                if len(others) == 1:
                    assert getattr(arguments_of(parser, typed), action.dest), typed
                else:
                    with pytest.raises(UsageError, match="could mean"):
                        arguments_of(parser, typed)


def _needed(command: Any) -> list[str]:
    """What a command cannot do without."""
    positionals = ["x" for action in command._actions if not action.option_strings and action.nargs is None]
    required = [
        word for action in command._actions if action.required and action.option_strings for word in ("--to", "int8")
    ]
    return [*positionals, *required]


def test_what_is_whole_or_a_value_is_left_alone() -> None:
    parser = build_parser()
    arguments = arguments_of(parser, ["read", "--top", "3", "--", "--temp"])
    assert (arguments.top, arguments.prompt) == (3, "--temp")
    arguments = arguments_of(parser, ["run", "--temp is a flag", "--stop=--temp", "--temp", "0.5"])
    assert (arguments.prompt, arguments.stop, arguments.temperature) == ("--temp is a flag", ["--temp"], 0.5)


def test_help_is_a_command_too(cli: Cli) -> None:
    assert cli("help") == 0
    assert cli.out.startswith("usage: byhand COMMAND")
    assert cli("help", "read") == 0
    assert cli.out.startswith("usage: byhand read")


def test_several_words_without_quotes_are_no_prompts_to_verify(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def verify(_: LLM, prompts: Any, **__: Any) -> Any:
        asked.append(prompts)
        raise UsageError("enough")

    monkeypatch.setattr("byhand.verify.verify", verify)
    told = (
        '4 prompts of one word each; a text of several words needs quotation marks (`byhand verify "Once upon a time"`)'
    )
    assert cli("verify", "Once", "upon", "a", "time") == 2
    assert told in cli.err
    assert cli("verify", "Once upon", "a") == cli("verify", "Once") == 2
    assert "quotation marks" not in cli.err
    assert asked == [["Once", "upon", "a", "time"], ["Once upon", "a"], ["Once"]]


def test_settings_are_found_by_their_beginning_too(cli: Cli) -> None:
    assert parse_settings(["temp=0.5", "top-k=3"]) == {"temperature": 0.5, "top_k": 3}
    with pytest.raises(UsageError, match="top could mean top_k or top_p"):
        parse_settings(["top=3"])
    with pytest.raises(UsageError, match="did you mean temperature"):
        parse_settings(["tempature=3"])
    assert cli("chat", stdin="/params temp=0.5\n/histroy\n/sa x\n/xyz\n") == 0
    for words in ("temperature=0.5", "did you mean /history?", "did you mean /save?", "no command /xyz (/help lists"):
        assert words in cli.err


# The stepper's commands as words


def test_the_stepper_offers_the_command(cli: Cli) -> None:
    assert cli.typed("step", PROMPT, keys=f"{ENTER}{ENTER}rewind 2{ENTER}{ENTER}quit{ENTER}{ENTER}") == 0
    assert 'nothing was inserted: as a command it is r 2, as a text "rewind 2"' in cli.out
    assert cli.out.rstrip().endswith(PROMPT), "Enter did what was offered"
    assert cli("step", PROMPT, stdin='help\nquit\n" quit"\nq\n') == 0
    assert cli.out.count("nothing was inserted") == 2
    assert cli.out.rstrip().endswith(f"{PROMPT} quit")


def test_a_poor_terminal_is_offered_nothing_unseen(cli: Cli, monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert cli.typed("step", PROMPT, keys=f"quit{ENTER}{ENTER}q{ENTER}") == 0
    run = llm.start(PROMPT)
    run.step()
    assert cli.out.rstrip().endswith((PROMPT + run.text).rstrip())


def test_replay_takes_its_commands_as_words(cli: Cli, record_file: Path) -> None:
    assert cli("replay", str(record_file), stdin="next\nback\nchain\nhelp\nall\n") == 0
    assert "leads nowhere" not in cli.out
    for words in ("1/3 > back", "1/3 > chain", "the next step", "stopped at max_tokens 3"):
        assert words in cli.out
    assert cli("replay", str(record_file), stdin="Exit\n") == 0
    assert "stopped at" not in cli.out
