"""The hub, against a small one of our own on this machine; the client runs in a process of its own."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import CONFIGS, greedy, make_checkpoint, open_model, random_prompt, rewrite_config, tiny
from tests.test_weights import shard

ROOT = Path(__file__).parents[1]
PROMPTS = [random_prompt(128, 9, seed=1)]

FETCH = """
import sys
from byhand.checkpoint import open_checkpoint
from byhand.errors import ByhandError
arguments = [None if argument == "-" else argument for argument in sys.argv[1:]]
try:
    checkpoint = open_checkpoint(arguments[0], arguments[1], weights=arguments[2] != "description")
    print(checkpoint.folder, checkpoint.identity.name)
except ByhandError as error:
    print(type(error).__name__, error, sep=": ")
"""


@dataclass
class FakeHub:
    """Answers as the hub does, for the folders it is given."""

    repos: dict[str, dict[str, Path]] = field(default_factory=dict)  # id → revision → folder
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)  # files whose connection breaks half-way, once
    status: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range

    def commit(self, repo: str, revision: str) -> tuple[str, Path] | None:
        """The commit and folder of a revision, which may be named by its commit."""
        for name, folder in self.repos[repo].items():
            commit = hashlib.sha1(f"{repo}/{name}".encode()).hexdigest()
            if revision in (name, commit):
                return commit, folder
        return None

    def fetched(self) -> list[str]:
        """The names of the files that were sent."""
        return sorted({Path(path).name for method, path, _ in self.requests if method == "GET" and "/resolve/" in path})


class Handler(BaseHTTPRequestHandler):
    """One request of the hub's API."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, b'{"error": "no"}', X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def respond(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status:
            self.fail(self.hub.status, "Trouble")
            return
        is_api = path.startswith("/api/models/")
        rest = path.removeprefix("/api/models/").strip("/")
        repo = next((name for name in self.hub.repos if rest == name or rest.startswith(f"{name}/")), None)
        if repo is None:
            self.fail(401, "RepoNotFound")
            return
        parts = rest.removeprefix(repo).strip("/").split("/")
        kind, revision = (parts[0] or "revision"), (parts[1] if len(parts) > 1 else "main")
        found = self.hub.commit(repo, revision)
        if found is None:
            self.fail(404, "RevisionNotFound")
        elif is_api:
            self.describe(repo, kind, *found)
        elif repo in self.hub.gated and self.headers.get("Authorization") != "Bearer good":
            self.fail(403, "GatedRepo")
        else:
            self.send(found[0], found[1] / "/".join(parts[2:]))

    def describe(self, repo: str, kind: str, commit: str, folder: Path) -> None:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        tree = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name, file in zip(names, files, strict=True)
        ]
        info = {"id": repo, "modelId": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        self.answer(200, json.dumps(tree if kind == "tree" else info).encode(), Content_Type="application/json")

    def send(self, commit: str, file: Path) -> None:
        if not file.is_file():
            self.fail(404, "EntryNotFound")
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[start:], **headers)
        elif self.command == "GET" and file.name in self.hub.cut:
            self.hub.cut.remove(file.name)
            self.answer(200, data[: len(data) // 2], **headers, Content_Length=str(len(data)))
            self.close_connection = True
        else:
            self.answer(200, data, **headers)


@dataclass
class Client:
    """Opens checkpoints in a process whose hub is the fake one."""

    endpoint: str
    home: Path

    def open(self, name: str, revision: str = "-", what: str = "all", **environment: str) -> tuple[str, str]:
        """What was printed on stdout and on stderr."""
        cleared = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        paths = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        run = [sys.executable, "-c", FETCH, name, revision, what]
        done = subprocess.run(
            run, capture_output=True, text=True, cwd=ROOT, env={**cleared, **paths, **environment}, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1, done.stdout
        return done.stdout.strip(), done.stderr


@pytest.fixture
def hub(tmp_path: Path) -> FakeHub:
    return FakeHub({"owner/tiny": {"main": tiny(tmp_path / "repo")}})


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path) -> Iterator[Client]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Client(f"http://127.0.0.1:{server.server_port}", tmp_path / "home")
    server.shutdown()
    server.server_close()
    thread.join()


def folder_of(stdout: str) -> Path:
    return Path(stdout.rsplit(" ", 1)[0])


def test_fetch_once_then_from_the_cache_even_offline(hub: FakeHub, client: Client) -> None:
    repo = hub.repos["owner/tiny"]["main"]
    (repo / "README.md").write_text("not needed")
    (repo / "pytorch_model.bin").write_bytes(b"never fetched beside safetensors")
    (repo / "consolidated.safetensors").write_bytes(b"the same weights again")
    (repo / "onnx").mkdir()
    (repo / "onnx" / "config.json").write_text("{}")
    (repo / "tokenizer.json").write_text("{}")

    stdout, stderr = client.open("owner/tiny")
    folder = folder_of(stdout)
    assert stdout.endswith(" owner/tiny")
    assert hub.fetched() == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(file.name for file in folder.iterdir()) == hub.fetched()
    assert "100%" in stderr
    assert greedy(open_model(folder), PROMPTS, 4) == greedy(open_model(repo), PROMPTS, 4)

    hub.requests.clear()
    assert client.open("owner/tiny")[0] == stdout
    assert hub.fetched() == []
    hub.requests.clear()
    assert client.open("owner/tiny", HF_HUB_OFFLINE="1")[0] == stdout
    assert hub.requests == []
    assert client.open("owner/tiny", HF_ENDPOINT="http://127.0.0.1:9")[0] == stdout


def test_a_broken_connection_is_resumed_where_it_broke(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    # The client counts in chunks of 10 MiB, so the file must be larger than two.
    big = make_checkpoint(tmp_path / "big", {**CONFIGS["llama", "tiny"], "vocab_size": 60_000})
    hub.repos["owner/big"] = {"main": big}
    hub.cut.add("model.safetensors")
    stdout, _ = client.open("owner/big")
    assert filecmp.cmp(folder_of(stdout) / "model.safetensors", big / "model.safetensors", shallow=False)
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert ranges == [None, f"bytes={10 * 2**20}-"]


def test_an_interrupted_fetch_goes_on_with_the_files_that_lack(hub: FakeHub, client: Client) -> None:
    repo = hub.repos["owner/tiny"]["main"]
    shard(repo, lambda tensors, path: torch.save(tensors, path), "pytorch_model", "bin")
    client.open("owner/tiny", what="description")
    assert hub.fetched() == ["config.json", "generation_config.json"]
    hub.requests.clear()
    stdout, _ = client.open("owner/tiny")
    assert hub.fetched() == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]
    assert greedy(open_model(folder_of(stdout)), PROMPTS, 4) == greedy(open_model(repo), PROMPTS, 4)
    assert client.open("owner/tiny", HF_HUB_OFFLINE="1")[0] == stdout


def test_an_incomplete_cache_offline(client: Client) -> None:
    client.open("owner/tiny", what="description")
    stdout, _ = client.open("owner/tiny", HF_HUB_OFFLINE="1")
    assert stdout.startswith("HubError: the cached copy of owner/tiny is incomplete, and HF_HUB_OFFLINE is set")


def test_a_revision(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    other = tiny(tmp_path / "other", seed=5)
    hub.repos["owner/tiny"]["v2"] = other
    expected = load_file(other / "model.safetensors")["lm_head.weight"]
    stdout, _ = client.open("owner/tiny", "v2")
    assert torch.equal(load_file(folder_of(stdout) / "model.safetensors")["lm_head.weight"], expected)
    stdout, _ = client.open("owner/tiny", "v3")
    assert stdout == "HubError: owner/tiny has no revision 'v3'"


def test_a_name_without_an_owner(hub: FakeHub, client: Client) -> None:
    hub.repos["tiny2"] = hub.repos["owner/tiny"]
    assert client.open("tiny2")[0].endswith(" tiny2")


def test_gated(hub: FakeHub, client: Client) -> None:
    hub.gated.add("owner/tiny")
    stdout, _ = client.open("owner/tiny")
    assert stdout == (
        "HubError: owner/tiny is gated: its owner lets in only those who have accepted its terms "
        f"(accept them at {client.endpoint}/owner/tiny, then set HF_TOKEN)"
    )
    assert client.open("owner/tiny", HF_TOKEN="good")[0].endswith(" owner/tiny")


def test_not_found(client: Client) -> None:
    stdout, _ = client.open("owner/nothing")
    assert stdout == (
        f"HubError: owner/nothing is neither a folder or file here nor a model on {client.endpoint} "
        "(a private model needs HF_TOKEN)"
    )


@pytest.mark.parametrize("revision", ["-", "v1"])
def test_offline_and_not_cached(revision: str, client: Client) -> None:
    at = "" if revision == "-" else " at revision v1"
    stdout, _ = client.open("owner/tiny", revision, HF_HUB_OFFLINE="1")
    assert stdout == (
        f"HubError: owner/tiny{at} is no folder here and not in the cache, "
        "and HF_HUB_OFFLINE is set (unset it once, to fetch owner/tiny)"
    )


def test_unreachable_and_not_cached(client: Client) -> None:
    stdout, _ = client.open("owner/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert stdout == (
        "HubError: owner/tiny is no folder here and not in the cache, and http://127.0.0.1:9 cannot be reached "
        "(check the network and try again)"
    )


def test_a_hub_in_trouble(hub: FakeHub, client: Client) -> None:
    hub.status = 418
    stdout, _ = client.open("owner/tiny")
    assert (
        stdout
        == f"HubError: owner/tiny is no folder here and not in the cache, and {client.endpoint} answers with status 418"
    )


def test_a_name_that_is_no_id(client: Client) -> None:
    stdout, _ = client.open("owner/a--b")
    assert stdout.startswith("HubError: 'owner/a--b' is not the id of a model: ")


def test_a_cache_that_cannot_be_written(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stdout, _ = client.open("owner/tiny", HF_HOME=str(tmp_path / "file"))
    assert stdout.startswith("HubError: owner/tiny could not be fetched: ")
    assert "Not a directory" in stdout


def test_a_repository_that_is_no_checkpoint(hub: FakeHub, client: Client) -> None:
    repo = hub.repos["owner/tiny"]["main"]
    (repo / "config.json").rename(repo / "params.json")
    stdout, _ = client.open("owner/tiny")
    assert stdout == "CheckpointNotFound: owner/tiny is not a checkpoint: it has no config.json"


def test_what_cannot_be_opened_is_told_before_its_weights_are_fetched(hub: FakeHub, client: Client) -> None:
    repo = hub.repos["owner/tiny"]["main"]
    rewrite_config(repo, model_type="gemma3")
    stdout, _ = client.open("owner/tiny")
    assert stdout.startswith("UnknownArchitecture: `model_type` is 'gemma3' in ")
    assert hub.fetched() == ["config.json", "generation_config.json"]


def test_an_adapter_and_a_gguf_file_on_the_hub(hub: FakeHub, client: Client) -> None:
    repo = hub.repos["owner/tiny"]["main"]
    (repo / "config.json").unlink()
    (repo / "model.safetensors").rename(repo / "tiny-Q4_K_M.gguf")
    stdout, _ = client.open("owner/tiny")
    assert stdout.startswith("CheckpointNotFound: owner/tiny holds tiny-Q4_K_M.gguf: a GGUF file")
    (repo / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    hub.repos["owner/adapter"] = {"main": repo}
    stdout, _ = client.open("owner/adapter")
    assert stdout.startswith("CheckpointNotFound: ")
    assert " is a LoRA adapter for 'owner/base', not a whole model" in stdout
