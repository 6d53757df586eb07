"""Sees to a Chromium for the page's tests before any test runs: `python -m tests.chromium` prints its path for make.

The one that CHROMIUM names; else the system's own; else Playwright's, downloaded into this environment; else, as root
on Debian or Ubuntu, the packages. Found means that it has started and drawn a page: one without its libraries is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = (
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
)
MISSING = (
    "the page's tests need Chromium or Chrome, and none could be had: install one (on Debian: apt install chromium), "
    "or leave those tests out: make test PAGE=no"
)
NO_PLAYWRIGHT = (
    "the page's tests need Playwright, and it does not start here ({trouble}): install what is missing (on Debian: apt "
    "install libatomic1), or leave those tests out: make test PAGE=no"
)
# The browser, and what Playwright's own node is linked to and a small system lacks.
PACKAGES = ("libatomic1", "chromium")
# A download from a place that cannot be reached must not hold everything up.
DOWNLOAD_SECONDS = 600
PACKAGE_SECONDS = 900

# Playwright's own browsers go where the environment lies, and leave with it.
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(Path(sys.prefix) / "browsers"))


@cache
def trouble() -> str:
    """What keeps Playwright itself from starting, in its own words; else nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "playwright", "--version"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or "it says nothing").splitlines()[-1]


def starts(executable: str) -> bool:
    """Whether this browser starts and draws a page."""
    from playwright.sync_api import Error, sync_playwright

    if trouble():
        return False
    try:
        with sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable) as browser:
            browser.new_page().set_content("<p>byhand</p>")
    except (Error, OSError):
        return False
    return True


def of_the_system() -> str | None:
    """The system's Chromium or Chrome, if it starts."""
    paths = [*filter(None, map(shutil.which, NAMES)), *(str(path) for path in APPLICATIONS if path.is_file())]
    return next(filter(starts, paths), None)


def of_playwright() -> str | None:
    """The one that Playwright has downloaded, if it starts."""
    from playwright.sync_api import sync_playwright

    if trouble():
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() and starts(path) else None


def downloaded() -> str | None:
    """Playwright's, downloaded now."""
    if trouble():
        return None
    say(f"no Chromium or Chrome is here: downloading Playwright's into {os.environ['PLAYWRIGHT_BROWSERS_PATH']}")
    done = run([sys.executable, "-m", "playwright", "install", "chromium"], DOWNLOAD_SECONDS)
    return of_playwright() if done else None


def packaged() -> str | None:
    """Debian's or Ubuntu's package, where this is root's to install: sudo is never asked."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return None
    say(f"Playwright's cannot be had: installing the system's packages (apt-get install {' '.join(PACKAGES)})")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run([apt, "update"], PACKAGE_SECONDS, environment)
    done = run([apt, "install", "--yes", "--no-install-recommends", *PACKAGES], PACKAGE_SECONDS, environment)
    trouble.cache_clear()
    return of_the_system() if done else None


WAYS: tuple[Callable[[], str | None], ...] = (of_the_system, of_playwright, downloaded, packaged)


@cache
def find() -> str | None:
    """The browser that is here, without fetching any; the one that make test has tried is not tried again."""
    return os.environ.get("CHROMIUM") or of_the_system() or of_playwright()


def main() -> int:
    """Print the path of one that is here or was fetched: 0; or one sentence where none can be had: 2."""
    named = os.environ.get("CHROMIUM")
    if named and not starts(named):
        say(f"CHROMIUM is {named!r}, which does not start as a Chromium")
        return 2
    path = named or next(filter(None, (way() for way in WAYS)), None)
    if path is None:
        say(NO_PLAYWRIGHT.format(trouble=trouble()) if trouble() else MISSING)
        return 2
    print(path)
    return 0


def run(command: list[str], seconds: int, environment: dict[str, str] | None = None) -> bool:
    """Whether a command ended well in its time; what it says is of no use to who waits."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=seconds, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def say(line: str) -> None:
    """A line for who waits; stdout is the path's."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
