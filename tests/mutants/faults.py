"""The faults as they lie beside this file: a name, a file, the right lines, the wrong ones, and the tests."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True, slots=True)
class Fault:
    """`right` stands once in `file`; `wrong` in its place is the fault; `tests` are files or nodes that must fail."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def read_faults() -> list[Fault]:
    """All of them, room by room."""
    return [
        Fault(f"{path.stem}: {name}", entry["file"], entry["right"], entry["wrong"], tuple(entry["tests"]))
        for path in sorted(HERE.glob("*.toml"))
        for name, entry in tomllib.loads(path.read_text()).items()
    ]
