"""Plants each fault in a copy of the repository and runs the tests that should notice: `python -m tests.mutants`.

Words after it choose faults whose name holds one of them. A fault is found when its tests fail, or take too long.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.faults import ROOT, Fault, read_faults

# The tests of a fault pass in far less; a fault that makes them hang is found.
SECONDS = 300
COPIED = (
    "byhand",
    "tests",
    "docs",
    "lessons",
    "benchmarks",
    "README.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
    "Makefile",
    "constraints.txt",
)
NOTHING_RAN = 5  # pytest's exit code where it found no test


def main(words: list[str]) -> int:
    """Every fault, one line each: 0 when all are found, 1 when some are not, 2 when a test fails without any fault."""
    faults = [fault for fault in read_faults() if not words or any(word in fault.name for word in words)]
    tests = sorted({test for fault in faults for test in fault.tests})
    with tempfile.TemporaryDirectory() as folder:
        copies = [copied(Path(folder) / str(number)) for number in range(max(1, (os.cpu_count() or 1)))]
        if not passes(copies[0], tests, seconds=4 * SECONDS):
            print("the tests fail without any fault: nothing was planted", file=sys.stderr)
            return 2
        missed = [fault.name for fault, found in planted(copies, faults) if not found]
    print(f"{len(faults) - len(missed)} of {len(faults)} faults found")
    return 1 if missed else 0


def copied(folder: Path) -> Path:
    """A copy in which faults may be planted."""
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


def planted(copies: list[Path], faults: list[Fault]) -> Iterator[tuple[Fault, bool]]:
    """Each fault, and whether its tests found it; one at a time in each copy."""
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def is_found(fault: Fault) -> bool:
        copy = free.get()
        try:
            with fault_in(copy, fault):
                return not passes(copy, list(fault.tests))
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        for fault, found in zip(faults, pool.map(is_found, faults), strict=True):
            print(f"{'found ' if found else 'MISSED'}  {fault.name}", flush=True)
            yield fault, found


@contextmanager
def fault_in(copy: Path, fault: Fault) -> Iterator[None]:
    """The copy with the fault, and as it was afterwards."""
    file = copy / fault.file
    right = file.read_text()
    file.write_text(right.replace(fault.right, fault.wrong))
    try:
        yield
    finally:
        file.write_text(right)


def passes(copy: Path, tests: list[str], seconds: int = SECONDS) -> bool:
    """Whether these tests pass there. Tests that are not there at all are a mistake in the list, not a finding."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not full and not timed",
        *tests,
    ]
    # The copy's own package comes first, whatever the environment has installed; its bytecode is never stale.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode == NOTHING_RAN:
        raise SystemExit(f"no test ran: {' '.join(tests)}")
    return done.returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
