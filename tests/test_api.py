"""The Python API as people use it: keywords, prompts of every kind, scores of continuations, what the prompt shows."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
from collections import UserList
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from select import select
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from byhand import LLM, BadRequest, ByhandError, Completion, MissingExtra, PromptError, Run, SamplingParams
from byhand.text import ChatTemplate
from tests.conftest import tiny_llama

PROMPT = "the quick brown fox jumps"
IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder)


# Keywords.


def test_fields_are_keywords(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=4, max_tokens=6)
    expected = llm.generate(PROMPT, params)
    assert llm.generate(PROMPT, temperature=0.9, seed=4, max_tokens=6) == like(expected)
    assert llm.generate([PROMPT], temperature=0.9, seed=4, max_tokens=6)[0] == like(expected)
    assert [step.token for step in llm.stream(PROMPT, temperature=0.9, seed=4, max_tokens=6)] == like(expected).tokens
    assert [step.token for step in llm.start(PROMPT, temperature=0.9, seed=4, max_tokens=6)] == like(expected).tokens
    assert llm.chat(PROMPT, params) == like(llm.chat(PROMPT, temperature=0.9, seed=4, max_tokens=6))


class like:  # noqa: N801
    """Equal to a completion of the same tokens and text; the times differ."""

    def __init__(self, completion: Completion) -> None:
        self.whole = (completion.prompt_ids, completion.ids, completion.text, completion.finish_reason)
        self.tokens = [step.token for step in completion.steps]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Completion) and like(other).whole == self.whole


def test_keywords_replace_fields_of_params(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.9, seed=4)
    done = llm.generate(PROMPT, params, max_tokens=2)
    assert done.ids == llm.generate(PROMPT, params).ids[:2]
    assert params.max_tokens == 6


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("temprature", "temperature"),
        ("temp", "temperature"),
        ("do_sample", "temperature"),
        ("num_return_sequences", "n"),
        ("stop_token_ids", "stop_ids"),
        ("topp", "top_p"),
    ],
)
def test_a_keyword_that_is_none_names_the_one_that_was_meant(llm: LLM, written: str, meant: str) -> None:
    others = (llm.start(IDS).set, llm.checkpoint_params, SamplingParams, SamplingParams().replace)
    for use in (llm.generate, llm.start, llm.stream, llm.chat, *others):
        arguments = [] if use in others else [PROMPT]
        with pytest.raises(BadRequest) as caught:
            use(*arguments, **{written: 1})  # type: ignore[operator]
        assert str(caught.value) == f"unknown sampling parameter `{written}` (did you mean `{meant}`?)"
        assert caught.value.param == written


def test_params_of_another_kind_name_the_way(llm: LLM) -> None:
    for params in ({"max_tokens": 2}, 5, "hot"):
        with pytest.raises(
            BadRequest, match=r"`params` is a \w+; it must be SamplingParams \(or its fields as keywords"
        ):
            llm.generate(PROMPT, params)  # type: ignore[call-overload]


def test_n_as_a_keyword_gives_a_list(llm: LLM) -> None:
    for n in (1, 3):
        choices = llm.generate(PROMPT, n=n, temperature=1.0, seed=5, max_tokens=4)
        assert [type(choice) for choice in choices] == [Completion] * n
        assert [choice.ids for choice in llm.chat(PROMPT, n=n, max_tokens=2)] == [
            llm.chat(PROMPT, max_tokens=2).ids
        ] * n
    assert isinstance(llm.generate(PROMPT, SamplingParams(n=1, max_tokens=1)), Completion)
    assert isinstance(llm.generate(PROMPT, SamplingParams(n=2, max_tokens=1)), list)
    assert len(llm.generate([PROMPT, IDS], n=2, max_tokens=1)) == 4


def test_a_text_is_one_message_of_the_users(llm: LLM) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    assert llm.render_chat("the fox") == llm.render_chat(messages) == "<s><|user|>the fox<|assistant|>"
    assert llm.chat_ids("the fox") == llm.chat_ids(messages)
    assert llm.chat("the fox", max_tokens=4).ids == llm.chat(messages, max_tokens=4).ids
    assert llm.chat_ids(iter(messages)) == llm.chat_ids(messages)  # type: ignore[arg-type]


def test_a_role_that_is_none_is_refused(llm: LLM, embedded: LLM) -> None:
    for one in (llm, embedded):
        for role in ("system", "developer", "user", "assistant", "tool"):
            one.chat_ids([{"role": role, "content": "hi"}])
        with pytest.raises(BadRequest) as caught:
            one.chat([{"role": "user", "content": "hi"}, {"role": "usr", "content": "hi"}])
        known = "system, developer, user, assistant, tool, function, or a role that the chat template names"
        assert str(caught.value) == f"messages[1].role is 'usr'; it must be one of {known}"
        assert caught.value.param == "messages[1].role"


def test_a_role_that_the_template_names_is_read() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'ipython' %}out: {% endif %}{{ m.content }}{% endfor %}"
    )
    assert template.render([{"role": "ipython", "content": "5"}]) == "out: 5"


# Prompts of every kind.


@pytest.mark.parametrize(
    "ids",
    [
        (5, 6, 7),
        range(5, 8),
        UserList(IDS),
        np.array(IDS),
        np.array(IDS, dtype=np.uint8),
        list(np.array(IDS)),
        torch.tensor(IDS),
        list(torch.tensor(IDS)),
    ],
    ids=str,
)
def test_ids_of_every_kind(llm: LLM, ids: Any) -> None:
    assert llm.encode(ids) == IDS
    assert all(type(token) is int for token in llm.encode(ids))
    done = llm.generate(ids, max_tokens=3)
    assert done.prompt_ids == IDS
    assert [one.ids for one in llm.generate([ids, IDS], max_tokens=3)] == [done.ids] * 2
    assert llm.detokenize(ids) == llm.detokenize(IDS)
    assert llm.read(ids).ids == IDS
    assert llm.score(ids).logprobs == llm.score(IDS).logprobs
    assert torch.equal(llm.logits(ids), llm.logits(IDS))
    assert [step.token.id for step in llm.start(PROMPT).insert(ids)] == IDS


def test_a_generator_of_prompts_is_a_list_of_them(llm: LLM) -> None:
    expected = [one.ids for one in llm.generate([PROMPT, "one two"], max_tokens=3)]
    assert [one.ids for one in llm.generate((text for text in (PROMPT, "one two")), max_tokens=3)] == expected
    assert [one.ids for one in llm.generate((PROMPT, "one two"), max_tokens=3)] == expected
    assert llm.generate(iter(IDS), max_tokens=3).prompt_ids == IDS  # type: ignore[call-overload]


BAD_PROMPTS: list[tuple[object, str]] = [
    (None, "the prompt is a NoneType; it must be text or a list of ids"),
    (b"abc", "the prompt is a bytes; it must be text or a list of ids"),
    (5, "the prompt is a int; it must be text or a list of ids"),
    (2.5, "the prompt is a float; it must be text or a list of ids"),
    ({"a": 1}, "the prompt is a dict; it must be text or a list of ids"),
    (np.array(5), "the prompt is a ndarray; it must be text or a list of ids"),
    ([], "the prompt is empty: it has no token at all"),
    (np.array([]), "the prompt is empty: it has no token at all"),
    (np.array([0.5]), "`prompt` holds 0.5 at place 0; a token id is an integer"),
    (torch.tensor([True]), "`prompt` holds True at place 0; a token id is an integer"),
    ([None], "`prompt` holds None at place 0; a token id is an integer"),
    (np.array([[5, 6]]), "`prompt` holds [5, 6] at place 0; a token id is an integer (for several prompts"),
    ([{"role": "user", "content": "hi"}], "a token id is an integer (messages are for llm.chat)"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=lambda value: str(value)[:30])
def test_a_prompt_of_no_kind_is_named(llm: LLM, prompt: Any, message: str) -> None:
    for use in (llm.encode, llm.generate, llm.start, llm.stream, llm.read, llm.score, llm.logits):
        with pytest.raises(PromptError) as caught:
            use(prompt)  # type: ignore[operator]
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", None], "`prompts[1]` is a NoneType; it must be text or a list of ids"),
        ([[5], 7], "`prompts[1]` is a int; it must be text or a list of ids"),
        (["a", b"b"], "`prompts[1]` is a bytes; it must be text or a list of ids"),
        (["a", []], "`prompts[1]` is empty: it has no token at all"),
        ([[5], [999]], "`prompts[1]` holds token id 999 at place 0; this model's ids are 0 to 383"),
        (["a", [5] * 300], "`prompts[1]` has 300 tokens; this model reads 256"),
    ],
    ids=str,
)
def test_of_many_prompts_the_bad_one_is_named(llm: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        llm.generate(prompts)
    assert message in str(caught.value)
    assert caught.value.param == "prompts[1]"
    assert llm.engine.pages_in_use == 0


@pytest.mark.parametrize("ids", [None, 5, "abc", b"abc", {5: 1}], ids=str)
def test_ids_of_no_kind_are_named(llm: LLM, ids: Any) -> None:
    with pytest.raises(PromptError, match=f"`ids` is a {type(ids).__name__}; it must be a list of token ids"):
        llm.detokenize(ids)
    if not isinstance(ids, str):
        with pytest.raises(PromptError, match=f"`text` is a {type(ids).__name__}; it must be text or a list of ids"):
            llm.start(IDS).insert(ids)


# Logits and scores.


def test_logits_take_text(llm: LLM) -> None:
    assert torch.equal(llm.logits(PROMPT), llm.logits(llm.encode(PROMPT)))


def test_a_continuation_is_scored_alone(llm: LLM) -> None:
    whole = llm.score(PROMPT + " over")
    alone = llm.score(PROMPT, " over")
    count = len(llm.encode(PROMPT))
    assert alone.tokens == whole.tokens[count:]
    assert alone.logprobs == whole.logprobs[count:]
    assert alone.ranks == whole.ranks[count:]
    assert alone.perplexity == pytest.approx(math.exp(-alone.total / len(alone.tokens)))
    for prompt, continuation in ((llm.encode(PROMPT), " over"), (PROMPT, [at.id for at in alone.tokens])):
        assert llm.score(prompt, continuation).logprobs == pytest.approx(alone.logprobs, abs=1e-5)


@pytest.mark.parametrize("cut", range(1, len("A list of colors: red")))
def test_wherever_a_text_is_cut_its_tokens_are_those_of_the_whole(embedded: LLM, cut: int) -> None:
    text = "A list of colors: red"
    whole, scored = embedded.score(text), embedded.score(text[:cut], text[cut:])
    first = len(whole.tokens) - len(scored.tokens)
    assert scored.tokens == whole.tokens[first:]
    assert None not in scored.logprobs
    # What is left out lies in the prompt, and what lies across the border is scored.
    before = "".join(token.text for token in whole.tokens[1:first])
    assert text[:cut].startswith(before)
    assert text[:cut] == before or len(before + scored.tokens[0].text) > cut


@pytest.mark.parametrize(
    ("prompt", "continuation", "message"),
    [
        (PROMPT, "", "the continuation is empty: it adds no token to the prompt"),
        (IDS, [], "the continuation is empty: it adds no token to the prompt"),
        (PROMPT, 5, "`continuation` is a int; it must be text or a list of ids"),
        (PROMPT, [999], "`continuation` holds token id 999 at place 0"),
        ([], " over", "the prompt is empty"),
        ([5] * 200, [5] * 100, "the prompt has 300 tokens; this model reads 256"),
    ],
    ids=str,
)
def test_a_continuation_of_no_kind_is_named(llm: LLM, prompt: Any, continuation: Any, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        llm.score(prompt, continuation)
    assert message in str(caught.value)


def test_a_continuation_needs_a_token_before_it(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "bare")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    with pytest.raises(PromptError, match="prompt and continuation begin with the one token 'the'"):
        LLM(folder).score("th", "e")


# What Python's prompt shows.


def test_every_value_shows_itself_in_a_line(embedded: LLM) -> None:
    run = embedded.start("A list of colors: red", max_tokens=4)
    step = [run.step() for _ in range(2)][-1]
    assert repr(run.prompt_tokens()[0]) == "Token(1, '<s>', special)"
    assert repr(step.token) == "Token(693, ' blue')"
    assert repr(embedded.tokenize("\u20ac")[1]).startswith("Token(")
    assert repr(step) == "Step(8: ' blue' 72.6%, rank 1, entropy 0.87)"
    assert repr(run.step(force=" purple")).endswith(", forced)")
    assert repr(step.top[1]) == "Candidate(' green' 21.6%, rank 2)"
    assert repr(run) == "Run('A list of colors: red' → ', blue purple', 10 ids, 9 computed)"
    run.step()
    assert repr(run).endswith("11 ids, 10 computed, length)")
    assert repr(run.completion()) == f"Completion({run.text!r}, 4 tokens, length)"
    assert repr(run.prompt_ids) in repr(run.completion().prompt_ids)
    cut = embedded.start("Once", temperature=1.0, top_k=2, seed=1).step().top
    assert repr(cut[-1]).endswith(", cut by top_k)")
    assert "after the chain" in repr(cut[0])


def test_a_step_prints_its_candidates(embedded: LLM) -> None:
    run = embedded.start("A list of colors: red", temperature=0.5, top_k=3, seed=1)
    run.step()
    step = run.step()
    lines = str(step).split("\n")
    assert lines[0] == repr(step)
    assert len(lines) == 2 + len(step.top)
    assert [line.split()[0] for line in lines[2:]].count("*") == 1
    assert lines[-1].endswith("cut by top_k")


def test_a_reading_and_a_score_show_a_line_for_each_token(embedded: LLM) -> None:
    reading, score = embedded.read("A list of colors: red"), embedded.score("A list of colors: red")
    lines = repr(reading).split("\n")
    assert lines[0].startswith("Reading(7 positions, 0.")
    assert lines[2:4] == [
        "  0  '<s>'      →  '<|user|>'   20.1%  3",
        "  1  'A'        →  ' list'      82.1%  1",
    ]
    assert len(lines) == 2 + 7
    lines = repr(score).split("\n")
    assert lines[0] == f"Score(7 tokens, {score.total:.2f} nats, perplexity {score.perplexity:.2f})"
    assert lines[3].split() == ["'A'", f"{score.logprobs[1]:.2f}", str(score.ranks[1])]


def test_what_is_long_is_cut_in_the_middle(llm: LLM) -> None:
    long = repr(llm.read([5] * 200))
    assert len(long.split("\n")) == 41
    assert "… 162 more …" in long
    assert len(repr(llm.score([5] * 200)).split("\n")) == 41
    assert len(repr(llm.start([5] * 200, max_tokens=30))) < 200
    assert len(str(llm.read([5] * 200)).split("\n")) == 200


# Data.


def test_to_dict_is_what_the_command_line_prints(llm: LLM) -> None:
    run = llm.start(PROMPT, temperature=1.0, seed=4, max_tokens=3)
    run.step()
    assert run.to_dict()["finish_reason"] is None
    done = [step.to_dict() for step in run]
    shown = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert list(shown) == ["model", "prompt_ids", "ids", "text", "finish_reason", "stop_reason", "usage", "steps"]
    assert shown["steps"][1:] == json.loads(json.dumps(done))
    assert {"model": llm.name, **run.completion().to_dict()} == run.to_dict()
    reading = json.loads(json.dumps(llm.read(PROMPT).to_dict(), allow_nan=False))
    assert list(reading) == ["positions"]
    assert [at["id"] for at in reading["positions"]] == llm.encode(PROMPT)
    assert llm.score([5]).to_dict()["perplexity"] is None
    assert json.dumps(llm.score([5]).to_dict(), allow_nan=False)


def test_to_pandas_has_a_row_for_each_token(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    if not find_spec("pandas"):
        monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))  # type: ignore[arg-type]
    run = llm.start(PROMPT, max_tokens=4)
    steps = list(run)
    for frame in (run.to_pandas(), run.completion().to_pandas()):
        assert list(frame.columns)[:4] == ["position", "id", "token", "prob"]
        assert list(frame["id"]) == [step.token.id for step in steps]
        assert list(frame["prob"]) == pytest.approx([math.exp(step.logprob) for step in steps])
    reading = llm.read(PROMPT).to_pandas()
    assert list(reading["predicted"]) == [at.predicted.token.text for at in llm.read(PROMPT)]
    assert len(reading) == len(llm.encode(PROMPT)) == len(llm.score(PROMPT).to_pandas())


class Frame:
    """As much of pandas as is used, for where it is not installed."""

    def __init__(self, rows: list[list[Any]], columns: list[str]) -> None:
        assert all(len(row) == len(columns) for row in rows)
        self.rows, self.columns = rows, columns

    def __getitem__(self, name: str) -> list[Any]:
        return [row[self.columns.index(name)] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)


def test_without_pandas_it_is_said_what_to_install(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for value in (llm.start(IDS), llm.read(IDS), llm.generate(IDS, max_tokens=1), llm.score(IDS)):
        with pytest.raises(MissingExtra) as caught:
            value.to_pandas()  # type: ignore[attr-defined]
        assert str(caught.value) == "to_pandas needs pandas (pip install pandas)"


# Threads, and the end.


def test_threads_get_what_each_would_get_alone(llm: LLM) -> None:
    jobs: list[Callable[[], object]] = [
        lambda: llm.generate(PROMPT, temperature=1.0, seed=3, max_tokens=12).ids,
        lambda: llm.score(PROMPT).logprobs,
        lambda: [(at.predicted.token.id, at.entropy) for at in llm.read(PROMPT)],
        lambda: llm.logits(PROMPT).tolist(),
    ]
    alone = [job() for job in jobs] * 2
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            assert list(pool.map(lambda job: job(), jobs * 2)) == alone
    assert llm.engine.pages_in_use == 0


def test_what_runs_between_two_positions_of_a_reading_changes_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [at.entropy for at in llm.read(PROMPT)]
    monkeypatch.setattr("byhand.engine.runner.LOGITS_BLOCK", 384)
    seen = []
    for at in llm.iter_read(PROMPT):
        seen.append(at.entropy)
        llm.generate([9] * len(llm.encode(PROMPT)), max_tokens=1)
    assert seen == pytest.approx(expected, abs=1e-5)


def test_closing_twice_and_use_after_it(tiny_folder: Path) -> None:
    closed = LLM(tiny_folder)
    run = closed.start(PROMPT)
    closed.chat(PROMPT, max_tokens=1)
    closed.close()
    closed.close()
    for use in (closed.generate, closed.chat, closed.start, closed.stream, closed.read, closed.score, closed.logits):
        with pytest.raises(ByhandError, match="this LLM was closed: open 'llama' again"):
            use(PROMPT)  # type: ignore[operator]
    for name in ("engine", "model", "vocab_size", "context_length", "identity"):
        with pytest.raises(ByhandError, match="this LLM was closed"):
            getattr(closed, name)
    assert run.step().index == 0
    assert "closed" in repr(closed)
    assert run.to_dict()["model"] == closed.name


def test_a_forked_process_is_told_to_open_its_own(llm: LLM) -> None:
    llm.generate(IDS, max_tokens=1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            llm.generate(IDS, max_tokens=1)
        except ByhandError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 1000) if select([reading], [], [], 20)[0] else b"nothing"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert b"another process has opened this model" in said


@pytest.mark.parametrize("model", [5, b"x", "", ["gpt2"]], ids=str)
def test_a_model_of_no_kind_is_named(model: Any) -> None:
    with pytest.raises(BadRequest, match=r"`model` is .*; it must be a folder, a file, a hub id, or None"):
        LLM(model)


def test_torchs_own_names_of_dtypes_and_devices(tiny_folder: Path) -> None:
    opened = LLM(tiny_folder, dtype=torch.float32, device=torch.device("cpu"), cache_dtype=torch.bfloat16)
    assert opened.model.dtype == "float32"
    assert opened.engine.cache.dtype == torch.bfloat16
    for options in ({"device": 5}, {"dtype": 5}, {"dtype": torch.int8}, {"cache_dtype": 5}):
        with pytest.raises(BadRequest, match=f"{next(iter(options))}`? is "):
            LLM(tiny_folder, **options)  # type: ignore[arg-type]


# The documentation.

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_examples_in_the_docs_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/python.md", "exec"), names)
    assert "[Token(643, ' red')]" in capsys.readouterr().out


@pytest.mark.parametrize("owner", [LLM, Run])
def test_the_docs_name_everything_public(owner: type) -> None:
    inside = {
        "driver",
        "start_run",
        "open_run",
        "encode_rendered",
        "check_fits",
        "check_length",
        "check_ids",
        "continuation_ids",
        "token_id",
    }
    names = (
        {name for name in dir(owner) if not name.startswith("_")} - inside - {"borrow", "open", "prefill", "template"}
    )
    assert {name for name in names if not re.search(rf"\b{name}\b", PAGE)} == set()
