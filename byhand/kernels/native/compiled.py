"""Compiles the kernels once for this processor, into a cache that is never stale; later runs load them from there.

Numba's own cache looks at the file of a kernel alone and misses changes in what it calls. So the folder's name is a
digest of everything that machine code depends on: another version or processor uses another folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba
from llvmlite import binding

# What Numba's published types leave out: its settings, and some options of njit.
_config: Any = numba.config
_njit: Any = numba.njit

SOURCES = Path(__file__).parent


def user_cache() -> Path:
    """The folder that BYHAND_CACHE names, or `byhand` where this system keeps such things."""
    if chosen := os.environ.get("BYHAND_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "byhand"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "byhand" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "byhand"


def digest(sources: Path = SOURCES) -> str:
    """A name for everything that the machine code depends on."""
    parts = [
        *(str(_config.CPU_NAME), str(_config.CPU_FEATURES), str(_config.OPT)),
        *(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()),
        *(numba.__version__, llvmlite.__version__, sys.version, platform.machine(), sys.platform),
    ]
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12)
    for file in sorted(sources.glob("*.py")):
        name.update(file.name.encode() + b"\0" + file.read_bytes())
    return name.hexdigest()


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where nothing can be written.

    Never a folder that others may write to, as the one for temporary files is: what is loaded from here is run.
    """
    folder = user_cache() / "kernels" / digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def inlined(function: Any) -> Any:
    """A function that kernels are made of: compiled into each that calls it."""
    return _njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def specialise(templates: list[Any], names: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The same functions over another set of global names: each sees the others, and `names`, instead of its module's.

    This is how one source serves every format: a closure would do as well, but Numba keeps no cache of those.
    """
    scope = {**templates[0].__globals__, **names}
    for template in templates:
        function = FunctionType(template.__code__, scope, f"{template.__name__}_{label}")
        function.__qualname__ = function.__name__
        scope[template.__name__] = inlined(function)
    return scope


class Kernel:
    """One kernel: its machine code is loaded, or compiled and kept, when it is first asked for."""

    def __init__(self, function: Any, signature: str, *, parallel: bool) -> None:
        self.name: str = function.__name__
        self._function, self._signature, self._parallel = function, signature, parallel

    @property
    def is_kept(self) -> bool:
        """Whether the cache has it already."""
        folder = cache_folder()
        return folder is not None and any(folder.rglob(f"*.{self.name}-*.nbi"))

    def load(self) -> Callable[..., None]:
        """The machine code as a function: addresses and counts in, nothing out. It lets go of the GIL."""
        folder = cache_folder()
        before = _config.CACHE_DIR
        _config.CACHE_DIR = str(folder or "")
        try:
            dispatcher = _njit(
                self._signature,
                cache=folder is not None,
                parallel=self._parallel,
                nogil=True,
                error_model="numpy",
            )(self._function)
        finally:
            _config.CACHE_DIR = before
        # The compiled function itself: the dispatcher would look at the types of twenty numbers first.
        [compiled] = dispatcher.overloads.values()
        entry: Callable[..., None] = compiled.entry_point
        return entry
