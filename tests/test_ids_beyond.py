"""A tokenizer that knows more ids than the model has: every way in has the same sentence, and nothing else breaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from byhand import LLM, SamplingParams, naive
from byhand.errors import PromptError
from tests.conftest import tiny_llama
from tests.serving import Running, served

SIZE = 300  # ids of the model; its tokenizer has 318
WORD = "the quick brown fox jumps"  # none of its words is a token below SIZE
KNOWN = "q"
GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)
SENTENCE = r"token id \d+ \('.*'\) at place \d+; this model's ids are 0 to 299 \(its tokenizer has 318 ids"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    # The end-of-sequence id lies beyond too: it can never come.
    folder = tiny_llama(tmp_path_factory.mktemp("beyond") / "llama", vocab_size=SIZE, eos_token_id=[1, 310])
    generation = {"eos_token_id": [1, 310]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return LLM(folder)


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Running]:
    yield from served(llm, may_keep_runs=True)


def beyond(llm: LLM) -> str:
    """The text of one token that the model lacks."""
    token = next(token for token in llm.tokenize(WORD) if token.id >= SIZE)
    return token.text


WAYS: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate(WORD),
    "generate many": lambda llm: llm.generate([KNOWN, WORD]),
    "generate ids": lambda llm: llm.generate([0, 301]),
    "chat": lambda llm: llm.chat([{"role": "user", "content": WORD}]),
    "start": lambda llm: llm.start(WORD),
    "stream": lambda llm: list(llm.stream(WORD)),
    "read": lambda llm: llm.read(WORD),
    "iter_read": lambda llm: list(llm.iter_read(WORD)),
    "score": lambda llm: llm.score(WORD),
    "score ids": lambda llm: llm.score([0, 301]),
    "logits": lambda llm: llm.logits(llm.tokenizer.encode(WORD)),
    "encode": lambda llm: llm.encode(WORD),
    "chat_ids": lambda llm: llm.chat_ids([{"role": "user", "content": WORD}]),
    "naive": lambda llm: naive.generate(llm, WORD),
    "force": lambda llm: llm.start(KNOWN).step(force=beyond(llm)),
    "insert": lambda llm: llm.start(KNOWN).insert(WORD),
    "edit": lambda llm: llm.start(KNOWN).edit(1, beyond(llm)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_into_the_model_has_the_sentence(llm: LLM, way: str) -> None:
    with pytest.raises(PromptError, match=SENTENCE):
        WAYS[way](llm)


def test_a_run_goes_on_after_such_a_refusal(llm: LLM) -> None:
    run = llm.start(KNOWN, GREEDY)
    before = run.ids
    for act in (lambda: run.insert(WORD), lambda: run.edit(1, beyond(llm)), lambda: run.step(force=beyond(llm))):
        with pytest.raises(PromptError):
            act()
    assert run.ids == before
    assert len(list(run)) == 4


def test_the_tokens_of_such_a_text_can_be_looked_at(llm: LLM) -> None:
    assert max(token.id for token in llm.tokenize(WORD)) >= SIZE


def test_an_end_that_the_model_cannot_say_is_none_of_its_ends(llm: LLM) -> None:
    assert llm.eos_ids == {1}
    # What looks at the ends' logits finds them all.
    assert len(llm.generate(KNOWN, SamplingParams(min_tokens=3, max_tokens=3)).ids) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": WORD}),
        ("/v1/completions", {"prompt": [KNOWN, WORD]}),
        ("/v1/completions", {"prompt": [0, 301]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": WORD}]}),
        ("/read", {"prompt": WORD}),
    ],
)
def test_every_route_has_the_sentence(server: Running, path: str, body: dict[str, Any]) -> None:
    answer = server.post(path, **body)
    assert (answer.status, answer.error["param"]) == (400, "prompt")
    assert "this model's ids are 0 to 299" in answer.error["message"]


def test_tokenizing_shows_them(server: Running) -> None:
    answer = server.post("/tokenize", text=WORD)
    assert answer.status == 200
    assert max(token["id"] for token in answer.json["tokens"]) >= SIZE


def ask(socket: ClientConnection, **frame: Any) -> dict[str, Any]:
    """The error, or the end, of one frame."""
    socket.send(json.dumps({"id": 7, **frame}))
    while (answer := json.loads(socket.recv(timeout=20)))["event"] not in ("error", "paused", "finished"):
        pass
    return dict(answer)


def test_live_has_the_sentence(server: Running, llm: LLM) -> None:
    word = beyond(llm)
    params = {"temperature": 0, "stop_ids": [999]}
    with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
        for frame in ({"prompt": WORD}, {"prompt": [0, 301]}, {"messages": [{"role": "user", "content": WORD}]}):
            refused = ask(socket, op="start", **frame)
            assert (refused["code"], refused["param"]) == ("invalid_value", "prompt")
            assert "this model's ids are 0 to 299" in refused["message"]
        assert ask(socket, op="start", prompt=KNOWN, params=params)["event"] == "paused"
        for frame in (
            {"op": "insert", "text": WORD},
            {"op": "insert", "ids": [301]},
            {"op": "edit", "position": 1, "token": word},
            {"op": "force", "token": word},
            {"op": "step", "until": {"token": word}},
        ):
            refused = ask(socket, **frame)
            assert refused["event"] == "error"
            assert "this model's ids are 0 to 299" in refused["message"]
        # Breakpoints look at the probability of every end; those that the model lacks have none.
        assert ask(socket, op="step", until={"end_probability": 0.99})["event"] in ("paused", "finished")
