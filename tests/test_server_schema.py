"""schemathesis against the served document: every route, every check, data that fits and data that does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from byhand import LLM
from byhand.server.guard import Rules
from tests.serving import Running, served

KEY = "a-key-for-schemathesis"
CONFIG = Path(__file__).parent / "schemathesis"


@pytest.fixture(scope="module")
def server(tiny_folder: Path) -> Iterator[Running]:
    yield from served(LLM(tiny_folder), rules=Rules(api_key=KEY))


def run(server: Running, folder: Path, examples: int, phases: str, seed: int = 1) -> str:
    """schemathesis' own report; it ends with 0 where nothing failed. What it keeps for itself goes to `folder`."""
    shutil.copytree(CONFIG, folder, dirs_exist_ok=True)
    st = Path(sys.executable).parent / "st"
    done = subprocess.run(
        [
            str(st),
            "--config-file",
            "schemathesis.toml",
            "run",
            f"http://127.0.0.1:{server.port}/openapi.json",
            *("--header", f"Authorization: Bearer {KEY}"),
            *("--phases", phases),
            *("--max-examples", str(examples)),
            *("--seed", str(seed)),
            # 66 texts of full length may be asked for at once.
            *("--request-timeout", "60"),
            *("--max-response-time", "60"),
            *("--checks", "all"),
            *("--mode", "all"),
            *("--suppress-health-check", "all"),
            *("--warnings", "off"),
            "--continue-on-failure",
            "--no-color",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-12_000:]
    assert "Tested: 11" in report, report
    return report


def test_the_document_is_kept(server: Running, tmp_path: Path) -> None:
    run(server, tmp_path, 5, "examples,coverage,fuzzing")


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_the_document_is_kept_for_long(server: Running, tmp_path: Path, seed: int) -> None:
    run(server, tmp_path, 200, "examples,coverage,fuzzing,stateful", seed)


def test_the_document_knows_the_models_limits(server: Running) -> None:
    document = server.get("/openapi.json", Authorization=f"Bearer {KEY}").json
    ids = document["components"]["schemas"]["DetokenizeRequest"]["properties"]["ids"]
    assert (ids["maxItems"], ids["items"]["maximum"]) == (131_072, 383)
    assert set(document["paths"]) == {
        "/",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/read",
    }
    assert "x-byhand" not in str(document)
    assert "422" not in str(document)
