"""docs/server.md is true: its tables are the shapes', its examples run, its codes are the code's."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import COLUMNS, table, write_table
from byhand import LLM
from byhand.sampling.params import fields_table
from byhand.server.app import create_app
from byhand.server.manual import renewed
from byhand.server.shapes import ChatRequest, CompletionRequest
from tests.serving import Running, served

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from served(LLM())


def test_the_tables_are_the_shapes() -> None:
    assert renewed(PAGE) == PAGE, "python -m byhand.server.manual docs/server.md"


def test_the_figures_are_the_results(tmp_path: Path) -> None:
    page = tmp_path / "server.md"
    page.write_text(PAGE, encoding="utf-8")
    write_table(page, sorted((ROOT / "benchmarks" / "results" / "serving").glob("*.json")))
    made = "python -m benchmarks.serving --table docs/server.md benchmarks/results/serving/*.json"
    assert page.read_text(encoding="utf-8") == PAGE, made


def test_a_row_of_figures_is_a_median_with_its_spread() -> None:
    told = {"model": "embedded", "streams": 4, "contestant": "byhand serve"}
    bursts = [told | dict.fromkeys(COLUMNS, value) for value in (900.0, 1200.4, 1000.0)]
    other = told | {"streams": 1} | dict.fromkeys(COLUMNS, 1.26)
    lines = table([*bursts, other]).splitlines()[2:]
    assert lines[0] == "| embedded | 1 | byhand serve | 1 |" + " 1.3 (1.3–1.3) |" * 5
    assert lines[1] == "| embedded | 4 | byhand serve | 3 |" + " 1,000 (900–1,200) |" * 5


def commands() -> list[str]:
    """The page's, and the README's one."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [block], [first] = (re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for page in (PAGE, readme))
    return [first, *(command for command in block.split("\n\n") if command.strip())]


@pytest.mark.parametrize("command", commands(), ids=lambda text: re.findall(r"8000(\S+)", text)[0])
def test_the_commands_run(server: Running, command: str) -> None:
    here = command.replace(":8000", f":{server.port}")
    done = subprocess.run(["sh", "-c", here], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 127:
        pytest.skip("curl is not installed")
    assert done.returncode == 0
    assert "error" not in done.stdout
    if '"stream"' in command:
        assert done.stdout.endswith("data: [DONE]\n\n")
    elif "/read" in command:
        assert [json.loads(line)["position"] for line in done.stdout.splitlines()] == [0, 1, 2, 3]
    else:
        assert json.loads(done.stdout)


def test_the_python_runs(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code.replace(":8000", f":{server.port}"), "server.md", "exec"), {})
    assert capsys.readouterr().out.startswith(", ")


def test_every_route_is_told(server: Running) -> None:
    app = server.server.app
    assert create_app is not None
    paths = {route.path for route in app.router.routes if getattr(route, "include_in_schema", True)}
    for path in paths - {"/v1/models/{name:path}"}:
        assert f"`{path}`" in PAGE or f"[{path}]" in PAGE, path


def test_every_code_is_told() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "byhand" / "server").glob("*.py"))
    codes = set(re.findall(r'code="([a-z_]+)"', sources)) - {"invalid_request", "invalid_http"}
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


def test_every_sampling_field_can_be_asked_for() -> None:
    elsewhere = {"json_schema", "json_object", "regex", "choices", "stages", "max_tokens", "logprobs"}
    names = {info.name for info in fields_table()} - elsewhere
    assert names <= set(CompletionRequest.model_fields)
    assert names <= set(ChatRequest.model_fields)
    for name in names:
        assert f"`{name}`" in PAGE
