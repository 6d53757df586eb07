"""A built wheel holds all that run needs, and works from any folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
# The systems and versions that the lock is for.
MACHINES = [
    {"python_version": version, "python_full_version": f"{version}.9", "sys_platform": system, "platform_machine": kind}
    for version in ("3.11", "3.12", "3.13")
    for system, kind in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("model.safetensors", "tokenizer.json", "config.json", "README.md"):
        assert f"byhand/assets/tiny/{name}" in names
    assert "byhand/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "training/", "lessons/", "benchmarks/"))]


def test_the_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import byhand, pathlib; assert pathlib.Path(byhand.__file__).is_relative_to({str(site)!r}), byhand.__file__;"
        "from byhand.cli.main import main;"
        "raise SystemExit(main(['run', 'A list of colors: red', '--max-tokens', '4']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A list of colors: red") or "," in done.stdout


def test_the_wheel_says_where_peers_are_measured(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "from byhand.cli.main import main; raise SystemExit(main(['bench', '--peers', 'llama.cpp']))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "other engines are measured from a checkout of byhand" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_versions_agree() -> None:
    import byhand

    assert f"## {byhand.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def named(*extras: str) -> set[str]:
    """The packages that byhand and these extras ask for, those of extras named in extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        asked += [Requirement(line) for line in project["optional-dependencies"][extra]]
    inner = {extra for each in asked if each.name == "byhand" for extra in each.extras}
    names = {canonicalize_name(each.name) for each in asked if each.name != "byhand"}
    return names | (named(*inner) if inner else set())


def applies(requirement: Requirement, machine: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(list(machine.values())[::2]))
def test_the_lock_holds_one_exact_version_of_everything(machine: dict[str, str]) -> None:
    locked = [canonicalize_name(each.name) for each in LOCK if applies(each, machine)]
    assert len(locked) == len(set(locked))
    assert named("test", "verify", "notebook", "bench", "train") <= set(locked)
    assert all(re.fullmatch(r"==[\w.+]+", str(each.specifier)) for each in LOCK)


def test_the_lock_was_made_by_make_lock_with_the_torch_that_was_chosen() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    [torch] = re.findall(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "make lock" in text.splitlines()[1]
    assert f"torch=={torch}" in text.splitlines()
    assert "://" not in text
    assert "--hash" not in text
