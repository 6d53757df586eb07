"""What is frozen beside what is now: one line for each difference, and the versions between which bits are the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from math import isclose
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import torch
from llvmlite import binding

HERE = Path(__file__).parent
# Numbers of another processor, or of a pass over another number of rows, agree this closely: docs/record.md.
TOLERANCE = 1e-3
MISSING = object()


@dataclass
class Report:
    """What a comparison found: a line for each difference, and for all that could not be compared the reason."""

    differences: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def versions() -> dict[str, str]:
    """All that the bits may depend on beside byhand: where one of these differs, other bits are no fault of ours."""
    host = binding.get_host_cpu_name()
    return {
        "torch": torch.__version__.split("+")[0],
        "torch_takes": torch.backends.cpu.get_cpu_capability(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "processor": host,
        "compiled_for": os.environ.get("NUMBA_CPU_NAME", host),
    }


def other_versions(then: dict[str, str], now: dict[str, str]) -> str:
    """What is another now than it was when the bits were written; empty where all is the same."""
    return ", ".join(f"{name} was {then.get(name)}, is {now[name]}" for name in now if now[name] != then.get(name))


def digest(data: bytes) -> str:
    """16 hexadecimal digits."""
    return blake2b(data, digest_size=8).hexdigest()


def read_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, values: list[Any]) -> None:
    """One value a line."""
    lines = [json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False) for value in values]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def differences(then: Any, now: Any, where: str) -> Iterator[str]:
    """A line for each place where two JSON values differ; numbers with a fraction agree within TOLERANCE."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in [*then, *(name for name in now if name not in then)]:
            yield from differences(then.get(name, MISSING), now.get(name, MISSING), f"{where}.{name}")
    elif isinstance(then, list) and isinstance(now, list):
        for place, (before, after) in enumerate(zip_longest(then, now, fillvalue=MISSING)):
            yield from differences(before, after, f"{where}[{place}]")
    elif not _agree(then, now):
        yield f"{where}: was {_shown(then)}, is {_shown(now)}"


def _agree(then: Any, now: Any) -> bool:
    if isinstance(then, float) and isinstance(now, float):
        return isclose(then, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(then) is type(now) and bool(then == now)


def _shown(value: Any) -> str:
    return "not there" if value is MISSING else json.dumps(value, ensure_ascii=False)[:200]
