"""What many tests share: a tiny random model with a tokenizer of its own, on disk and opened."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import torch
from hypothesis import settings

import byhand.opened
from byhand import LLM
from byhand.engine.worker import Worker
from byhand.kernels import backends
from tests.checkpoints import CONFIGS, KERNELS, make_checkpoint
from tests.commandline import Cli

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browsing import Reader
    from tests.serving import Running

torch.set_num_threads(1)

# The same examples every time, so that a change is judged and not the dice; HYPOTHESIS_PROFILE=explore throws them.
# No deadline: a machine that others use stands still at times.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--kernels NAME` runs the tests over that backend wherever they name none."""
    parser.addoption("--kernels", choices=backends(), help="the backend where a test names none")


def pytest_configure(config: pytest.Config) -> None:
    """Models of tests/checkpoints.py, and LLM's "auto", take the backend that was asked for."""
    chosen = config.getoption("--kernels")
    if chosen is None:
        return
    KERNELS["tests"] = chosen
    given = byhand.opened.open_kernels
    byhand.opened.open_kernels = lambda name, *rest, **options: given(  # type: ignore[assignment]
        chosen if name == "auto" else name, *rest, **options
    )


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of files that use a browser are marked `page`, so that they can be left out."""
    for item in items:
        names = vars(getattr(item, "module", None) or type(item)).values()
        if any(getattr(value, "__module__", None) == "tests.browsing" for value in names):
            item.add_marker("page")


TEXT = "the quick brown fox jumps over a lazy dog, and then the dog sleeps. one two three: red, green, blue. " * 8


def write_tokenizer(folder: Path, vocab_size: int = 384) -> None:
    """Train a byte-level BPE of this size with <s>, </s> and chat markers, and write it beside a checkpoint."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "<s>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_llama(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A random Llama of 384 ids and 256 positions with its tokenizer: greedy runs wander and rarely end."""
    config = {
        **CONFIGS["llama", "tiny"],
        "vocab_size": 384,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    make_checkpoint(folder, config, seed=seed)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def worker(tiny_folder: Path) -> Iterator[Worker]:
    """The tiny model's worker; at the end no page is held."""
    worker = Worker(LLM(tiny_folder))
    worker.opened.result(30)
    yield worker
    worker.close()
    assert worker.stats().pages_used == 0


@pytest.fixture(autouse=True)
def told_nothing(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told once is told in every test, and nothing is remembered in the user's own cache."""
    folder = tmp_path_factory.getbasetemp() / f"told-{uuid4()}"
    monkeypatch.setattr("byhand.cli.notice.told_folder", lambda: folder)


@pytest.fixture
def cli(tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Command lines on the tiny model."""
    return Cli(tiny_folder, capsys, monkeypatch)


@pytest.fixture
def llm(tiny_folder: Path) -> LLM:
    """A fresh engine on the tiny model."""
    return LLM(tiny_folder)


@pytest.fixture(scope="session")
def embedded() -> LLM:
    """The model that ships."""
    return LLM()


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """A command that opens a model freezes the collector; what an earlier test left must still be collected."""
    yield
    gc.unfreeze()


# The page: its server, a browser, and somebody before it.


@pytest.fixture(scope="module")
def server(embedded: LLM) -> Iterator[Running]:
    from tests.serving import served

    yield from served(embedded, may_keep_runs=True)


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    from tests.browsing import browser

    with browser() as one:
        yield one


@pytest.fixture
def reader(server: Running, opened: Browser) -> Iterator[Reader]:
    from tests.browsing import reader_of

    with reader_of(server, opened, viewport={"width": 1440, "height": 1000}) as one:
        yield one
