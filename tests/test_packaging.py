"""A built wheel holds all that run needs, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("model.safetensors", "tokenizer.json", "config.json", "README.md"):
        assert f"byhand/assets/tiny/{name}" in names
    assert "byhand/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "training/", "lessons/"))]


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


def test_the_versions_agree() -> None:
    import byhand

    assert f"## {byhand.__version__}" in (ROOT / "CHANGELOG.md").read_text()
