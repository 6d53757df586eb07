"""Runs a peer's own exporter, a program of Python's, with the interpreter that this worker runs in."""

from __future__ import annotations

import subprocess


def call(command: list[str]) -> None:
    """Run it to its end; what it says last is the error's message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"ended with code {done.returncode}"]
        raise RuntimeError(lines[-1])
