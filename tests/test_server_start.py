"""What stands before serving: what cannot be is told before anything heavy is imported, and a signal ends a start."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from byhand import LLM, opened
from byhand.cli import serve
from byhand.cli.main import main
from byhand.errors import BadRequest
from byhand.server.listening import listen, url_of
from tests.serving import Process, byhand_serve, ended, until

HEAVY = {"torch", "numba", "numpy", "fastapi", "tokenizers"}
# `byhand serve` with a part of it replaced, in a process of its own that imports no torch.
CHANGED = """
import sys, time, byhand.cli.serve as serve
from byhand.cli.main import main
{change}
sys.exit(main(["serve", "--port", "0"]))
"""


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    started = byhand_serve()
    yield started
    ended(started)


def test_it_says_that_it_serves_when_it_answers(process: Process) -> None:
    assert until(lambda: len(process.said) >= 2), process.said
    starting, serving = process.said[:2]
    assert starting == f"byhand: starting at http://127.0.0.1:{process.port}: opening byhand-tiny"
    assert serving == f"byhand: serving byhand-tiny at http://127.0.0.1:{process.port} (Ctrl-C stops)"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_what_is_still_starting(number: signal.Signals, code: int) -> None:
    change = "serve.opened_warm = lambda _: time.sleep(60)"  # a model that takes long to open
    command = [sys.executable, "-c", CHANGED.format(change=change)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = int(process.stderr.readline().partition("127.0.0.1:")[2].partition(":")[0])
    assert Process(port).get("/health").status == 503
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(20) == code
    assert time.monotonic() - began < 10
    assert process.stderr.read().endswith("byhand: stopped before byhand-tiny was open\n")


def test_sigterm_before_it_listens_is_obeyed_too() -> None:
    change = "import os, signal; serve.limits_from = lambda _: os.kill(os.getpid(), signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", CHANGED.format(change=change)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `byhand serve` says before it gives up, with nothing heavy imported: no model is opened, no worker made."""
    with patch.object(serve, "_serve", side_effect=AssertionError("it went on")):
        assert main(["serve", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture
def localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of this machine's with its addresses, also where no file of the system's has it."""
    found = socket.getaddrinfo

    def find(host: str, *rest: Any, **more: Any) -> list[Any]:
        addresses = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        return [each for address in addresses for each in found(address, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", find)


def test_a_taken_port_is_told_before_anything_heavy(localhost: None, capsys: pytest.CaptureFixture[str]) -> None:
    for address, host in (("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("::1", "::1")):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as taken:
            try:
                taken.bind((address, 0))
            except OSError:  # a machine without IPv6
                assert host == "::1"
                continue
            taken.listen()
            port = taken.getsockname()[1]
            said = refused(capsys, "--host", host, "--port", str(port))
            assert said == (
                f"byhand: {host}:{port} cannot be listened on: address already in use "
                "(--port takes another one, and --port 0 any that is free)\n"
            )


def test_a_host_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--host", "192.0.2.1", "--api-key", "12345678")
    assert "192.0.2.1:8000 cannot be listened on: cannot assign requested address" in said


def test_a_model_that_cannot_be_opened_is_told_before_anything_heavy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    for folder, sentence in (("no/such/folder", "does not exist"), (str(tmp_path), "`model_type` is 'phi3'")):
        assert sentence in refused(capsys, "--model", folder)


def test_all_addresses_of_a_name_share_one_port(localhost: None) -> None:
    listening = listen("localhost", 0)
    assert len({one.getsockname()[1] for one in listening}) == 1
    assert url_of(listening[0]).startswith("http://127.0.0.1:")
    for one in listening:
        one.close()


def test_before_it_listens_nothing_heavy_is_imported() -> None:
    change = "serve._serve = lambda *_: print(*sys.modules) or 0"
    command = [sys.executable, "-c", CHANGED.format(change=change)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "byhand.server.listening" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


def test_a_containers_limit_is_the_memory_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = opened._memory()
    for written, expected in (("1000000\n", 1_000_000), ("max\n", without), (str(2**62), without)):
        (tmp_path / "memory.max").write_text(written)
        monkeypatch.setattr(opened, "CONTAINER_LIMITS", (tmp_path / "none", tmp_path / "memory.max"))
        assert opened._memory() == expected


@pytest.mark.parametrize("tokens", [10**12, 10**9])
def test_a_cache_that_memory_cannot_hold_is_refused(tokens: int, tiny_folder: Path) -> None:
    with pytest.raises(BadRequest, match=r"takes .* GB, and this machine has .* GB .*--cache-tokens") as refusal:
        LLM(tiny_folder, cache_tokens=tokens * 16)
    assert refusal.value.param == "cache_tokens"
    largest = int(str(refusal.value).rstrip(")").split()[-1])
    with patch("byhand.opened.KVCache.__init__", return_value=None), pytest.raises(AttributeError):
        LLM(tiny_folder, cache_tokens=largest)  # passes the check
