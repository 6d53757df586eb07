"""A run's text and its stop strings: wherever the tokens' borders fall, what a look at the whole written text finds.

Written is the text with the names of special tokens in it, which are not shown.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

from byhand import LLM, FinishReason, SamplingParams
from byhand.cli.main import main
from byhand.engine.sampler import Sampler
from byhand.engine.sequence import LogitsRow, Sequence
from byhand.engine.text_state import TextState, Way
from byhand.sampling.chain import Choice
from byhand.text import Tokenizer
from tests.serving import Running, served
from tests.tokenizers_for_tests import every_sort

SORTS = ("byte level", "byte level, unknown", "byte fallback", "byte fallback, unknown", "byte fallback, metaspace")


@cache
def sorts() -> dict[str, Tokenizer]:
    return every_sort()


def readings(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    """The text after the prompt as it reads after no id, after one, after two …"""
    before = len(tokenizer.decode(prompt))
    return [tokenizer.decode([*prompt, *ids[:count]])[before:] for count in range(len(ids) + 1)]


def written(tokenizer: Tokenizer, ids: list[int], texts: list[str]) -> tuple[list[tuple[str, bool]], list[int]]:
    """Every character as it is written, and whether it shows; and how many there are after each id.

    An id's part ends where the text ended when it came, or where it ended at its shortest since.
    """
    ends = list(accumulate(map(len, reversed(texts)), min))[::-1]
    characters: list[tuple[str, bool]] = []
    counts = [0]
    for token, start, end in zip(ids, ends, ends[1:], strict=False):
        characters += [(character, True) for character in texts[-1][start:end]]
        if token in tokenizer.special_ids:
            characters += [(character, False) for character in tokenizer.token(token).text]
        counts.append(len(characters))
    return characters, counts


def slow(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], stops: list[str], early: int
) -> tuple[str, str | None, int]:
    """What is shown, the stop string, and how many ids came: ever longer beginnings are searched from their start.

    Stop strings that are complete within the first `early` ids end nothing.
    """
    texts = readings(tokenizer, prompt, ids)
    for count in range(early + 1, len(ids) + 1):
        characters, counts = written(tokenizer, ids[:count], texts[: count + 1])
        line = "".join(character for character, _ in characters)
        for end in range(counts[early] + 1, len(line) + 1):
            found = [stop for stop in stops if line[:end].endswith(stop)]
            if found:
                longest = max(found, key=len)
                shown = characters[: end - len(longest)]
                return "".join(character for character, shows in shown if shows), longest, count
    return texts[-1], None, len(ids)


def fast(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], stops: list[str], early: int
) -> tuple[str, str | None, int]:
    state = TextState(tokenizer, prompt, tuple(stops))
    shown = ""
    for count, token in enumerate(ids, start=1):
        state = state.copy() if count % 3 == 0 else state
        text, matched = state.push(token, Way.PASSES if count <= early else Way.ENDS)
        shown += text
        if matched is not None:
            return shown, matched, count
    return shown + state.flush(), None, len(ids)


def spelled(tokenizer: Tokenizer) -> list[int]:
    """Ids that meet often: specials, line ends, a few letters, a character in pieces, and a broken byte."""
    backend = tokenizer._backend
    names = ["<s>", "</s>", "<|user|>", "a", "b", "▁", "Ġ", "<0x0A>", "Ċ", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>"]
    names += ["â", "Ĥ", "¬", "▁red", "Ġred"]
    return [token for token in map(backend.token_to_id, names) if token is not None]


def some_stop(tokenizer: Tokenizer, ids: list[int], dice: random.Random) -> str:
    """A piece of what is written, or of nearly that."""
    texts = readings(tokenizer, [], ids)
    line = "".join(character for character, _ in written(tokenizer, ids, texts)[0]).replace("\ufffd", "a") or "a"
    start = dice.randrange(len(line))
    stop = line[start : start + dice.randrange(1, 14)]
    return stop if dice.random() < 0.7 else stop + dice.choice("ab\n<")


@pytest.mark.parametrize("name", SORTS)
def test_equals_a_look_at_all_that_is_written(name: str) -> None:
    tokenizer, dice, stopped = sorts()[name], random.Random(8), 0
    choices = spelled(tokenizer)
    for _ in range(400):
        ids = dice.choices(choices, k=dice.randrange(1, 11))
        whole = [cut for cut in range(len(ids)) if not tokenizer.decode(ids[:cut]).endswith("\ufffd")]
        cut, early = dice.choice(whole), dice.choice([0, 0, 1, 2])
        stops = [some_stop(tokenizer, ids, dice) for _ in range(dice.randrange(1, 4))]
        expected = slow(tokenizer, ids[:cut], ids[cut:], stops, min(early, len(ids) - cut))
        assert fast(tokenizer, ids[:cut], ids[cut:], stops, early) == expected, (ids, cut, stops, early)
        stopped += expected[1] is not None
    assert 100 < stopped < 380


EXAMPLES = [
    ("<|user|>", "a<|user|>b", "a", 2),
    ("\n<|user|>", "ab\n<|user|>", "ab", 4),
    ("\n<|user|>a", "b\n<|user|>ab", "b", 4),
    ("</s>a", "b</s></s>a", "b", 4),
    ("<|user|></s>", "\n<|user|></s>", "\n", 3),
    ("<|user|>\nab", "\n<|user|>\naa", "\n\naa", None),
    ("\n<|user|>", "\n\n</s><|user|>", "\n\n", None),
    ("user", "a<|user|>", "a", 2),
    ("<|", "\n<|user|>", "\n", 2),
]


@pytest.mark.parametrize(("stop", "line", "shown", "count"), EXAMPLES)
def test_special_tokens_count_with_their_names(stop: str, line: str, shown: str, count: int | None) -> None:
    tokenizer = sorts()["byte fallback"]
    ids = tokenizer.encode_continuation(line)
    expected = (shown, None, len(ids)) if count is None else (shown, stop, count)
    assert fast(tokenizer, [1], ids, [stop], 0) == expected
    letters = [token for character in "<|user|>" for token in tokenizer.encode_continuation(character)]
    spelled_out = [each for token in ids for each in (letters if token == tokenizer.one_token("<|user|>") else [token])]
    if "</s>" not in line:  # the same written in letters is text, and stops as well
        expected_text = line if count is None else line[: line.index(stop)]
        assert fast(tokenizer, [1], spelled_out, [stop], 0)[:2] == (expected_text, stop if count else None)


def test_a_text_that_turns_out_otherwise_ends_nothing_late() -> None:
    """A character that becomes whole by a token that may not end the run."""
    tokenizer = sorts()["byte fallback"]
    euro = [tokenizer._backend.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    for way in (Way.PASSES, Way.FREE):
        state = TextState(tokenizer, [1], ("€",))
        told = [state.push(token)[1] for token in euro[:2]] + [state.push(euro[2], way)[1]]
        assert told == [None, None, None]
        assert state.push(tokenizer.one_token("a")) == ("€a", None)


@pytest.mark.parametrize("way", [Way.PASSES, Way.FREE])
def test_what_may_not_end_the_run_begins_a_stop_or_does_not(way: Way) -> None:
    """A stop string may begin in the first tokens and end after them; what the user wrote is none of it."""
    for name in SORTS:
        tokenizer = sorts()[name]
        state = TextState(tokenizer, [1], ("\n\n",))
        [newline] = tokenizer.encode_continuation("\n")
        first, second = state.push(newline, way), state.push(newline)
        rest = state.flush()
        if way is Way.PASSES:
            assert (first, second[1]) == (("", None), "\n\n")
        else:
            assert second[1] is None
            assert first[0] + second[0] + rest == "\n\n"


@pytest.mark.parametrize("stop", ["</s>", "the</s>", "e</s>", "<"])
def test_the_end_of_sequence_may_complete_a_stop_string(llm: LLM, stop: str) -> None:
    run = llm.start("one", SamplingParams(stop=[stop]))
    for token in llm.tokenizer.encode_continuation(" then the</s>"):
        run.step(force=token)
    assert (run.finish_reason, run.stop_reason) == (FinishReason.STOP, stop)
    assert run.text == " then the".removesuffix(stop.split("<")[0])
    assert run.ids[-1] == llm.tokenizer.one_token("</s>")


def test_a_stop_id_may_complete_a_stop_string(llm: LLM) -> None:
    [red] = llm.tokenizer.encode_continuation(" red")
    run = llm.start("one", SamplingParams(stop=[" the red"], stop_ids=[red]))
    run.step(force=" the")
    assert run.text == ""
    run.step(force=red)
    assert (run.text, run.stop_reason) == ("", " the red")
    other = llm.start("one", SamplingParams(stop=["d red"], stop_ids=[red]))
    other.step(force=" the"), other.step(force=red)
    assert (other.text, other.stop_reason) == (" the", red)


def test_a_run_stops_on_a_special_token(llm: LLM) -> None:
    script = llm.tokenizer.encode_continuation(" dog\n<|user|>the fox")
    params = SamplingParams(stop=["\n<|user|>the"])
    run = llm.start("one", params)
    for token in script:
        if run.finish_reason is None:
            run.step(force=token)
    assert (run.text, run.stop_reason) == (" dog", "\n<|user|>the")
    assert run.ids[run.prompt_length :] == script[: script.index(llm.tokenizer.one_token("<|user|>")) + 2]
    run.rewind(1)
    run.step(force=" fox")
    assert (run.text, run.finish_reason) == (" dog\n fox", None)


def test_min_tokens_let_no_stop_string_end_the_run(llm: LLM) -> None:
    script = llm.tokenizer.encode_continuation("\n\n<|user|>\n\n the")
    assert len(script) == 6
    ends = []
    for min_tokens in range(7):
        run = llm.start("one", SamplingParams(stop=["\n\n", "<|user|>\n"], min_tokens=min_tokens))
        for token in script:
            if run.finish_reason is None:
                run.step(force=token)
        ends.append((len(run.steps), run.text, run.stop_reason))
    assert ends[:3] == [(2, "", "\n\n")] * 3
    assert ends[3:5] == [(4, "\n\n", "<|user|>\n")] * 2
    assert ends[5:] == [(5, "\n\n", "\n\n"), (6, "\n\n\n\n the", None)]


# The same wherever a run is started.

SCRIPT = " dog\n<|user|>the fox"


@pytest.fixture
def scripted(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every run takes these tokens, whatever its model thinks of them."""
    script = Tokenizer.open(tiny_folder).encode_continuation(SCRIPT)
    choose = Sampler.choose

    def choose_next(sampler: Sampler, run: Sequence, row: LogitsRow, position: int, forced: int | None) -> Choice:
        place = position - run.prompt_length
        return choose(sampler, run, row, position, script[place] if place < len(script) else forced)

    monkeypatch.setattr(Sampler, "choose", choose_next)
    return script


# The stop string, the text, and how many tokens come.
ENDINGS: dict[str, tuple[str, int]] = {
    "<|user|>": (" dog\n", 3),
    "\n<|user|>the": (" dog", 4),
    "<|user|>fox": (" dog\nthe fox", 5),
}


@pytest.fixture(scope="module")
def serving(tiny_folder: Path) -> Iterator[Running]:
    yield from served(LLM(tiny_folder))


@pytest.mark.parametrize("stop", ENDINGS)
def test_every_way_in_stops_on_special_tokens(
    scripted: list[int], llm: LLM, serving: Running, tiny_folder: Path, capsys: pytest.CaptureFixture[str], stop: str
) -> None:
    text, count = ENDINGS[stop]
    reason = stop if count < len(scripted) else None
    params = SamplingParams(stop=[stop], max_tokens=len(scripted))
    done = llm.generate("one", params)
    assert not isinstance(done, list)
    assert (done.text, done.ids, done.stop_reason) == (text, scripted[:count], reason)
    assert "".join(step.text for step in llm.stream("one", params)) == text
    asked = {"stop": stop, "max_tokens": len(scripted), "return_token_ids": True}
    for path, prompt in (
        ("/v1/completions", {"prompt": "one", "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one"}], "n": 2}),
    ):
        for choice in serving.post(path, **prompt, **asked).json["choices"]:
            assert choice.get("text", choice.get("message", {}).get("content")) == text
            assert (choice["token_ids"], choice["stop_reason"]) == (scripted[:count], reason)
        chunks = [chunk["choices"][0] for chunk in serving.post(path, **prompt, **asked, stream=True).events]
        first = [chunk for chunk in chunks if chunk["index"] == 0]
        told = [chunk["text"] if "text" in chunk else chunk["delta"].get("content", "") for chunk in first]
        assert "".join(told) == text
        assert [token for chunk in first for token in chunk["token_ids"]] == done.ids
        assert first[-1]["stop_reason"] == reason
    typed = ["run", "one", "--model", str(tiny_folder), "--stop", stop, "--max-tokens", str(len(scripted)), "--json"]
    assert main(typed) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["text"], printed["ids"], printed["stop_reason"]) == (text, scripted[:count], reason)
