"""A newcomer's first hour: the built wheel with the locked versions runs, in an empty folder, all the README shows.

Part of make campaign: it builds, and installs into an environment of its own, and so needs the network.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMPT = "A list of colors: red"
# What the README's one-line summaries stand for; {folder} is the newcomer's.
SPELT_OUT = [
    f'byhand tokenize "{PROMPT}"',
    "byhand models",
    "byhand quantize {model} int8-folder --to int8",
    "byhand help run",
    f'byhand run "{PROMPT}" --model int8-folder --max-tokens 4',
    "byhand convert {model} copied",
    "byhand serve --help",
    "byhand bench --help",
]


def checked(command: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done


class Newcomer:
    """A folder with nothing in it, an environment with nothing but byhand, and no byhand cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "home"
        self.folder.mkdir()
        self.bin = folder / "venv" / "bin"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "BYHAND_CACHE": str(folder / "cache"),
            "COLUMNS": "100",
        }

    def install(self) -> None:
        out = self.folder.parent / "dist"
        checked([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], self.folder)
        [wheel] = out.glob("*.whl")
        checked([sys.executable, "-m", "venv", str(self.bin.parent)], self.folder)
        pip = [
            str(self.bin / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            str(ROOT / "constraints.txt"),
        ]
        checked([*pip, f"{wheel}[verify]"], self.folder)

    def types(self, line: str, stdin: str = "") -> str:
        """What a line typed into their shell prints; it must go well."""
        [model] = self.bin.parent.glob("lib/*/site-packages/byhand/assets/tiny")
        words = shlex.split(line.format(model=model))
        return checked(words, self.folder, env=self.environment, input=stdin).stdout

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Their `byhand serve`, answering."""
        port = free_port()
        command = [str(self.bin / "byhand"), "serve", "--port", str(port)]
        server = subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL)
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield port
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(url: str, seconds: float = 120) -> None:
    for _ in range(int(seconds * 10)):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    one = Newcomer(tmp_path_factory.mktemp("newcomer"))
    one.install()
    return one


def shown() -> list[str]:
    """The commands that the README shows whole: the demo's and those of its lists."""
    listed = re.findall(r"^    (byhand \w+(?: [^\s·#]+| \"[^\"]*\")*)(?:   .*|)$", README, re.MULTILINE)
    return [*re.findall(r"^\$ (byhand .*)$", README, re.MULTILINE), *(line.strip() for line in listed)]


@pytest.mark.parametrize(
    "line", [line for line in [*shown(), *SPELT_OUT] if line != "byhand serve" and "SOURCE" not in line]
)
def test_every_command_of_the_readme_runs(newcomer: Newcomer, line: str) -> None:
    printed = newcomer.types(line, stdin="Hello\n" if line == "byhand chat" else "")
    assert printed or line.startswith(("byhand quantize", "byhand convert"))


def test_every_command_that_the_readme_names_is_among_them() -> None:
    named = set(re.findall(r"byhand (\w+)", README)) - {"import"}
    commands = {line.split()[1] for line in [*shown(), *SPELT_OUT]}
    help_text = checked([sys.executable, "-m", "byhand", "--help"], ROOT).stdout
    known = set(re.findall(r"^    (\w+) ", help_text, re.MULTILINE))
    assert named & known <= commands
    assert known <= commands


def test_the_python_of_the_readme_runs(newcomer: Newcomer) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "→ ':'" in newcomer.types(shlex.join(["python", "-c", code]).replace("{", "{{").replace("}", "}}"))


def test_the_servers_curl_gets_its_answer(newcomer: Newcomer) -> None:
    [script] = re.findall(r"```sh\n(curl .*?)```", README, re.DOTALL)
    with newcomer.serving() as port:
        answer = checked(["sh", "-c", script.replace("8000", str(port))], newcomer.folder).stdout
    assert '"text":", blue, green' in answer
