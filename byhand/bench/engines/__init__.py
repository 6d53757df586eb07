"""What can be measured: an engine's file has a class `Adapter`, and `convert` where it needs files of its own.

byhand's own is here; its peers' lie in the folder benchmarks/ of a checkout, and no wheel holds them. Nothing imports
an adapter: each is opened in a process of its own, by an interpreter that has what it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol

PRECISIONS = ("fp32", "bf16", "int8", "int4")
OURS = "byhand"
# Where a checkout has the package whose `peers` are measured beside byhand.
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@dataclass(frozen=True, slots=True)
class Setting:
    """What an adapter is opened with. `files` is what `convert` wrote, `folder` the checkpoint it was made from."""

    folder: Path
    form: str
    threads: int
    batch: int
    length: int  # tokens of the longest run
    files: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converted(self) -> Path:
        """`files`, where there must be some."""
        assert self.files is not None
        return self.files


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a burst made: the new ids of each prompt, and the clock after each step (perf_counter)."""

    ids: list[list[int]]
    stamps: list[float]


class Engine(Protocol):
    """What every adapter offers. With `begin(prompts)` and `go_on(new)` a long context is read once for many bursts."""

    def __init__(self, setting: Setting) -> None: ...

    def generate(self, prompts: list[list[int]], new: int) -> Tokens:
        """Greedily, end-of-sequence ignored: exactly `new` tokens for each of the prompts, which are equally long."""

    def weight_bytes(self) -> int:
        """Bytes of weights that one decoding step reads."""

    def version(self) -> str:
        """Name and version of what runs."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine as the benchmark knows it. `forms`: its own names of what it runs for each precision.

    `module` is its adapter's, with all its dots.
    """

    name: str
    module: str
    package: str  # what pip calls it
    forms: Mapping[str, tuple[str, ...]]
    runs: Mapping[str, str]  # what a form really computes with
    families: tuple[str, ...] = ()  # model types it knows; none named: any
    converts: bool = True
    converter: str = ""  # what must be installed to convert for it, beside the package
    files: Mapping[str, str] = field(default_factory=dict)  # the name of a form's files, where forms share them

    def contestants(self, precision: str, kind: str = "decode") -> tuple[str, ...]:
        """The forms to run for a precision. Beside bf16: fp32 too for prefills, and for batches where no bf16 is."""
        forms = self.forms.get(precision, ())
        wants_both = precision == "bf16" and (kind == "prefill" or (kind == "batch" and not forms))
        return (*forms, *self.forms.get("fp32", ())) if wants_both else forms


def peers_module() -> Any:
    """The package `benchmarks.peers`; None where byhand was installed from a wheel."""
    return module_of("benchmarks.peers") if (BENCHMARKS / "peers" / "__init__.py").is_file() else None


def module_of(name: str) -> Any:
    """A module of byhand's or of benchmarks, which is found by its place: the current folder is on no worker's path."""
    if name.startswith("benchmarks.") and "benchmarks" not in sys.modules:
        spec = spec_from_file_location("benchmarks", BENCHMARKS / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["benchmarks"] = package = module_from_spec(spec)
        spec.loader.exec_module(package)
    return import_module(name)
