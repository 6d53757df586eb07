"""The README is true: its Python runs, its commands print what it shows, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from byhand.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Times differ from run to run.
TIMES = re.compile(r"\d+(\.\d+)? ?(ms|s)\b|\d+(\.\d+)?/s")
# So do versions, from one environment to the next.
VERSIONS = re.compile(r"\b\d+\.\d+\.\d+\S*")


def demo_blocks() -> list[tuple[str, str]]:
    """Each command of the demo, and what it printed."""
    [demo] = re.findall(r"<!-- demo -->\n```console\n(.*?)```", README, re.DOTALL)
    parts = re.split(r"^\$ byhand (.*)\n", demo, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("command", "printed"), demo_blocks(), ids=lambda text: text.split()[0])
def test_the_demo_prints_what_the_readme_shows(
    command: str, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(shlex.split(command)) == 0
    captured = capsys.readouterr()
    assert clean(captured.out)
    assert set(clean(printed)) <= set(clean(captured.out + captured.err))
    assert set(clean(captured.out)) <= set(clean(printed))


def clean(text: str) -> list[str]:
    """The lines, without times, versions, the script's headings, and white space at their ends."""
    lines = (VERSIONS.sub("VERSION", TIMES.sub("TIME", line)).strip() for line in text.splitlines())
    return [line for line in lines if line and not re.match(r"# [A-Z]", line)]


def test_the_demo_shows_the_lessons_four_steps() -> None:
    assert [command.split()[0] for command, _ in demo_blocks()] == ["tokenize", "read", "run", "verify"]
    script = (ROOT / "lessons" / "demo.sh").read_text()
    for command, _ in demo_blocks():
        assert command.split()[0] in script


def test_the_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "'<s>A list of colors' → ':'" in capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    help_text = capsys.readouterr().out
    named = set(re.findall(r"^    byhand (\w+)", README, re.MULTILINE)) | {"verify", "replay", "models", "convert"}
    for name in named:
        assert f"\n    {name} " in help_text
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
