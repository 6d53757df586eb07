"""What a type checker makes of programs that use byhand: right ones pass, and each mistake is found at its line."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from byhand.sampling.options import AllOptions, Options
from byhand.sampling.params import SamplingParams, fields_table

HERE = Path(__file__).parent
# Only what the answers' types need is followed: torch alone would take half a minute.
SETTINGS = """
[mypy]
strict = true
[mypy-torch.*,numpy.*,tokenizers.*,huggingface_hub.*,safetensors.*,byhand.engine.*,byhand.kernels.*,byhand.models.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, int, str]]:
    """(file, line, code) of everything that mypy finds in both files, in one go."""
    from mypy import api

    folder = tmp_path_factory.mktemp("mypy")
    (folder / "mypy.ini").write_text(SETTINGS)
    files = [str(HERE / "typed" / name) for name in ("right.py", "wrong.py")]
    said, complaints, _ = api.run(["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder), *files])
    assert complaints == ""
    lines = re.findall(r"^(\S+\.py):(\d+): error: .*\[([\w-]+)\]$", said, re.MULTILINE)
    return {(Path(name).name, int(line), code) for name, line, code in lines}


def test_the_keywords_are_the_fields() -> None:
    keywords = {name: hint.__forward_arg__ for name, hint in AllOptions.__annotations__.items()}
    kept = {field.name: field.type for field in fields(SamplingParams)}
    assert set(keywords) == set(kept)
    plain = [info.name for info in fields_table() if info.kind in ("number", "integer", "flag", "text")]
    assert {name: keywords[name] for name in plain} == {name: kept[name] for name in plain}
    assert set(AllOptions.__annotations__) - set(Options.__annotations__) == {"n"}


def test_right_programs_pass(found: set[tuple[str, int, str]]) -> None:
    assert {item for item in found if item[0] != "wrong.py"} == set()


def test_each_mistake_is_found(found: set[tuple[str, int, str]]) -> None:
    lines = (HERE / "typed" / "wrong.py").read_text().splitlines()
    marked = {(number, line.partition("# fault: ")[2]) for number, line in enumerate(lines, 1) if "# fault: " in line}
    assert {(number, code) for name, number, code in found if name == "wrong.py"} == marked
