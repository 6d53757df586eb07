"""A model whose logits are NaN or infinite: a named error to whoever asked, and to nobody else."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from websockets.sync.client import connect

from byhand import LLM, SamplingParams
from byhand.errors import ByhandError, NotFinite
from tests.checkpoints import rewrite_tensors
from tests.conftest import tiny_llama
from tests.serving import Running, served

BAD, GOOD = [0, 200, 40, 41], [0, 40, 41, 42]  # a run that reads token 200 is lost
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
SENTENCE = "the model produced 384 logits out of 384 that are not finite, so no token can be chosen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one row of its embedding damaged."""
    folder = tiny_llama(tmp_path_factory.mktemp("damaged") / "llama")

    def damage(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["model.embed_tokens.weight"][200] = torch.nan
        return tensors

    rewrite_tensors(folder, damage)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder)


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> list[int]:
    """What the undamaged model makes of GOOD."""
    return LLM(tiny_folder).generate(GOOD, GREEDY).ids  # type: ignore[union-attr]


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_python_has_an_error_by_name(kernels: str, folder: Path, expected: list[int]) -> None:
    llm = LLM(folder, kernels=kernels)
    for act in (
        lambda: llm.generate(BAD, GREEDY),
        lambda: llm.generate([GOOD, BAD], GREEDY),
        lambda: llm.start(BAD).step(),
        lambda: llm.start(GOOD).insert(BAD),
        lambda: llm.read(BAD),
        lambda: llm.score(BAD),
    ):
        with pytest.raises(NotFinite, match=SENTENCE):
            act()
    assert llm.generate(GOOD, GREEDY).ids == expected  # type: ignore[union-attr]
    run = llm.start(BAD)
    with pytest.raises(NotFinite):
        run.step()
    gc.collect()
    assert (run.finish_reason, llm.engine.pages_in_use) == ("error", 0)
    assert issubclass(NotFinite, ByhandError)


def test_infinity_is_named_too(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")

    def damage(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["lm_head.weight"][7] = 3e38
        return tensors

    rewrite_tensors(folder, damage)
    with pytest.raises(NotFinite, match="the model produced 1 logits out of 384 that are not finite"):
        LLM(folder).generate(GOOD)


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Running]:
    yield from served(llm, may_keep_runs=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("echo", [False, True])
def test_a_client_of_completions_is_told(server: Running, stream: bool, n: int, echo: bool) -> None:
    answer = server.post("/v1/completions", prompt=BAD, stream=stream, n=n, echo=echo, logprobs=2)
    error = answer.events[-1]["error"] if stream else answer.error
    assert (error["code"], error["type"]) == ("logits_not_finite", "server_error")
    assert SENTENCE in error["message"]
    assert answer.status == (200 if stream else 500)
    assert server.is_empty


def test_a_client_of_read_is_told(server: Running) -> None:
    answer = server.post("/read", prompt=BAD)
    *_, last = [json.loads(line) for line in answer.body.decode().splitlines()]
    assert last["error"]["code"] == "logits_not_finite"


def test_others_go_on(server: Running, expected: list[int]) -> None:
    asked = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
    for _ in range(3):  # the pages of the lost run are used again
        both = server.post("/v1/completions", prompt=[BAD, GOOD], **asked)
        assert both.error["code"] == "logits_not_finite"
        assert server.post("/v1/completions", prompt=GOOD, **asked).json["choices"][0]["token_ids"] == expected
    assert server.get("/health").status == 200


def test_a_live_client_is_told_and_goes_on(server: Running, expected: list[int]) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/live") as socket:

        def ask(**frame: Any) -> list[dict[str, Any]]:
            socket.send(json.dumps(frame))
            got = [json.loads(socket.recv(timeout=20))]
            while got[-1]["event"] not in ("error", "paused", "finished", "changed"):
                got.append(json.loads(socket.recv(timeout=20)))
            return got

        params = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}
        other = ask(op="start", prompt=GOOD, params=params, top=0)[-1]["run"]
        lost = ask(op="start", prompt=BAD, params=params, top=0)[-1]["run"]
        error = ask(op="step", run=lost, id=5)[-1]
        assert (error["code"], error["run"], error["id"]) == ("logits_not_finite", lost, 5)
        assert SENTENCE in error["message"]
        steps = [frame["step"]["token"]["id"] for frame in ask(op="run", run=other) if frame["event"] == "step"]
        assert steps == expected
        # Back to before the damage, the lost run goes on too.
        assert ask(op="edit", run=lost, position=1, token=40)[-1]["event"] == "changed"
        assert ask(op="step", run=lost)[-1]["event"] in ("paused", "finished")
