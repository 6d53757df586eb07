"""The browser of the page's tests: where it is looked for, in which order, and what is said where none can be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import chromium

ROOT = Path(__file__).parents[1]


class Machine:
    """A machine on which only some ways to a browser lead to one; what is run there is written down."""

    def __init__(self, patch: pytest.MonkeyPatch, *, has: tuple[str, ...] = (), gives: tuple[str, ...] = ()) -> None:
        self.has, self.gives = set(has), gives
        self.ran: list[str] = []
        self.user = 0
        self.trouble = ""
        patch.delenv("CHROMIUM", raising=False)
        patch.setattr(chromium, "run", self.run)
        patch.setattr(chromium, "trouble", cache(lambda: self.trouble))
        patch.setattr(chromium, "starts", lambda path: Path(path).name in self.has and not chromium.trouble())
        patch.setattr(chromium, "of_playwright", lambda: "/venv/theirs" if "playwright" in self.has else None)
        patch.setattr(chromium, "APPLICATIONS", ())
        patch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in {*self.has, "apt-get"} else None)
        patch.setattr(os, "geteuid", lambda: self.user)
        patch.setattr(chromium, "WAYS", tuple(getattr(chromium, way.__name__) for way in chromium.WAYS))

    def run(self, command: list[str], seconds: int, environment: object = None) -> bool:
        """What fetching gives here."""
        self.ran.append(" ".join(command))
        given = "playwright" if "playwright" in command else command[-1]
        if given in self.gives:
            self.has.add(given)
            self.trouble = "" if "libatomic1" in command else self.trouble
        return given in (*self.gives, "update")


def outcome(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Exit code, path, and the lines said."""
    code = chromium.main()
    captured = capsys.readouterr()
    return code, captured.out.strip(), captured.err.splitlines()


def test_the_systems_own_comes_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(monkeypatch, has=("google-chrome", "playwright"))
    assert outcome(capsys) == (0, "/usr/bin/google-chrome", [])
    assert machine.ran == []


def test_playwrights_is_downloaded_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, gives=("playwright", "chromium"))
    code, path, said = outcome(capsys)
    assert (code, path, len(said)) == (0, "/venv/theirs", 1)
    assert machine.ran == [f"{sys.executable} -m playwright install chromium"]
    assert outcome(capsys) == (0, "/venv/theirs", [])  # and is there the next time


def test_root_gets_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(monkeypatch, gives=("chromium",))
    code, path, said = outcome(capsys)
    assert (code, path) == (0, "/usr/bin/chromium")
    assert "apt-get install libatomic1 chromium" in said[-1]
    assert machine.ran[-1] == "/usr/bin/apt-get install --yes --no-install-recommends libatomic1 chromium"


def test_playwright_itself_may_not_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(monkeypatch, has=("chromium",), gives=("playwright", "chromium"))
    machine.trouble, machine.user = "node: libatomic.so.1: no such file", 1000
    code, path, [said] = outcome(capsys)
    assert (code, path, machine.ran) == (2, "", [])
    assert machine.trouble in said
    assert "make test PAGE=no" in said
    machine.user = 0  # root gets what is missing
    code, path, _ = outcome(capsys)
    assert (code, path) == (0, "/usr/bin/chromium")


def test_what_keeps_playwright_from_starting_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chromium.trouble.cache_clear()
    assert chromium.trouble() == ""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho node: libatomic.so.1 is not here >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    chromium.trouble.cache_clear()
    try:
        assert chromium.trouble() == "node: libatomic.so.1 is not here"
        assert not chromium.starts("/usr/bin/true")
        assert chromium.of_playwright() is None
    finally:
        chromium.trouble.cache_clear()


def test_others_are_told_and_nothing_is_asked_of_sudo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, gives=("chromium",))
    machine.user = 1000
    code, path, said = outcome(capsys)
    assert (code, path, said[-1]) == (2, "", chromium.MISSING)
    assert machine.ran == [f"{sys.executable} -m playwright install chromium"]
    assert "make test PAGE=no" in chromium.MISSING


def test_a_browser_that_does_not_start_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho this is a stub >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(chromium, "APPLICATIONS", ())
    assert shutil.which("chromium") == str(broken)
    assert chromium.of_the_system() is None


def test_a_named_one_that_does_not_start_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, has=("chromium",))
    monkeypatch.setenv("CHROMIUM", "/usr/bin/less")
    code, path, [said] = outcome(capsys)
    assert (code, path) == (2, "")
    assert "/usr/bin/less" in said


def planned(*arguments: str) -> str:
    """What `make test` would run, nothing done."""
    command = ["make", "--dry-run", "--always-make", "test", *arguments]
    # A make inside a make, as when these tests are run by one, would say so and take its flags.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PAGE"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_page_can_be_left_out_and_that_is_said() -> None:
    whole, without = planned(), planned("PAGE=no")
    assert "tests.chromium" in whole
    assert "not page" not in whole
    assert "tests.chromium" not in without
    assert without.count("pytest") == without.count("not page") == whole.count("pytest")
    assert "left out" in without.splitlines()[-1]
