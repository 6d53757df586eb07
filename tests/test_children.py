"""Processes that byhand starts are isolated: nothing that lies in the current folder is run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import byhand
from benchmarks.peers import PEERS, is_installed
from byhand import children
from byhand.bench.process import EngineFailed, Worker
from byhand.text.renderer import Renderer

PACKAGE = Path(byhand.__file__).parent
# What starts a process, by the module that holds it.
STARTERS = {
    "subprocess": {"Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "posix_spawn", "posix_spawnp", "fork", "forkpty"}
    | {f"{way}{ending}" for way in ("exec", "spawn") for ending in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "pty": {"spawn", "fork"},
}
NEVER = {"multiprocessing", "pty", "ProcessPoolExecutor"}
# The files that may start processes; what each starts is tried below, but for the peers' exporters.
KNOWN = {"byhand/bench/process.py", "byhand/kernels/native/compiling.py", "byhand/text/renderer.py"}
KNOWN |= {"benchmarks/peers/__init__.py", "benchmarks/peers/export.py"}


def starts(tree: ast.AST) -> list[str]:
    """What in a file starts a process: functions by the name they are called by, and modules that do nothing else."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [node.attr] * (node.attr in STARTERS.get(node.value.id, ()))
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found += [*(names & STARTERS.get(node.module or "", set())), *(NEVER & {*names, node.module})]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in NEVER]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.run(['ls'])",
        "from subprocess import Popen as P",
        "import os\nos.system('ls')",
        "import os\nos.execvp('ls', [])",
        "import multiprocessing.pool",
        "from multiprocessing import Process",
        "from concurrent.futures import ProcessPoolExecutor",
    ],
)
def test_what_starts_a_process_is_seen(source: str) -> None:
    assert starts(ast.parse(source))


def test_only_these_files_start_processes_and_all_take_their_command_from_one() -> None:
    folders = (PACKAGE, PACKAGE.parent / "benchmarks" / "peers")
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    files = {path.relative_to(PACKAGE.parent).as_posix(): path for path in paths}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    assert {name for name, tree in trees.items() if starts(tree)} == KNOWN
    own = {name for name in KNOWN if any(map(is_interpreter, ast.walk(trees[name])))}
    assert not own, "whoever starts Python takes the command from children.py"


def is_interpreter(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "executable"


HOSTILE = (
    "numba",
    "numpy",
    "torch",
    "json",
    "runpy",
    "sitecustomize",
    "usercustomize",
    "jinja2",
    "llvmlite",
    "resource",
)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder holds modules by names that everybody imports; each leaves a mark where it is run."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(folder)!r} + '/RUN', 'a').write('{name} ')\nraise SystemExit(1)")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", str(folder), ".", *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(folder), "."]))
    monkeypatch.setenv("BYHAND_CACHE", str(tmp_path / "cache"))
    return folder


def compile_beside() -> None:
    command = children.module("byhand.kernels.native.compiling")
    done = subprocess.run(command, input="round_rows\n", capture_output=True, text=True, check=False)
    assert done.stdout == "round_rows\n", done.stderr


def render() -> None:
    renderer = Renderer(seconds=20)
    assert renderer.render("{{ messages }}!", {"messages": "a"}) == "a!"
    renderer.close()


def measure() -> None:
    with Worker("one") as worker:
        assert worker.ask("memory")["peak"] > 0


def open_a_peers_adapter() -> None:
    with Worker("one") as worker, pytest.raises(EngineFailed, match="KeyError: 'folder'"):
        worker.ask("convert", module="benchmarks.peers.llama_cpp")


def look_for_a_peer() -> None:
    assert is_installed(PEERS["transformers"], sys.executable)


@pytest.mark.parametrize("start", [compile_beside, render, measure, open_a_peers_adapter, look_for_a_peer])
def test_nothing_in_the_current_folder_is_run(start: Callable[[], None], trap: Path) -> None:
    start()
    assert not (trap / "RUN").exists(), (trap / "RUN").read_text()


@pytest.mark.full
def test_a_first_run_in_a_folder_of_somebody_elses(trap: Path) -> None:
    command = [str(Path(sys.executable).with_name("byhand")), "run", "A list of colors: red", "--max-tokens", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert not (trap / "RUN").exists(), (trap / "RUN").read_text()


def test_this_very_byhand_is_run_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(
        PACKAGE, tmp_path / "site" / "byhand", ignore=shutil.ignore_patterns("__pycache__", "assets", "web")
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    code = "import subprocess; from byhand import children; "
    code += "print(subprocess.run(children.code('import byhand; print(byhand.__file__)'), capture_output=True).stdout)"
    for place in (tmp_path, tmp_path / "site"):
        done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
        assert str(tmp_path / "site" / "byhand" / "__init__.py") in done.stdout, done.stderr
