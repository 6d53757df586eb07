"""The lesson runs: every cell of the notebook, on the embedded model, with the answers it promises."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

LESSONS = Path(__file__).parents[1] / "lessons"


@pytest.fixture(scope="module")
def notebook() -> Any:
    book = nbformat.read(LESSONS / "manual_inference.ipynb", as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    return book


def results(notebook: Any, source: str) -> list[Any]:
    """The outputs of the cell that contains this source."""
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    return list(cell.outputs)


def text_of(notebook: Any, source: str) -> str:
    """The last result of a cell as plain text."""
    output = results(notebook, source)[-1]
    return str(output.text if output.output_type == "stream" else output.data["text/plain"])


def test_no_cell_fails_or_warns(notebook: Any) -> None:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", output
            # The judge shows a progress bar of its own.
            assert output.get("name") != "stderr" or "transformers" in cell.source, (cell.source, output.text)


def test_five_steps_by_hand_are_generate(notebook: Any) -> None:
    assert text_of(notebook, "completion.text, input_ids + completion.ids == ids").endswith("True)")
    assert text_of(notebook, "output[0].tolist() == ids") == "True"


def test_the_gibberish_is_the_reading(notebook: Any) -> None:
    lines = text_of(notebook, "print(reading)").strip().split("\n")
    assert len(lines) == 8
    assert "'<s>My dog likes to' → ' play'" in text_of(notebook, "print(reading)")


def test_the_two_phases(notebook: Any) -> None:
    lines = text_of(notebook, "cache {before}").strip().split("\n")
    assert "prefill: " in lines[0]
    assert all("decode: 1 position(s)" in line for line in lines[1:])


def test_it_runs_on_to_the_end_token(notebook: Any) -> None:
    assert "'stop'" in text_of(notebook, "run.finish_reason, run.stop_reason")
    assert "</s>" in text_of(notebook, "run.finish_reason, run.stop_reason")


def test_reading_step_and_run_have_rich_views(notebook: Any) -> None:
    for source in ("reading\n", "run.steps[-1]", "for step in run:\n    pass"):
        cells = [cell for cell in notebook.cells if (cell.source + "\n").startswith(source)]
        assert "text/html" in cells[0].outputs[-1].data, source


def test_it_ends_with_a_server_that_types(notebook: Any) -> None:
    said = "".join(output.text for output in results(notebook, "connect(address)") if output.output_type == "stream")
    story, told = said.split("\n\n")[-2:]
    found = re.fullmatch(r"(\d+) pieces: the first after (\d+) ms, the last after (\d+) ms\n", told)
    assert found is not None
    pieces, first, last = map(int, found.groups())
    assert 20 <= pieces <= 60
    assert 0 < first < last
    assert len(story) > pieces
    assert "'length'" in text_of(notebook, "connect(address)") or "'stop'" in text_of(notebook, "connect(address)")
    ended = [cell.source for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert ended == "server.shutdown()"


def test_the_extra_holds_what_the_notebook_imports() -> None:
    project = tomllib.loads((LESSONS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["notebook"]]
    named = {name for need in wanted for name in re.findall(r"^byhand\[([\w,]+)\]", need) for name in name.split(",")}
    wanted += [need for name in named for need in extras[name]]
    installed = {re.split(r"[^\w-]", need)[0] for need in wanted} | {"byhand", *sys.stdlib_module_names}
    book = nbformat.read(LESSONS / "manual_inference.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported - installed == set()
    assert {"ipykernel", "jupyterlab"} <= installed
